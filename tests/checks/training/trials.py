"""Hand-made learning-rate trials and losses that the tests of this family share."""

from __future__ import annotations

import numpy as np

from tests.checks.builders import Builder


def falls(to: float, start: float = 2.3, steps: int = 40) -> np.ndarray:
    """A loss that goes from `start` to `to` within the first half of the steps, and stays."""
    return np.maximum(np.linspace(start, 2 * to - start, steps), to)


def flat(at: float = 2.3, steps: int = 40) -> np.ndarray:
    """A loss that only wiggles."""
    return at + 0.02 * np.random.default_rng(0).normal(size=steps)


def network(update: float, steps: int = 60, lr: float = 1.0, line: str = "", **linear: object) -> Builder:
    """Two linear layers whose weights change by `update` of their size per step, and SGD over them."""
    build = Builder(steps)
    for path in ("body.0", "body.2"):
        build.linear(path, weight_rms=0.1, update=0.1 * update, **linear)
    build.optimizer("SGD", lr=lr, line=7)
    if line:
        only = build.recording.optimizers[0]
        source = type(only.source)("train.py", 7, line)
        build.recording.optimizers[0] = type(only)(0, "SGD", only.groups, only.parameters, source)
    return build
