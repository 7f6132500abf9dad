"""Gradients, optimizer and the training loop."""
