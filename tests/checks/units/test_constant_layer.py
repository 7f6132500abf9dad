"""`constant-layer`: the limit, and everything that must not set it off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from netdoctor.checks.units.constant_layer import ConstantLayer
from netdoctor.finding import Abstention, Finding
from netdoctor.recording import Recording, Stat
from tests.checks.builders import Builder


def chain(*spreads: Any, steps: int = 40, scale: float = 2.0) -> Builder:
    """Linear layers whose outputs vary over the batch by these amounts, at a scale of 2."""
    build = Builder(steps)
    for i, spread in enumerate(spreads):
        build.linear(f"layers.{i}", rms=scale, stats={Stat.BATCH_STD: spread})
    return build


def run(recording: Recording) -> list[Finding | Abstention]:
    return list(ConstantLayer().judge(recording))


@pytest.mark.parametrize(("spread", "fires"), [(1.9e-6, True), (2e-6, False), (2.1e-6, False), (0.0, True)])
def test_limit_is_relative_to_the_scale(spread: float, fires: bool) -> None:
    assert bool(run(chain(1.0, spread, spread).done())) is fires


def test_first_constant_layer_is_named_with_those_behind_it() -> None:
    (finding,) = run(chain(1.0, 0.5, 1e-9, 1e-9).done())
    assert isinstance(finding, Finding)
    assert finding.location.module == "layers.2"
    assert finding.places == ("layers.2", "layers.3")


@pytest.mark.parametrize(
    ("type_", "units", "treatment"),
    [
        ("LayerNorm", 1, "without-norm"),
        ("LayerNorm", 2, "look-upstream"),
        ("Linear", 1, "look-upstream"),
    ],
)
def test_a_norm_of_a_single_number_is_to_be_left_out(type_: str, units: int, treatment: str) -> None:
    recording = chain(1.0, 0.5, 0.0, 0.0).facts(model_variable="net").done()
    recording.layers[2] = replace(recording.layers[2], type=type_, units=units)
    for site, stat in list(recording.tracks):
        if site.module == "layers.2":
            recording.tracks[replace(site, layer=type_), stat] = recording.tracks.pop((site, stat))
    (finding,) = run(recording)
    assert isinstance(finding, Finding)
    assert finding.fixes[0].treatment == treatment
    assert ('net.set_submodule("layers.2", nn.Identity())' in finding.fixes[0].code) is (treatment == "without-norm")


def test_branch_that_does_not_depend_on_the_input_is_silent() -> None:
    assert run(chain(1.0, 0.0, 0.0, 1.0).done()) == []


def test_constant_batch_is_silent() -> None:
    assert run(chain(0.0, 0.0).done()) == []


def test_layer_that_starts_at_zero_is_silent() -> None:
    assert run(chain(1.0, lambda step: 0.0 if step == 0 else 1.0).done()) == []


def test_too_short_is_an_abstention() -> None:
    (found,) = run(chain(1.0, 0.0, steps=3).done())
    assert isinstance(found, Abstention)
    assert "4" in found.reason


def test_training_that_works_is_silent() -> None:
    build = chain(1.0, 0.0).loss(lambda s: 0.9**s).facts(loss_family="mse", loss_lower_bound=0.0)
    assert run(build.done()) == []


def test_embedding_tables_are_not_looked_at() -> None:
    build = Builder(40).layer("positions", "Embedding", rms=1.0, stats={Stat.BATCH_STD: 0.0})
    assert run(build.linear("fc", rms=1.0, stats={Stat.BATCH_STD: 1.0}).done()) == []


def test_all_zero_output_is_constant() -> None:
    assert len(run(chain(1.0, 0.0, scale=1.0).of_layer("layers.1", Stat.RMS, 0.0).done())) == 1
