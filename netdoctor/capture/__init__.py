"""Observing a training run: tensors in, a `Recording` out. Knows nothing of checks, reports or files."""
