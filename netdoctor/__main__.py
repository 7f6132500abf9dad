"""`python -m netdoctor`."""

from netdoctor.cli import main

if __name__ == "__main__":
    main(prog_name="netdoctor")
