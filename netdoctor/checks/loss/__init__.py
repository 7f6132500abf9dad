"""What is compared with the target, and how: the output, the loss function, their shapes and ranges."""
