"""A softmax that is one-hot from the start: which it is, what the arms must show, and the line that mends it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from netdoctor.checks.units.saturated_activation import SaturatedActivation
from netdoctor.checks.units.score_scale import scores_of
from netdoctor.checks.units.sharp_softmax import AS_IT_IS, FIRST, LONG, SCALED, candidates, passed
from netdoctor.finding import Certainty, Finding, Severity, Verdict
from netdoctor.recording import Recording
from tests.checks.builders import Builder

N, D = 8, 64
LINE = 20
TEXT = "att = scores.softmax(dim=-1)"
PRODUCT = "scores = q @ k.transpose(-2, -1)"


def even(share: float) -> dict[str, Any]:
    """The output of a softmax over N keys that passes this share of an even one's gradient."""
    squares = 1 - share * (1 - 1 / N)
    return {"mean": 1 / N, "std": math.sqrt(squares / N - 1 / N**2)}


def attention(
    share: float = 0.2,
    factor: tuple[str, float, str] | None = None,
    masked: bool = False,
    noise: bool = False,
    reader: str = "",
    ends: str = "matmul",
    steps: int = 200,
    text: str = PRODUCT,
) -> Builder:
    """q @ k^T, a factor ("div", 0.01, the line), a mask, the softmax, and what reads it."""
    build = Builder(steps)
    x = build.value((4, N, D))
    q = build.operation("linear", x, build.weight("q.weight"), module="att.q")
    k = build.operation("linear", x, build.weight("k.weight"), module="att.k")
    inside: dict[str, Any] = {"module": "att"}
    turned = build.operation("transpose", k, shape=(4, D, N), **inside)
    scores = build.operation("matmul", q, turned, shape=(4, N, N), line=18, text=text, out={"std": 9.0}, **inside)
    if factor is not None:
        name, number, written = factor
        scores = build.operation(name, scores, line=19, text=written, out={"std": 9.0}, **inside, **{"1": number})
    if masked:
        scores = build.operation("masked_fill", scores, build.value((N, N), "bool"), line=19, **inside)
    if noise:
        even_draws = build.operation("rand_like", scores, **inside)
        scores = build.operation("sub", scores, build.operation("log", even_draws, **inside), line=19, **inside)
    weights = build.operation("softmax", scores, line=LINE, text=TEXT, out=even(share), dim=-1, **inside)
    if reader:
        build.operation(reader, weights, shape=(4, N), **inside)
    values = build.operation("linear", x, build.weight("v.weight"), module="att.v")
    read = build.operation(ends, weights, values, shape=(4, N, D), **inside)
    return build.backward(build.operation("mse_loss", read, build.value((4, N, D)), shape=()))


def course(start: float, end: float, steps: int) -> list[float]:
    return np.geomspace(start, end, steps).tolist()[: steps // 3] + [end] * (steps - steps // 3)


def tried(
    build: Builder, own: float = 0.5, scaled: float = 0.05, end: float = 0.5, steps: int = 120, sharp: bool = True
) -> Recording:
    """With arms that end there, and the loss of the whole run."""
    place = f"train.py:{LINE}"
    facts = {f"std {place}": 9.0, f"passed {place}": 0.2} if sharp else {}
    build.arm(FIRST, **facts).arm(AS_IT_IS, course(2.0, own, steps)).arm(SCALED, course(2.0, scaled, steps))
    return build.loss(course(2.0, end, len(build.every))).facts(loss_family="mse", loss_lower_bound=0.0).done()


def judged(recording: Recording) -> list[Finding]:
    return [item for item in SaturatedActivation().judge(recording) if isinstance(item, Finding)]


def only(recording: Recording) -> Finding:
    (found,) = judged(recording)
    return found


# --- which ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "is_one"), [(0.49, True), (0.51, False), (1.0, False)])
def test_half_of_an_even_softmaxs_gradient(share: float, is_one: bool) -> None:
    recording = attention(share).done()
    assert recording.graph is not None
    softmax = next(o for o in recording.graph.operations if o.name == "softmax")
    assert passed(recording.graph, softmax) == pytest.approx(share)
    assert bool(candidates(recording)) is is_one


@pytest.mark.parametrize("reader", ["argmax", "topk", "max", "multinomial"])
def test_a_choice_is_hard_by_intent(reader: str) -> None:
    assert candidates(attention(reader=reader).done()) == []


def test_gumbel_noise_is_hard_by_intent() -> None:
    assert candidates(attention(noise=True).done()) == []


def test_the_softmax_of_the_output_is_none() -> None:
    """No layer and no product reads it: it goes to the loss."""
    assert candidates(attention(ends="mul").done()) == []


def test_a_graph_of_a_later_step_says_nothing_of_the_start() -> None:
    recording = attention().done()
    assert recording.graph is not None
    recording.graph.step = 5
    assert candidates(recording) == []


# --- what the arms must show -----------------------------------------------------------------------------------------------


def test_a_training_that_works_and_would_work_far_better() -> None:
    found = only(tried(attention()))
    assert (found.severity, found.certainty) == (Severity.WARNING, Certainty.PROVEN)
    assert found.fixes[0].trial is not None
    assert found.fixes[0].trial.verdict is Verdict.CURED
    assert found.location.module == "att"
    assert found.location.line == 18


@pytest.mark.parametrize(("scaled", "fires"), [(0.24, True), (0.26, False), (0.5, False), (1.0, False)])
def test_at_most_half_is_left(scaled: float, fires: bool) -> None:
    assert bool(judged(tried(attention(), own=0.5, scaled=scaled))) is fires


@pytest.mark.parametrize(("end", "fires"), [(0.14, False), (0.16, True)])
def test_the_whole_run_must_not_get_there_by_itself(end: float, fires: bool) -> None:
    """A slower start of a training that ends well is no fault."""
    assert bool(judged(tried(attention(), own=0.5, scaled=0.1, end=end))) is fires


@pytest.mark.parametrize(("scaled", "fires"), [(1.19, True), (1.21, False)])
def test_twice_the_fall_where_most_of_the_loss_cannot_be_learned(scaled: float, fires: bool) -> None:
    assert bool(judged(tried(attention(), own=1.6, scaled=scaled, end=1.6))) is fires


@pytest.mark.parametrize(("steps", "fires"), [(LONG - 1, False), (LONG, True)])
def test_long_enough(steps: int, fires: bool) -> None:
    assert bool(judged(tried(attention(), steps=steps))) is fires


@pytest.mark.parametrize(("scaled", "fires"), [(1.65, True), (1.75, False)])
def test_a_training_that_is_hurt_needs_less(scaled: float, fires: bool) -> None:
    found = judged(tried(attention(), own=1.99, scaled=scaled, end=2.0))
    assert [f.severity for f in found] == ([Severity.ERROR] if fires else [])


def test_masked_keys_that_explain_it() -> None:
    assert judged(tried(attention(), sharp=False)) == []


def test_a_broken_arm_shows_nothing() -> None:
    assert judged(tried(attention(), scaled=math.nan)) == []


@pytest.mark.parametrize("fact", ["moving_target", "several_optimizers"])
def test_losses_that_need_not_fall(fact: str) -> None:
    recording = tried(attention())
    recording.facts[fact] = True
    assert judged(recording) == []


@pytest.mark.parametrize(("end", "masked", "fires"), [(2.0, False, True), (2.0, True, False), (0.5, False, False)])
def test_without_a_copy_only_a_hurt_training_and_no_mask(end: float, masked: bool, fires: bool) -> None:
    recording = attention(masked=masked).loss(course(2.0, end, 200)).facts(loss_lower_bound=0.0).done()
    found = judged(recording)
    assert [(f.severity, f.certainty) for f in found] == ([(Severity.ERROR, Certainty.MEASURED)] if fires else [])


def test_a_mask_that_was_left_out_when_it_was_measured() -> None:
    """Steps are so slow that only the first one was looked at."""
    build = attention(masked=True).loss(2.0).facts(loss_lower_bound=0.0)
    assert judged(build.arm(FIRST, **{f"std train.py:{LINE}": 9.0, f"passed train.py:{LINE}": 0.2}).done())


# --- the line --------------------------------------------------------------------------------------------------------------


def code(**given: Any) -> str:
    return only(tried(attention(**given))).fixes[0].code


@pytest.mark.parametrize(
    ("text", "mended"),
    [
        (PRODUCT, "scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])"),
        ("s = torch.bmm(q, k.mT)", "s = torch.bmm(q, k.mT) / math.sqrt(q.shape[-1])"),
        ("s = torch.einsum('bid,bjd->bij', q, k)", "s = torch.einsum('bid,bjd->bij', q, k) / math.sqrt(q.shape[-1])"),
        ("a = (self.q(x) @ self.k(x).mT).softmax(-1) @ v", "a = (self.q(x) @ self.k(x).mT / math.sqrt(64)).softmax(-1) @ v"),
        ("a = torch.bmm(q, k.mT).softmax(-1)", "a = (torch.bmm(q, k.mT) / math.sqrt(q.shape[-1])).softmax(-1)"),
        ("s = dots(q, k)", "scores = q @ k.transpose(-2, -1) / math.sqrt(64)"),
    ],
)  # fmt: skip
def test_a_product_without_its_scale(text: str, mended: str) -> None:
    assert code(text=text) == mended


@pytest.mark.parametrize(
    ("factor", "mended"),
    [
        (("div", D**-0.5, "s = q @ k.mT / self.scale"), "s = q @ k.mT * self.scale"),
        (("div", D**-0.5, "s = (q @ k.mT) / (d ** -0.5)"), "s = (q @ k.mT) * (d ** -0.5)"),
        (("mul", D**0.5, "s = s * self.scale"), "s = s / self.scale"),
        (("mul", D**0.5, "s = self.scale * s"), "scores = q @ k.transpose(-2, -1) / math.sqrt(64)"),
        (("div", 0.01, "s = q @ k.mT / self.tau"), "s = q @ k.mT / 0.09"),
        (("mul", 50.0, "s = s * self.temp"), "s = s * 5.6"),
        (("div", 8.0, "s = s / math.sqrt(d)"), "att = (scores / 9).softmax(dim=-1)"),
    ],
)
def test_a_factor_that_is_wrong(factor: tuple[str, float, str], mended: str) -> None:
    assert code(factor=factor) == mended


@pytest.mark.parametrize(
    ("factor", "kind"),
    [
        (None, "unscaled"),
        (("div", D**0.5, ""), "large"),
        (("div", D**-0.5, ""), "inverted"),
        (("mul", D**0.5, ""), "inverted"),
        (("mul", 20.0, ""), "temperature"),
        (("div", 1.0, ""), "unscaled"),
    ],
)
def test_causes(factor: tuple[str, float, str] | None, kind: str) -> None:
    recording = attention(factor=factor).done()
    assert recording.graph is not None
    softmax = next(o for o in recording.graph.operations if o.name == "softmax")
    assert scores_of(recording.graph, softmax).kind == kind
