"""What a reader calls an experiment."""

from __future__ import annotations

import re
from pathlib import Path

import netdoctor
from netdoctor.render import titles


def test_an_arm_is_told_by_its_experiment() -> None:
    assert titles.of_experiment("overfit-tiny-batch") == "overfitting a tiny batch"
    assert titles.of_experiment("trial/control") == "other learning rates (as it is)"
    assert titles.of_experiment("stability/lr x0.1") == "each step on its own batch (lr ×0.1)"
    assert titles.of_experiment("usage/0") == titles.of_group("usage/3") == "what of the input is read"
    assert titles.of_experiment("somebody's own/arm") == titles.of_group("somebody's own/arm") == "somebody's own/arm"


def test_every_experiment_has_a_title() -> None:
    folder = Path(netdoctor.__file__).parent / "experiments"
    named = {found for file in folder.glob("*.py") for found in re.findall(r'"([a-z ]+)/[a-z ]+"', file.read_text())}
    assert {"final", "leakage", "width", "scaling"} <= named
    assert [name for name in sorted(named) if titles.of_group(f"{name}/x") == f"{name}/x"] == []
