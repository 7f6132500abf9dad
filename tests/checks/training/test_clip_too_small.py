from __future__ import annotations

import numpy as np
import pytest

from netdoctor.checks.training.clip_too_small import ClipTooSmall
from netdoctor.finding import Finding
from tests.checks.builders import Builder


def recording(norm: object, limit: float = 0.1, steps: int = 60, fall: float = 0.0, **options: float) -> Builder:
    build = Builder(steps=steps).linear("0").optimizer("SGD", lr=0.1, **options)
    build.scalar("norm at clipping", norm).scalar("clip limit", limit)
    build.event(0, "clip", "norm", limit, line=21)
    return build.loss(lambda step: 1.0 - fall * step / steps + 0.001 * np.sin(5.0 * step)).facts(loss_lower_bound=0.0)


def judged(build: Builder) -> list[Finding]:
    return list(ClipTooSmall().judge(build.done()))


def test_it_says_the_usual_norm() -> None:
    (finding,) = judged(recording(3.2))
    assert "norm 3.2" in finding.title
    assert "max_norm=3)" in finding.fixes[0].code
    assert finding.location.line == 21


@pytest.mark.parametrize(("norm", "fires"), [(0.99, False), (1.01, True)])
def test_the_limit_of_ten_times(norm: float, fires: bool) -> None:
    assert bool(judged(recording(norm))) is fires


@pytest.mark.parametrize(("quiet", "fires"), [(5, True), (7, False)])
def test_the_share_of_steps(quiet: int, fires: bool) -> None:
    assert bool(judged(recording(lambda step: 0.05 if step < quiet else 5.0))) is fires


@pytest.mark.parametrize(("steps", "fires"), [(29, False), (31, True)])
def test_the_number_of_steps(steps: int, fires: bool) -> None:
    assert bool(judged(recording(5.0, steps=steps))) is fires


def test_silent_for_adaptive_optimizers_and_where_training_works() -> None:
    assert judged(recording(5.0, eps=1e-8)) == []
    assert judged(recording(5.0, fall=0.9)) == []
    assert judged(recording(5.0, fall=0.3)) != []


def test_clipping_by_value_has_no_norm_to_compare_with() -> None:
    build = recording(5.0)
    build.recording.events.clear()
    assert judged(build.event(0, "clip", "value", 0.1)) == []


@pytest.mark.parametrize(("size", "steps", "fires"), [(1.01, 60, True), (0.99, 60, False), (5.0, 29, False)])
def test_clipping_by_value_is_measured_by_the_size_of_the_gradients(size: float, steps: int, fires: bool) -> None:
    build = Builder(steps=steps).linear("0", weight_gradient=size).optimizer("SGD", lr=0.1)
    build.scalar("clip limit", 0.1).event(0, "clip", "value", 0.1, line=21).facts(loss_lower_bound=0.0)
    found = judged(build.loss(lambda step: 1.0 + 0.001 * np.sin(5.0 * step)))
    assert bool(found) is fires
    if fires:
        assert found[0].fixes[0].code == "torch.nn.utils.clip_grad_value_(model.parameters(), clip_value=10)"
