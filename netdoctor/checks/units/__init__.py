"""Checks of family 3: units that stopped working."""
