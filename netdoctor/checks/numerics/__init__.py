"""Checks of family 1: something is no longer a number."""
