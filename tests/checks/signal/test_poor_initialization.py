"""poor-initialization on hand-made recordings."""

from __future__ import annotations

import math
from typing import Any

import pytest

from netdoctor.checks.signal.initialisation import band
from netdoctor.checks.signal.poor_initialization import PoorInitialization
from netdoctor.finding import Severity
from netdoctor.recording import Stat
from tests.checks.builders import Builder, Curve
from tests.checks.signal.chains import FALLING, FLAT, chain, findings

CHECK = PoorInitialization()
FAN = 64
HIGH = (5 / 3) / math.sqrt(FAN)
LOW = 1 / math.sqrt(3 * FAN)


def mlp(
    weight: float, gain: float, loss: Curve = FLAT, layers: int = 4, start: float | None = None, **fields: Any
) -> Builder:
    """An MLP of width 64 whose outputs scale by `gain` per layer from an input of scale 1."""
    first = weight * math.sqrt(FAN) if start is None else start
    levels = [first * gain**k for k in range(layers)]
    return chain(levels, loss, weight=weight, fan_in=FAN, units=FAN, **fields)


@pytest.mark.parametrize(("times", "fires"), [(3.9, False), (4.1, True)])
def test_too_large(times: float, fires: bool) -> None:
    found = findings(CHECK, mlp(HIGH * times, 5.0).done())
    assert bool(found) is fires
    assert all(f.severity is Severity.ERROR and f.location.module == "body.0" for f in found)


@pytest.mark.parametrize(("times", "fires"), [(1 / 3.9, False), (1 / 4.1, True)])
def test_too_small(times: float, fires: bool) -> None:
    assert bool(findings(CHECK, mlp(LOW * times, 0.1).done())) is fires


@pytest.mark.parametrize(
    ("gain", "severity"), [(1.0, None), (1.5, None), (2.2, Severity.WARNING), (9.0, Severity.WARNING)]
)
def test_large_weights_must_amplify_the_signal(gain: float, severity: Severity | None) -> None:
    found = findings(CHECK, mlp(HIGH * 4.1, gain, FALLING).done())
    assert [f.severity for f in found] == ([] if severity is None else [severity])


@pytest.mark.parametrize(
    ("gain", "loss", "severity"),
    [(0.9, FLAT, None), (0.25, FLAT, Severity.ERROR), (0.25, FALLING, None), (0.05, FALLING, Severity.WARNING)],
)
def test_small_weights_must_starve_the_signal(gain: float, loss: Curve, severity: Severity | None) -> None:
    found = findings(CHECK, mlp(LOW / 5, gain, loss).done())
    assert [f.severity for f in found] == ([] if severity is None else [severity])


def test_a_mean_adds_up_over_the_fan() -> None:
    build = mlp(0.577, 30.0)
    for index in range(4):
        build.of_parameter(f"body.{2 * index}.weight", Stat.MEAN, 0.5)
    found = findings(CHECK, build.done())[0]
    assert "mean 0.5" in found.title
    assert not findings(CHECK, mlp(0.577, 30.0).done())  # the same scale around zero is 2.8 times off


def test_saturated_tanh_counts_though_the_signal_is_bounded() -> None:
    found = findings(CHECK, mlp(1.0, 1.0, activation="Tanh").done())
    assert found[0].severity is Severity.ERROR
    assert 'calculate_gain("tanh")' in found[0].fixes[0].code
    assert not findings(CHECK, mlp(1.0, 1.0, activation="Tanh", start=3.9).done())


def test_norms_that_keep_the_signal_make_it_a_warning() -> None:
    build = Builder(60).loss(FALLING)
    for index in range(4):
        build.linear(f"{index}.fc", fan_in=FAN, units=FAN, weight_rms=1.0, rms=8.0)
        build.layer(f"{index}.bn", "BatchNorm1d", rms=1.0)
    assert [f.severity for f in findings(CHECK, build.done())] == [Severity.WARNING]


def test_the_fix_names_exactly_these_layers() -> None:
    code = findings(CHECK, mlp(1.0, 6.0, layers=2).done())[0].fixes[0].code
    assert code.splitlines() == [
        'torch.nn.init.kaiming_normal_(model.body[0].weight, nonlinearity="relu")',
        "torch.nn.init.xavier_normal_(model.body[2].weight)",
    ]


@pytest.mark.parametrize(
    "build",
    [
        mlp(1.0, 6.0).facts(pretrained=True),
        mlp(1.0, 6.0, requires_grad=False),
        mlp(0.0, 0.1, start=1.0),
        chain([1.0, 1.0, 1.0, 1e-3], weight=[0.1, 0.1, 0.1, 1e-4], fan_in=FAN, units=FAN),  # a small head
        chain([1.0, 1.0, 0.02, 1.0], weight=[0.1, 0.1, 0.002, 0.1], fan_in=FAN, units=FAN),  # a residual end
        Builder(60)
        .parameter("embedding.weight", (100, 64), rms=1.0)
        .layer("embedding", "Embedding", rms=1.0)
        .loss(FLAT),
    ],
)
def test_it_stays_silent(build: Builder) -> None:
    assert not findings(CHECK, build.done())


@pytest.mark.parametrize("fan", [(64, 64), (784, 256), (9, 512 * 9), (512, 10)])
def test_all_common_schemes_lie_in_the_band(fan: tuple[int, int]) -> None:
    low, high = band(*fan)
    schemes = [1 / math.sqrt(3 * fan[0]), math.sqrt(2 / fan[0]), math.sqrt(2 / fan[1]), math.sqrt(2 / sum(fan))]
    assert all(low <= scheme <= high for scheme in schemes)


def test_weights_first_seen_after_a_step_are_not_judged() -> None:
    build = mlp(1.0, 6.0)
    for key, track in list(build.recording.tracks.items()):
        build.recording.tracks[key] = type(track)(track.steps + 1, track.values)
    assert not findings(CHECK, build.done())
