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


@pytest.mark.parametrize(
    ("left", "failure", "drop"),
    [(0.69, "", 0.31), (0.71, "", 0.1), (0.3, "no copy", 0.1), (None, "", 0.1), (0.95, "", 0.1)],
)
def test_a_fall_is_no_less_than_what_the_trained_model_has_learned(
    left: float | None, failure: str, drop: float
) -> None:
    """A loss that falls by 10 %, as the rest of it is a floor that no training takes away."""
    steps = np.arange(200)
    values = 20.0 + 2.3 * np.exp(-steps / 60) + 0.02 * np.sin(steps * 1.7)
    recording = Recording(losses={"loss": Series(steps, values)}, facts={"loss_lower_bound": 0.0})
    facts = {} if left is None else {"left": left}
    recording.arms["final/evaluation"] = Arm("final/evaluation", np.ones(3), failure=failure, facts=facts)
    trend = judge(recording)
    assert trend.kind == "falls"
    assert trend.drop == pytest.approx(drop, abs=0.03)


def test_a_flat_loss_stays_flat() -> None:
    recording = Recording(losses={"loss": Series(np.arange(200), 2.0 + 0.01 * np.sin(np.arange(200) * 1.7))})
    recording.arms["final/evaluation"] = Arm("final/evaluation", np.ones(3), facts={"left": 0.5})
    assert judge(recording).kind == "flat"
