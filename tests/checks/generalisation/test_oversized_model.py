"""oversized-model, at its limits."""

from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.generalisation.oversized_model import OversizedModel
from netdoctor.data import Evaluation
from netdoctor.finding import Severity
from tests.checks.builders import Builder
from tests.checks.data.facts import facts


def model(parameters: int, held: float, batches: tuple[int, ...] = (7, 7, 7), **extra: bool) -> Builder:
    build = Builder(steps=60).loss(0.1).parameter("body.weight", (parameters, 1)).facts(**extra)
    build.recording.targets = [facts(np.random.default_rng(0).standard_normal((40, 1)), batches=batches)]
    build.recording.evaluations = [Evaluation(np.arange(4), np.full(4, held))]
    return build


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (model(4000, 0.31), True),
        (model(3999, 0.31), False),
        (model(4000, 0.29), False),
        (model(4000, 0.9, batches=(1, 2, 3)), False),
        (model(4000, 0.9, pretrained=True), False),
    ],
)
def test_a_large_model_that_is_worse_on_held_out_data(build, fires):
    assert [f.severity for f in OversizedModel().judge(build.done())] == ([Severity.ADVICE] if fires else [])
