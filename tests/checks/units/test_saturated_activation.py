"""`saturated-activation`: each limit, and everything that must not set it off."""

from __future__ import annotations

from typing import Any

import pytest

from netdoctor.checks.units.saturated_activation import SaturatedActivation
from netdoctor.finding import Abstention, Finding, Severity
from netdoctor.recording import Recording
from tests.checks.builders import Builder


def net(
    saturated: Any, type_: str = "Tanh", path: str = "act", samples: float = 100.0, steps: int = 60, **linear: Any
) -> Builder:
    build = Builder(steps).linear("fc", units=20, **linear)
    return build.activation(path, type_, units=20, saturated=saturated, samples=samples).linear("out", units=4)


def stuck(units: int, share: float = 1.0) -> list[float]:
    return [share] * units + [0.1] * (20 - units)


def run(recording: Recording) -> list[Finding | Abstention]:
    return list(SaturatedActivation().judge(recording))


def only(recording: Recording) -> Finding:
    (finding,) = run(recording)
    assert isinstance(finding, Finding)
    return finding


@pytest.mark.parametrize(("units", "fires"), [(10, False), (11, True), (20, True)])
def test_more_than_half_of_the_units(units: int, fires: bool) -> None:
    assert bool(run(net(stuck(units)).done())) is fires


@pytest.mark.parametrize(("share", "fires"), [(0.89, False), (0.9, False), (0.91, True)])
def test_for_more_than_nine_tenths_of_the_samples(share: float, fires: bool) -> None:
    assert bool(run(net(stuck(20, share)).done())) is fires


def test_all_through_the_window() -> None:
    assert run(net(lambda step: stuck(0) if step == 55 else stuck(20)).done()) == []


def test_since_which_step() -> None:
    build = net(lambda step: stuck(0) if step < 20 else stuck(20)).optimizer("SGD", lr=1.0)
    finding = only(build.done())
    assert finding.first_step == 20
    assert finding.fixes[0].treatment == "lower-lr"


@pytest.mark.parametrize(("samples", "steps", "judged"), [(100.0, 3, False), (63.0, 4, False), (64.0, 4, True)])
def test_too_short(samples: float, steps: int, judged: bool) -> None:
    (found,) = run(net(stuck(20), samples=samples, steps=steps).done())
    assert isinstance(found, Finding) is judged


@pytest.mark.parametrize(("behind", "fires"), [(0.49, True), (0.51, False)])
def test_gradient_that_passes_denies_it(behind: float, fires: bool) -> None:
    build = Builder(60).linear("fc", units=20, gradient=behind * 1e-3)
    build.activation("act", "Tanh", units=20, saturated=stuck(20), samples=100.0, gradient=1e-3)
    assert bool(run(build.linear("out").done())) is fires


@pytest.mark.parametrize(("between", "fires"), [("linear", False), ("mul", True)])
def test_gradient_is_compared_only_where_nothing_lies_between(between: str, fires: bool) -> None:
    """A slope in front of the sigmoid multiplies the gradient too, so that it says nothing about the sigmoid."""
    build = Builder(60).linear("fc", units=20, gradient=5e-3, function="linear")
    build.activation("act", "sigmoid", units=20, saturated=stuck(20), samples=100.0, gradient=1e-3).linear("out")
    x = build.operation("linear", build.value((32, 20)), build.weight("fc.weight"), module="fc")
    if between == "mul":
        x = build.operation("mul", x, module="act")
    p = build.operation("sigmoid", x, module="act")
    build.operation("linear", p, build.weight("out.weight"), module="out")
    assert bool(run(build.done())) is fires


def test_sigmoid_is_held_against_its_own_steepest_slope() -> None:
    build = Builder(60).linear("fc", units=20, gradient=0.2 * 1e-3)
    build.activation("act", "Sigmoid", units=20, saturated=stuck(20), samples=100.0, gradient=1e-3)
    assert run(build.linear("out").done()) == []  # 0.2 of at most 0.25: not flat at all


@pytest.mark.parametrize(
    ("factor", "severity"),
    [(1.0, Severity.ERROR), (0.95, None), (None, Severity.WARNING)],
    ids=["flat", "falls", "unknown"],
)
def test_outcome(factor: float | None, severity: Severity | None) -> None:
    build = net(stuck(20))
    if factor is not None:
        build.loss(lambda s: 2.3 * factor**s).facts(loss_family="mse", loss_lower_bound=0.0)
    assert [f.severity for f in run(build.done()) if isinstance(f, Finding)] == ([] if severity is None else [severity])


def test_units_that_were_mostly_saturated_at_once_are_so_from_the_start() -> None:
    assert only(net(lambda step: stuck(20, 0.6) if step < 20 else stuck(20)).done()).first_step == 0


def test_output_of_the_model_is_silent() -> None:
    build = (
        Builder(60).linear("fc", units=20).activation("act", "Sigmoid", units=20, saturated=stuck(20), samples=100.0)
    )
    assert run(build.done()) == []


def test_output_by_the_graph() -> None:
    """A second head runs later, but nothing weighted reads this one."""
    build = net(stuck(20), "Sigmoid")
    x = build.operation("linear", build.value((32, 8)), build.weight("fc.weight"), module="fc")
    p = build.operation("sigmoid", x, module="act")
    build.operation("linear", build.value((32, 8)), build.weight("out.weight"), module="out")
    build.backward(build.operation("binary_cross_entropy", p, build.value((32, 8)), shape=()))
    assert run(build.done()) == []


@pytest.mark.parametrize(("other", "fires"), [((32, 20), False), ((), True)])
def test_gates_are_silent(other: tuple[int, ...], fires: bool) -> None:
    """Multiplied with a tensor it is a gate; scaled by a number it is not."""
    build = net(stuck(20), "Sigmoid")
    x = build.operation("linear", build.value((32, 20)), build.weight("fc.weight"), module="fc")
    p = build.operation("unsqueeze", build.operation("sigmoid", x, module="act"))
    gated = build.operation("mul", p, build.value(other))
    build.backward(build.operation("linear", gated, build.weight("out.weight"), module="out"))
    assert bool(run(build.done())) is fires


def test_gate_by_its_name_without_a_graph() -> None:
    assert run(net(stuck(20), "Sigmoid", path="block.gate").done()) == []


def test_moving_targets_are_silent() -> None:
    assert run(net(stuck(20)).facts(moving_target=True).done()) == []


def test_large_weights_are_named() -> None:
    finding = only(net(stuck(20), weight_rms=1.0, fan_in=64).done())
    assert "weights of fc are large" in finding.explanation
    assert finding.fixes[0].code.startswith("torch.nn.init.xavier_normal_(model.fc.weight")


def test_scale_of_what_goes_in_comes_from_the_graph() -> None:
    build = net(stuck(20))
    pooled = build.operation("sum", build.value((32, 20, 96)), shape=(32, 20), out={"mean": 80.0, "std": 60.0})
    build.operation("linear", build.operation("tanh", pooled, module="act"), build.weight("out.weight"), module="out")
    assert "scale 100" in only(build.done()).explanation
