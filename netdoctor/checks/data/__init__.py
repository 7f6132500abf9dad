"""Data as the model sees it."""
