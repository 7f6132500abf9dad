"""Checks of what the model does with data that it was not trained on."""
