"""What the fixes of this room must keep: names without holding variables, custom functions under any name, threads, copies."""

from __future__ import annotations

import gc
import sys
import weakref

import pytest
import torch
from torch import nn

from netdoctor.capture.naming import MOST_ROOTS
from netdoctor.capture.source import holder_name, variable_name
from tests.capture.observing import assert_replays, observing, seed
from tests.capture.test_origin import BadBackward, fit, model_with, origin_of
from tests.reliability.hazards import Scale, scale


def named(_thing: object) -> str:
    return variable_name(_thing)


def test_the_name_of_a_variable_of_a_function() -> None:
    wanted = nn.Linear(1, 1)
    assert named(wanted) == "wanted"


def test_locals_that_the_user_holds_are_left_alone() -> None:
    wanted, other = nn.Linear(1, 1), 3
    mine = locals()
    assert named(wanted) == "wanted"
    assert mine["other"] == other
    assert mine["wanted"] is wanted


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="locals() is a snapshot there")
def test_what_the_user_put_into_locals_stays() -> None:
    wanted = nn.Linear(1, 1)
    locals()["extra"] = 1
    assert named(wanted) == "wanted"
    assert locals()["extra"] == 1


def test_a_variable_that_was_asked_for_may_go() -> None:
    wanted = nn.Linear(1, 1)
    alive = weakref.ref(wanted)
    assert named(wanted) == "wanted"
    del wanted
    gc.collect()
    assert alive() is None


class Holder:
    def __init__(self) -> None:
        self.W = torch.ones(2)


@pytest.mark.parametrize(
    ("held", "get", "name"),
    [
        ([Holder(), Holder()], lambda held: held[1].W, "held[1].W"),
        ({"layers": {"last": Holder()}}, lambda held: held["layers"]["last"].W, "held['layers']['last'].W"),
        ({"deep": [[[Holder()]]]}, lambda held: held["deep"][0][0][0].W, ""),
    ],
)
def test_how_a_loose_weight_is_reached(held: object, get, name: str) -> None:
    assert reached(get(held)) == name


def reached(_thing: object) -> str:
    return holder_name(_thing)


@pytest.mark.parametrize("apply", [Scale.apply, scale])
def test_a_custom_function_in_the_loss_replays_under_any_name(apply: object) -> None:
    def train(log) -> None:
        model = nn.Linear(5, 3)
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(2):
            optimizer.zero_grad()
            log.backward(apply(model(torch.randn(4, 5))).square().mean())
            optimizer.step()

    assert_replays(train, 2)


bad_backward = BadBackward.apply


def test_a_custom_function_kept_under_another_name_is_blamed_for_its_backward() -> None:
    found = origin_of(lambda: fit(model_with(lambda x: bad_backward(x))))
    assert (found.phase, found.operation, found.module) == ("backward", "BadBackward.apply", "1")


def test_an_infinity_of_the_input_is_traced_through_layers_that_squash_it() -> None:
    def inputs(step):
        x = torch.randn(6, 5)
        if step == 1:
            x[2, 1] = float("inf")
        return x

    model = nn.Sequential(nn.Linear(5, 4), nn.Sigmoid(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    found = origin_of(lambda: fit(model, inputs=inputs))
    assert (found.phase, found.step, found.samples, found.columns) == ("input", 1, (2,), (1,))


def test_a_mask_is_not_blamed_for_the_backward_behind_it() -> None:
    """Infinities that were filled in on purpose: the operation that cannot take them is named, not the mask."""

    def work(x):
        masked = x + torch.where(torch.eye(*x.shape, dtype=torch.bool), -float("inf"), 0.0)
        return torch.where(masked.isinf(), torch.zeros_like(x), masked.square().sqrt())

    found = origin_of(lambda: fit(model_with(work)))
    assert found.phase == "backward"
    assert found.operation in ("square", "sqrt", "where")


def test_copies_made_in_every_step_do_not_pile_up() -> None:
    import copy

    seed()
    with observing() as observation:
        model, x = nn.Linear(5, 3), torch.randn(4, 5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3 * MOST_ROOTS):
            optimizer.zero_grad()
            (copy.deepcopy(model)(x).detach() - model(x)).square().mean().backward()
            optimizer.step()
    assert len(observation.observer.names.roots) <= MOST_ROOTS + 1


def test_predictions_that_are_kept_with_their_graph_are_followed() -> None:
    """Old results without a graph become constants; those with one still lead to a loss."""
    seed()
    with observing() as observation:
        model = nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        first = model(torch.randn(4, 5))
        kept = []
        with torch.no_grad():
            for _ in range(600):
                kept.append(model(torch.randn(2, 5)))
        (first.square().mean() + kept[0].sum() * 0).backward()
        optimizer.step()
    step = observation.step
    assert step.lost == ""
    assert len(step.iterations[0].backwards[0].entries) >= 2
