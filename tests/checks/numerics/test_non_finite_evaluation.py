from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from netdoctor.checks.numerics.non_finite_evaluation import NonFiniteEvaluation
from netdoctor.data import Evaluation
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Origin
from tests.checks.builders import Builder
from tests.checks.data.facts import facts, rows

FINE = (0.5, 0.4, 0.3)


def evaluated(losses=FINE, trained=0.4, nonfinite: int | None = None, train_mode: int = 0) -> Builder:
    inputs = () if nonfinite is None else (replace(facts(rows(), "held_x"), nonfinite=nonfinite),)
    steps = np.arange(1, len(losses) + 1) * 10
    build = Builder(steps=40).loss(np.linspace(2.0, trained, 40))
    found = Evaluation(
        steps, np.array(losses), 3, 3, train_mode, inputs=inputs, file="t.py", line=7, text="held = f(x)"
    )
    build.recording.evaluations = [Evaluation(steps, np.array(FINE)), found]
    return build


def judged(build: Builder) -> list[Finding]:
    return list(NonFiniteEvaluation().judge(build.done()))


@pytest.mark.parametrize(("bad", "kind"), [(math.nan, "NaN"), (math.inf, "Inf")])
def test_one_evaluation_that_breaks_is_enough(bad, kind):
    (found,) = judged(evaluated((0.5, bad, 0.3), nonfinite=2))
    assert found.severity is Severity.ERROR
    assert found.title.startswith(f"the loss of the evaluation is {kind}")
    assert "the held-out input holds NaN or Inf" in found.title
    assert "2 of 402 sampled rows of held_x" in found.explanation
    assert (found.location.line, found.location.step, found.evidence[0].measured) == (7, 20, 1.0)
    assert "held_x = torch.nan_to_num(held_x)" in found.fixes[0].code


@pytest.mark.parametrize(("nonfinite", "mode"), [(None, 0), (0, 3)])
def test_inputs_that_are_finite_leave_the_model(nonfinite, mode):
    (found,) = judged(evaluated((math.nan,) * 3, nonfinite=nonfinite, train_mode=mode))
    assert "its inputs are finite as far as they were sampled" in found.title
    assert f"ran in {'training' if mode else 'evaluation'} mode" in found.explanation
    compile(found.fixes[0].code, "fix", "exec")


def test_it_is_silent_where_the_training_breaks_or_nothing_does():
    assert judged(evaluated(nonfinite=5)) == []
    assert judged(evaluated((math.nan,) * 3, trained=math.nan)) == []
    assert judged(Builder(steps=40).loss(0.5)) == []
    origin = evaluated((math.nan,) * 3)
    origin.recording.origin = Origin("forward", "NaN", 3)
    assert judged(origin) == []
