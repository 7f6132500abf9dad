"""Where the loss alone cannot tell, the overfit experiment does."""

from __future__ import annotations

import numpy as np
import pytest

from netdoctor.recording import Arm, Recording, Series
from netdoctor.trend import judge


def _recording(reached: bool, kind: str, arms: tuple[str, ...]) -> Recording:
    """A regression that falls by 7 %, to the variance of its targets, with an overfit experiment."""
    steps = np.arange(200)
    values = 1.0 + 0.07 * np.exp(-steps / 30) + 0.002 * np.sin(steps * 1.7)
    facts = {"reached": reached, "kind": kind, "constant": 1.0}
    recording = Recording(losses={"loss": Series(steps, values)}, facts={"loss_family": "mse", "loss_lower_bound": 0.0})
    recording.arms = {name: Arm(name, np.array([1.0, 0.9]), facts=facts) for name in arms}
    return recording


BOTH = ("overfit/own", "overfit/adam 0.001")


@pytest.mark.parametrize(
    ("reached", "kind", "arms", "expected"),
    [
        (False, "regression", BOTH, "flat"),
        (True, "regression", BOTH, "unknown"),
        (False, "other", BOTH, "unknown"),
        (False, "regression", BOTH[:1], "unknown"),
    ],
)
def test_a_fall_to_the_constant_prediction(reached: bool, kind: str, arms: tuple[str, ...], expected: str) -> None:
    assert judge(_recording(reached, kind, arms)).kind == expected
