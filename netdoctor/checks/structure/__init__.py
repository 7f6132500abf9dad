"""How the model, its parameters, the optimizer and the training step are put together."""
