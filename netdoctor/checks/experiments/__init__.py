"""Checks that read an experiment on a copy of the model."""
