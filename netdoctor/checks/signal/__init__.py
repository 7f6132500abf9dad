"""Family "signal": how activations and gradients travel through depth and time, and what initialisation does to it."""
