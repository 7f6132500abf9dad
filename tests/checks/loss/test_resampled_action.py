"""The weight of a log-probability that knows nothing of what was drawn, and all that may know it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.loss.resampled_action import ResampledAction
from netdoctor.finding import Severity
from netdoctor.graph import Draw, Operation
from tests.checks.builders import Builder

SPREAD = {"low": -1.0, "high": 2.0, "mean": 0.0, "std": 1.0}
LEVELS = {"low": 0.0, "high": 0.5, "mean": 0.2, "std": 0.06**0.5}  # 0 and 0.5, as a mask that is divided by its sum
FRESH = "log_probs.append(dist.log_prob(dist.sample()))"


class Loop(Builder):
    """An observation, a policy, one action that is carried out by numpy, another one whose log-probability is weighed."""

    def __init__(self, carried: bool = True, text: str = FRESH) -> None:
        super().__init__(1)
        self.text = text
        self.seen = self.value((8, 3))
        self.logits = self.operation(
            "linear", self.seen, self.weight("policy.weight", (2, 3)), shape=(8, 2), module="policy"
        )
        self.probs = self.operation("softmax", self.logits, grad_enabled=False)
        self.draws: list[Draw] = []
        if carried:
            action = self.draw(4, "action = dist.sample()")
            self.draws.append(Draw(action))
            self.leave("numpy", action)

    def draw(self, line: int, text: str = "", **out) -> int:
        return self.operation(
            "multinomial", self.probs, shape=(8,), dtype="int64", grad_enabled=False, line=line, text=text
        )

    def leave(self, name: str, value: int) -> None:
        self.graph.operations.append(Operation(len(self.graph.operations), name, "", "", (value,), ()))

    def log_prob(self, drawn: int, *others: int) -> int:
        table = self.operation("log_softmax", self.logits)
        made = self.operation("gather", table, drawn, shape=(8,), line=5, text=self.text, out={"requires_grad": True})
        self.draws.append(Draw(drawn, (made,)))
        return made

    def judged(self, loss: int) -> list:
        self.backward(loss)
        self.graph.draws = tuple(self.draws)
        return list(ResampledAction().judge(self.done()))

    def loss(self, log_prob: int, weight: int) -> int:
        return self.operation("neg", self.operation("mean", self.operation("mul", log_prob, weight), shape=()))


def loop_with(weight: dict, carried: bool = True, **given) -> list:
    """Whose weight comes from out of sight, after the draw."""
    loop = Loop(carried, **given)
    log_prob = loop.log_prob(loop.draw(5, loop.text))
    return loop.judged(loop.loss(log_prob, loop.value((8,), **weight)))


def test_another_action_was_carried_out():
    (found,) = loop_with(SPREAD)
    assert found.severity is Severity.ERROR
    assert (found.location.line, found.location.operation) == (5, "log_prob")
    assert (
        "drawn anew (line 5), and is not the one that was carried out (line 4): nothing else reads it"
        in found.explanation
    )
    assert "exactly 0" in found.explanation
    assert found.fixes[0].code == "log_probs.append(dist.log_prob(action))"
    assert found.evidence[0].measured == 1


@pytest.mark.parametrize(
    "weight",
    [
        {**SPREAD, "std": 0.0, "low": 1.0, "high": 1.0, "mean": 1.0},  # the same for all
        {"low": 0.0, "high": 1.0, "mean": 0.75, "std": 0.1875**0.5},  # a mask
        LEVELS,
    ],
)
def test_a_weight_that_does_not_differ_is_none(weight):
    assert loop_with(weight) == []


def test_a_weight_just_off_two_levels_is_one():
    assert len(loop_with({**LEVELS, "std": LEVELS["std"] * 0.99})) == 1


def test_nothing_that_was_carried_out_is_known():
    assert loop_with(SPREAD, carried=False) == []


def test_numbers_that_differ_from_term_to_term_are_weights():
    def judged(second: float, carried: bool = True, read: bool = False) -> list:
        loop = Loop(carried)
        terms = []
        for weight in (0.5, second):
            drawn = loop.draw(5)
            log_prob = loop.log_prob(drawn)
            if read:
                loop.leave("numpy", drawn)
            terms.append(loop.operation("mul", log_prob, **{"1": weight}))
        return loop.judged(loop.operation("sum", loop.operation("stack", *terms, shape=(2, 8)), shape=()))

    assert judged(0.5) == []
    assert [found.evidence[0].measured for found in judged(0.7)] == [2]
    assert judged(0.7, carried=False) == []  # when such a number came to be is not known
    assert judged(0.7, read=True) == []


def before(make) -> list:
    """Nothing is known of what was carried out; `make` gives the weight of a loop in which it was there before the draw."""
    loop = Loop(carried=False, text="logp = dist.log_prob(policy.act(x))")
    early = loop.operation("sub", loop.value((8,)), loop.value(()), out=SPREAD)
    log_prob = loop.log_prob(loop.draw(5))
    return loop.judged(loop.loss(log_prob, make(loop, early)))


def test_the_weight_was_there_before_the_draw():
    (found,) = before(lambda loop, early: early)
    assert "(line 5): its weight was computed before it was drawn" in found.explanation
    assert found.fixes[0].code.startswith("logp = dist.log_prob(actions)  # ")
    assert (
        len(before(lambda loop, early: loop.operation("mul", early, early, out=SPREAD))) == 1
    )  # computed later, of it


def changed(field: str):
    def make(loop: Loop, early: int) -> int:
        setattr(loop.graph, field, (early,))
        return early

    return make


@pytest.mark.parametrize(
    "make",
    [
        lambda loop, early: loop.operation("add", early, loop.value((8,)), out=SPREAD),  # what came in later
        lambda loop, early: loop.operation("tensor", shape=(8,), out=SPREAD),
        changed("rewritten"),
        changed("taken"),
        lambda loop, early: (loop.leave("numpy", early), early)[1],  # whose memory is numpy's, too
        lambda loop, early: (loop.leave("numpy", loop.operation("getitem", early)), early)[1],
    ],
)
def test_the_weight_may_have_changed_since(make):
    assert before(make) == []


def test_a_tensor_on_the_memory_of_another_library_is_as_young_as_that():
    loop = Loop(carried=False)
    shared = loop.operation("as_tensor", shape=(8,), out=SPREAD)
    assert loop.judged(loop.loss(loop.log_prob(loop.draw(5)), shared)) == []


def read(use) -> list:
    loop = Loop()
    drawn = loop.draw(5)
    log_prob = loop.log_prob(drawn)
    weight = loop.value((8,), **SPREAD)
    return loop.judged(loop.loss(log_prob, use(loop, drawn, log_prob) or weight))


@pytest.mark.parametrize(
    "use",
    [
        lambda loop, drawn, log_prob: loop.leave("numpy", drawn),
        lambda loop, drawn, log_prob: loop.leave("item", loop.operation("eq", drawn)),
        lambda loop, drawn, log_prob: loop.leave(
            "item", loop.operation("mean", log_prob)
        ),  # it is not behind the loss:
        lambda loop, drawn, log_prob: setattr(loop.graph, "taken", (drawn,)),
        lambda loop, drawn, log_prob: loop.operation(
            "where", drawn, shape=(8,), dtype="float32", out=SPREAD
        ),  # a reward
        lambda loop, drawn, log_prob: loop.operation("detach", log_prob, out=SPREAD),
    ],
)
def test_the_draw_is_read(use):
    assert read(use) == []


def test_what_is_read_after_the_loss_cannot_be_in_it():
    loop = Loop()
    drawn = loop.draw(5)
    log_prob = loop.log_prob(drawn)
    loss = loop.loss(log_prob, loop.value((8,), **SPREAD))
    loop.leave("numpy", drawn)
    loop.leave("item", loss)
    assert len(loop.judged(loss)) == 1


def test_one_of_the_draws_of_a_line_is_read():
    loop = Loop()
    terms = []
    for first in (True, False):
        drawn = loop.draw(5)
        if not first:
            loop.leave("tolist", drawn)
        terms.append(loop.operation("mul", loop.log_prob(drawn), loop.value((8,), **SPREAD)))
    assert loop.judged(loop.operation("sum", loop.operation("stack", *terms, shape=(2, 8)), shape=())) == []


def surrogate(difference: bool) -> list:
    loop = Loop()
    log_prob = loop.log_prob(loop.draw(5))
    old = loop.operation("sub", log_prob, loop.value((8,))) if difference else log_prob
    ratio = loop.operation("exp", old)
    clipped = loop.operation("clamp", ratio)
    weight = loop.value((8,), **SPREAD)
    both = (loop.operation("mul", ratio, weight), loop.operation("mul", clipped, weight))
    return loop.judged(loop.operation("neg", loop.operation("mean", loop.operation("min", *both), shape=())))


def test_a_clipped_surrogate():
    (found,) = surrogate(difference=True)
    assert "The ratio compares two different actions" in found.explanation
    assert surrogate(difference=False) == []  # probabilities


def test_a_loss_that_is_not_linear():
    loop = Loop()
    log_prob = loop.log_prob(loop.draw(5))
    assert loop.judged(loop.loss(loop.operation("square", log_prob), loop.value((8,), **SPREAD))) == []


def test_the_best_action_was_carried_out():
    loop = Loop(carried=False)
    loop.leave(
        "item", loop.operation("argmax", loop.probs, shape=(8,), dtype="int64", line=4, text="a = probs.argmax(1)")
    )
    (found,) = loop.judged(loop.loss(loop.log_prob(loop.draw(5, FRESH)), loop.value((8,), **SPREAD)))
    assert found.fixes[0].code == "log_probs.append(dist.log_prob(a))"


def test_another_draw_for_something_else_is_no_sign():
    loop = Loop(carried=False)
    other = loop.operation(
        "linear", loop.value((8, 3)), loop.weight("other.weight", (2, 3)), shape=(8, 2), module="other"
    )
    away = loop.operation("multinomial", other, shape=(8,), dtype="int64", grad_enabled=False, line=3)
    loop.draws.append(Draw(away))
    loop.leave("numpy", away)
    assert loop.judged(loop.loss(loop.log_prob(loop.draw(5)), loop.value((8,), **SPREAD))) == []


def test_what_was_stored_is_mended_where_it_is_drawn():
    loop = Loop(text="logp = dist.log_prob(torch.stack(actions))")
    drawn = loop.draw(3, "actions.append(dist.sample())")
    (found,) = loop.judged(loop.loss(loop.log_prob(drawn), loop.value((8,), **SPREAD)))
    assert found.fixes[0].code == "actions.append(action)"


def test_no_loss():
    loop = Loop()
    loop.log_prob(loop.draw(5))
    loop.graph.draws = tuple(loop.draws)
    assert list(ResampledAction().judge(loop.done())) == []
    assert replace(loop.graph).draws == loop.graph.draws
