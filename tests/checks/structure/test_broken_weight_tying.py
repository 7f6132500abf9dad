from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.structure.broken_weight_tying import BrokenWeightTying
from netdoctor.finding import Finding
from netdoctor.recording import Kind, Stat
from tests.checks.builders import Builder


def recording(end: float = 1.1, other: str = "Linear", same_as: str = "embed.weight") -> Builder:
    build = Builder(steps=40).parameter("embed.weight", module_type="Embedding", rms=1.0)
    build.layer("embed", "Embedding", weight="embed.weight")
    build.parameter("head.weight", module_type=other, rms=lambda step: 1.0 if step == 0 else end)
    build.layer("head", other, weight="head.weight", line=9)
    build.of_parameter("embed.weight", Stat.MEAN, 0.0).of_parameter("head.weight", Stat.MEAN, 0.0)
    return same(build, "head.weight", same_as)


def same(build: Builder, name: str, as_name: str) -> Builder:
    build.recording.parameters[name] = replace(build.recording.parameters[name], same_as=as_name)
    return build


def judged(build: Builder) -> list[Finding]:
    return list(BrokenWeightTying().judge(build.done()))


def test_it_says_what_to_assign() -> None:
    (finding,) = judged(recording())
    assert finding.fixes[0].code == "model.head.weight = model.embed.weight"
    assert (finding.location.module, finding.location.line) == ("head", 9)


@pytest.mark.parametrize(("end", "fires"), [(1.0, False), (1.00009, False), (1.00011, True)])
def test_the_drift(end: float, fires: bool) -> None:
    assert bool(judged(recording(end))) is fires


def test_a_shift_of_the_mean_is_drift_too() -> None:
    assert judged(recording(1.0).of_parameter("head.weight", Stat.MEAN, 0.01)) != []


def test_silent_without_equal_values_between_other_layers_and_for_frozen_ones() -> None:
    assert judged(recording(same_as="")) == []
    build = recording()
    build.recording.layers[0] = replace(build.recording.layers[0], kind=Kind.LINEAR)
    assert judged(build) == []
    build = recording()
    build.recording.parameters["embed.weight"] = replace(
        build.recording.parameters["embed.weight"], requires_grad=False
    )
    assert judged(build) == []
    build = recording()
    build.recording.parameters["embed.weight"] = replace(build.recording.parameters["embed.weight"], model="target")
    assert judged(build) == []


@pytest.mark.parametrize(("copied", "fires"), [(True, False), (False, True)])
def test_embeddings_in_blocks_that_were_copied_whole(copied: bool, fires: bool) -> None:
    build = Builder(steps=40)
    for tower, rms in (("user", 1.0), ("item", 1.2)):
        build.parameter(f"{tower}.embed.weight", module_type="Embedding", rms=rms)
        build.layer(f"{tower}.embed", "Embedding", weight=f"{tower}.embed.weight").linear(f"{tower}.head")
    same(build, "item.embed.weight", "user.embed.weight")
    assert bool(judged(same(build, "item.head.weight", "user.head.weight") if copied else build)) is fires
