from __future__ import annotations

import math

import numpy as np
import pytest

from netdoctor.capture.data import column_facts
from netdoctor.checks.loss.initial_loss import InitialLoss
from netdoctor.data import TensorFacts
from netdoctor.finding import Finding
from netdoctor.recording import Kind, Stat
from tests.checks.builders import Builder, Curve
from tests.checks.data.facts import facts

CHANCE = math.log(10)


def classifier(loss: Curve, steps: int = 100) -> Builder:
    build = Builder(steps=steps).linear("head", units=10, line=7).optimizer("Adam", lr=1e-3).loss(loss)
    build.facts(loss_family="cross_entropy", loss_lower_bound=0.0, classes=10.0)
    logits = build.operation(
        "linear",
        build.value((32, 16)),
        build.weight("head.weight"),
        shape=(32, 10),
        module="head",
        module_type="Linear",
    )
    target = build.value((32,), "int64")
    return build.backward(build.operation("cross_entropy", logits, target, shape=(), reduction="mean"))


def slow(first: float, steps: int) -> Curve:
    """From `first` to just under chance within some steps."""
    return lambda step: CHANCE * (0.5 if step >= steps else first - (first - 1.1) * step / steps)


def judged(build: Builder) -> list[Finding]:
    return list(InitialLoss().judge(build.done()))


@pytest.mark.parametrize(("first", "fires"), [(2.4, False), (2.6, True)])
def test_the_limit_of_the_first_loss(first: float, fires: bool) -> None:
    assert bool(judged(classifier(slow(first, 30)))) is fires


@pytest.mark.parametrize(
    ("steps", "wasted", "fires"), [(40, 6, False), (40, 9, True), (200, 17, False), (200, 21, True)]
)
def test_the_steps_and_the_share_of_the_run(steps: int, wasted: int, fires: bool) -> None:
    assert bool(judged(classifier(slow(5.0, wasted), steps))) is fires


@pytest.mark.parametrize(("steps", "fires"), [(29, False), (30, True)])
def test_a_run_that_is_too_short(steps: int, fires: bool) -> None:
    assert bool(judged(classifier(5 * CHANCE, steps))) is fires


def test_it_names_the_output_layer() -> None:
    (finding,) = judged(classifier(slow(5.0, 30)))
    assert (finding.location.module, finding.location.line) == ("head", 7)
    assert finding.fixes[0].code == "with torch.no_grad():\n    model.head.weight.mul_(0.2)"


def test_silent_for_loaded_weights_and_for_losses_of_unknown_start() -> None:
    assert judged(classifier(slow(5.0, 30)).facts(pretrained=True)) == []
    assert judged(classifier(slow(5.0, 30)).loss(1.0, "another")) == []
    build = classifier(slow(5.0, 30))
    assert judged(build.backward(build.operation("mul", build.graph.loss))) == []
    assert judged(Builder(steps=100).loss(slow(5.0, 30))) == []


def regression(first: float, mean: float = 0.0) -> Builder:
    build = Builder(steps=100).linear("out", units=1).optimizer("Adam", lr=1e-3)
    build.loss(lambda step: first if step < 30 else 0.1).facts(loss_family="mse", loss_lower_bound=0.0)
    prediction = build.operation(
        "linear", build.value((32, 16)), build.weight("out.weight"), shape=(32, 1), module="out"
    )
    build.backward(build.operation("mse_loss", prediction, build.value((32, 1)), shape=(), reduction="mean"))
    rows = np.tile([[mean - 1.0], [mean + 1.0]], (50, 1))
    facts = TensorFacts(
        "mse_loss", (32, 1), "float32", np.arange(8), 100, mean, 1.0, False, column_facts(rows), "column", 1, ()
    )
    build.recording.targets = [facts]
    return build


@pytest.mark.parametrize(
    ("first", "mean", "fires"),
    [(2.4, 0.0, False), (2.6, 0.0, True), (2.6, 2.0, False), (24.0, 3.0, False), (26.0, 3.0, True)],
)
def test_a_squared_error_starts_at_the_mean_square_of_its_targets(first: float, mean: float, fires: bool) -> None:
    assert bool(judged(regression(first, mean))) is fires


def test_outputs_that_are_off_by_a_constant_get_another_bias() -> None:
    build = regression(400.0, mean=0.5).of_layer("out", Stat.MEAN, -20.0).of_layer("out", Stat.STD, 0.3)
    (finding,) = judged(build)
    assert finding.fixes[0].code == "torch.nn.init.constant_(model.out.bias, 0.5)"


def products(guess: float = 3.5, embedding: float = 1.0, first: float = 25.0) -> Builder:
    """Ratings around 3.5 with deviation 0.9, predicted by a product of embeddings and a mean that is known."""
    build = Builder(steps=100)
    rng = np.random.default_rng(0).standard_normal((400, 1))
    target = 3.5 + 0.9 * (rng - rng.mean()) / rng.std()
    for name in ("user", "item"):
        build.layer(name, "Embedding", kind=Kind.EMBEDDING, weight=f"{name}.weight")
        build.parameter(f"{name}.weight", (300, 24))
        build.of_parameter(f"{name}.weight", Stat.RMS, embedding)
    made = [
        build.operation("embedding", build.value((32,), "int64"), build.weight(f"{name}.weight"), module=name)
        for name in ("user", "item")
    ]
    product = build.operation("sum", build.operation("mul", *made), shape=(32,), out={"mean": guess})
    wanted = build.value((32,), low=1.0, high=5.0)
    build.backward(build.operation("mse_loss", product, wanted, shape=(), reduction="mean"))
    build.facts(loss_family="mse", loss_lower_bound=0.0).loss(first).optimizer("Adam", lr=1e-3)
    build.recording.targets = [facts(target, value=wanted)]
    return build


@pytest.mark.parametrize(
    ("guess", "first", "fires"),
    [
        (3.5, 2.1, True),  # its mean is right: what is beyond the variance of the targets is the scatter of the outputs
        (3.5, 2.0, False),
        (0.0, 25.0, False),  # a zero prediction gets 13: twice that may be a start
        (0.0, 33.0, True),
    ],
)
def test_a_regression_is_held_against_the_constant_that_it_starts_at(guess: float, first: float, fires: bool) -> None:
    assert bool(judged(products(guess, first=first))) is fires


@pytest.mark.parametrize(("embedding", "told"), [(1.0, True), (0.49, False)])
def test_large_embeddings_are_named_where_they_are_multiplied(embedding: float, told: bool) -> None:
    (finding,) = judged(products(embedding=embedding))
    lines = [f"torch.nn.init.normal_(model.{name}.weight, std=0.05)" for name in ("user", "item")]
    assert [fix.code for fix in finding.fixes] == (["\n".join(lines)] if told else [])


@pytest.mark.parametrize(("made", "fires"), [("cosine_similarity", False), ("linear", True)])
@pytest.mark.parametrize("scaled", [(), ("clamp",), ("mul", "add")])
def test_a_cosine_has_no_size_that_a_layer_could_start_with(made: str, fires: bool, scaled: tuple[str, ...]) -> None:
    build = Builder(steps=100).loss(lambda step: 0.5 if step >= 40 else 2.1)
    build.facts(loss_family="bce", loss_lower_bound=0.0)
    value = build.operation(made, build.weight("a", (32, 8)), build.value((32, 8)), shape=(32,))
    for name in scaled:
        value = build.operation(name, value, shape=(32,))
    build.backward(build.operation("binary_cross_entropy", value, build.value((32,)), shape=(), reduction="mean"))
    assert bool(judged(build)) is fires
