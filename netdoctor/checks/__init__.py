"""All checks, one file each, in a folder per family; `netdoctor.catalogue` finds them, there is no list to edit."""
