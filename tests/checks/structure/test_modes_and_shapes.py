"""eval-mode-in-training, frozen-by-mistake, missing-nonlinearity and wrong-reshape."""

from __future__ import annotations

from itertools import pairwise

import pytest

from netdoctor.checks.structure.eval_mode_in_training import EvalModeInTraining
from netdoctor.checks.structure.frozen_by_mistake import FrozenByMistake
from netdoctor.checks.structure.missing_nonlinearity import MissingNonlinearity
from netdoctor.checks.structure.wrong_reshape import WrongReshape
from netdoctor.finding import Severity
from netdoctor.recording import Event
from tests.checks.structure.models import BATCH, Model, judged


def modes(evaluated: float, trained: float = 0.0, layer: str = "dropout", **options) -> Model:
    build = Model().layers("body").stepping()
    build.facts(eval_mode_passes=evaluated, train_mode_passes=trained, eval_mode_from=10.0, eval_mode_module="net")
    build.event(10, "mode", "eval", line=30)
    hidden = build.run(build.value((BATCH, 16)), "body")
    return build.compare(build.operation(layer, hidden, module="drop", **options))


@pytest.mark.parametrize(
    ("evaluated", "trained", "fires"), [(4, 0, True), (3, 0, False), (6, 4, True), (5, 4, False), (0, 40, False)]
)
def test_passes_in_evaluation_mode(evaluated, trained, fires):
    found = judged(EvalModeInTraining(), modes(evaluated, trained, p=0.5))
    assert [(f.first_step, f.location.line, f.fixes[0].code) for f in found] == (
        [(10, 30, "net.train()")] if fires else []
    )


@pytest.mark.parametrize(
    ("layer", "options", "fires"),
    [
        ("batch_norm", {"training": False}, True),
        ("dropout", {"p": 0.0}, False),
        ("layer_norm", {}, False),
        ("relu", {}, False),
    ],
)
def test_only_layers_that_have_a_mode_matter(layer, options, fires):
    assert bool(judged(EvalModeInTraining(), modes(40, layer=layer, **options))) is fires


def frozen(share: float, losses: float = 2.3, **facts) -> Model:
    build = Model().loss(losses).facts(loss_family="mse", loss_lower_bound=0.0, **facts)
    size = round(1000 * share)
    build.parameter("body.weight", (size, 1), requires_grad=False, optimizer=None)
    build.parameter("head.weight", (1000 - size, 1))
    return build.stepping()


@pytest.mark.parametrize(("share", "fires"), [(0.9, True), (0.899, False)])
def test_nearly_everything_is_frozen(share, fires):
    assert [f.severity for f in judged(FrozenByMistake(), frozen(share))] == ([Severity.WARNING] if fires else [])


@pytest.mark.parametrize("build", [frozen(0.99, pretrained=True), frozen(0.99, losses=lambda at: 2.3 * 0.9**at)])
def test_fine_tuning_is_meant(build):
    assert judged(FrozenByMistake(), build) == []


def test_zeros_that_cannot_change_are_frozen_by_mistake_however_well_it_trains():
    build = frozen(0.5, losses=lambda at: 2.3 * 0.9**at, frozen_zeros="body.weight")
    (finding,) = judged(FrozenByMistake(), build)
    assert finding.severity is Severity.WARNING
    assert finding.fixes[0].code == "model.body.weight.requires_grad_(True)"


def chain(*sizes: int, between: str = "", names=("net.0", "net.1", "net.2", "net.3"), act: bool = True) -> Model:
    """Linear layers of these sizes in a row; an activation at the end when `act`."""
    build = Model().loss(lambda at: 2.3 * 0.9**at)
    value = build.value((BATCH, sizes[0]))
    for name, (given, made) in zip(names, pairwise(sizes), strict=False):
        weight = build.weight(f"{name}.weight", (made, given))
        value = build.run(value, name, (BATCH, made), weight=weight)
        value = build.operation(between, value, module="between") if between else value
    return build.compare(build.operation("relu", value, module="act") if act else value)


@pytest.mark.parametrize(
    ("build", "severity"),
    [
        (chain(8, 32, 32, 4), Severity.WARNING),  # two pairs
        (chain(8, 32, 4), Severity.ADVICE),  # one, in a training that learns
        (chain(8, 32, 4).loss(2.3), Severity.WARNING),
        (chain(8, 32, 4, act=False), Severity.WARNING),  # a linear model
        (chain(8, 32, 4, between="dropout", act=False), Severity.WARNING),
    ],
)
def test_linear_layers_in_a_row(build, severity):
    assert [f.severity for f in judged(MissingNonlinearity(), build)] == [severity]


@pytest.mark.parametrize(
    "build",
    [
        chain(8, 32, 4, between="relu"),
        chain(8, 32, 4, between="layer_norm"),
        chain(32, 4, 32),  # a factorisation: the middle is narrower
        chain(8, 32, 4, names=("body", "top.head")),  # a head on another part
    ],
)
def test_layers_that_may_follow_each_other(build):
    assert judged(MissingNonlinearity(), build) == []


def test_three_readers_of_one_layer_are_queries_keys_and_values():
    build = Model().loss(2.3)
    hidden = build.run(build.value((BATCH, 16)), "net.0")
    query, key = build.run(hidden, "net.1"), build.run(hidden, "net.2")
    build.compare(build.operation("mul", query, key))
    assert judged(MissingNonlinearity(), build) == []


def of_matrices(*pairs: str, used: str = "", loss: float = 0.1) -> Model:
    """A training that learns, whose autograd graph has these pairs of matrices."""
    build = Model().loss(lambda step: 2.3 * 0.9**step + loss).stepping()
    value = build.value((BATCH, 16))
    build.recording.events += [Event(0, "linear pair", "\n".join(pair)) for pair in pairs]
    if used:
        value = build.operation("matmul", value, build.weight(used), module="net")
    return build.compare(build.operation("tanh", value))


@pytest.mark.parametrize(
    ("pairs", "used", "severities"),
    [
        ((), "", []),
        (("ab",), "", [Severity.ADVICE]),
        (("ab", "bc"), "", [Severity.WARNING]),
        (("ab", "bc"), "b", []),  # seen in a module: judged by its operations
        (("ab", "bc"), "c", [Severity.ADVICE]),
    ],
)
def test_matrices_that_no_module_was_seen_to_use(pairs, used, severities):
    found = judged(MissingNonlinearity(), of_matrices(*pairs, used=used))
    assert [finding.severity for finding in found] == severities
    for finding in found:
        assert finding.title.startswith("no activation between the products with a and b")


def reshaped(given: tuple[int, ...], made: tuple[int, ...], name: str = "view", text: str = "") -> Model:
    build = Model().layers("body").stepping()
    value = build.operation(name, build.value(given), shape=made, line=6, text=text)
    return build.compare(build.run(value, "body"))


@pytest.mark.parametrize(
    ("given", "made", "severity"),
    [((32, 6, 4), (6, 32, 4), Severity.ERROR), ((32, 6, 4), (32, 4, 6), Severity.WARNING)],
)
def test_swapped_sizes(given, made, severity):
    build = reshaped(given, made, text="x = x.view(6, x.size(0), -1)")
    (found,) = judged(WrongReshape(), build)
    axes = "0, 1" if severity is Severity.ERROR else "1, 2"
    assert (found.severity, found.fixes[0].code) == (severity, f"x = x.transpose({axes})")


@pytest.mark.parametrize(
    ("given", "made", "name"),
    [
        ((32, 6, 4), (6, 32, 4), "transpose"),
        ((32, 6, 4), (6, 32, 4), "permute"),
        ((32, 6, 4), (192, 4), "view"),
        ((192, 4), (32, 6, 4), "view"),
        ((32, 6, 8), (32, 6, 2, 4), "view"),  # heads
        ((32, 32, 4), (32, 32, 4), "reshape"),
        ((32, 1, 4), (1, 32, 4), "view"),  # an axis of one moves nothing
        ((32, 6), (6, 32), "view"),
    ],
)
def test_other_shapes_are_left_alone(given, made, name):
    assert judged(WrongReshape(), reshaped(given, made, name)) == []
