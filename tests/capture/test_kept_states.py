"""States that are kept as references to the live weights: which uses are told, at which lines."""

from __future__ import annotations

import copy
import io
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from netdoctor.recording import Event
from tests.capture.observing import observing

KEPT, PUT_BACK = "kept state", "state put back"
State = dict[str, Any]


def through_a_file(state: State) -> State:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file)


class Run:
    def __init__(self, **options: Any) -> None:
        self.net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 1))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=0.01, **options)

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.net(torch.randn(8, 4)).square().mean().backward()
            self.optimizer.step()


def told(work: Callable[[Run], object], kind: str = KEPT, **options: Any) -> list[tuple[str, int, int]]:
    """(how it was used, the step at which it was taken, the step of its use)."""
    with observing() as observation:
        run = Run(**options)
        run.train(2)
        work(run)
        run.train(1)
        events: list[Event] = observation.recording.events
    return [(e.detail, int(e.value) if kind == KEPT else 0, e.step) for e in events if e.kind == kind]


def restored(keep: Callable[[State], State], between: int = 3) -> Callable[[Run], object]:
    def work(run: Run) -> None:
        kept = keep(run.net.state_dict())
        run.train(between)
        run.net.load_state_dict(kept)

    return work


REFERENCES: dict[str, Callable[[State], State]] = {
    "itself": lambda state: state,
    "dict": dict,
    "copy": copy.copy,
    "cpu": lambda state: {key: value.cpu() for key, value in state.items()},
    "detach": lambda state: {key: value.detach() for key, value in state.items()},
    "ordered": lambda state: type(state)((key, value) for key, value in state.items()),
}
COPIES: dict[str, Callable[[State], State]] = {
    "deepcopy": copy.deepcopy,
    "clone": lambda state: {key: value.clone() for key, value in state.items()},
    "file": through_a_file,
    "in part": lambda state: {**state, "0.weight": torch.zeros(6, 4)},
    "double": lambda state: {key: value.double() for key, value in state.items()},
}


@pytest.mark.parametrize("keep", REFERENCES.values(), ids=REFERENCES)
def test_a_reference_that_is_put_back_is_told(keep: Callable[[State], State]) -> None:
    assert told(restored(keep)) == [("load", 2, 5)]


def test_so_it_is_where_the_optimizer_counts_nothing() -> None:
    assert told(restored(lambda state: state), fused=True) == [("load", 2, 5)]


@pytest.mark.parametrize("keep", COPIES.values(), ids=COPIES)
def test_a_copy_is_not(keep: Callable[[State], State]) -> None:
    assert told(restored(keep)) == []
    assert told(restored(keep), PUT_BACK) == [("", 0, 5)]


def test_a_state_of_the_same_step_is_not() -> None:
    assert told(restored(lambda state: state, between=0)) == []
    assert told(restored(lambda state: state, between=0), PUT_BACK) == []


def test_a_state_of_another_model_that_no_step_changed_is_not() -> None:
    def work(run: Run) -> None:
        other = copy.deepcopy(run.net)
        state = other.state_dict()
        run.train(2)
        other.load_state_dict(state)

    assert told(work) == []


def test_a_swap_that_puts_nothing_back_is_told() -> None:
    def work(run: Run) -> None:
        average = copy.deepcopy(run.net)
        own = run.net.state_dict()
        run.net.load_state_dict(average.state_dict())
        run.net.load_state_dict(own)

    assert told(work) == [("swap", 2, 2)]


def test_what_is_saved_or_loaded_elsewhere_later_is_told() -> None:
    def save(run: Run) -> None:
        checkpoint = {"epoch": 1, "model": run.net.state_dict()}
        run.train(1)
        torch.save(checkpoint, io.BytesIO())

    def elsewhere(run: Run) -> None:
        kept, other = run.net.state_dict(), copy.deepcopy(run.net)
        run.train(1)
        other.load_state_dict(kept)

    assert told(save) == [("save", 2, 3)]
    assert told(elsewhere) == [("load elsewhere", 2, 3)]
    assert told(elsewhere, PUT_BACK) == []


def test_states_taken_in_every_step_push_none_out() -> None:
    def work(run: Run) -> None:
        kept = run.net.state_dict()
        for _ in range(100):
            run.net.state_dict()
        run.train(1)
        run.net.load_state_dict(kept)

    assert told(work) == [("load", 2, 3)]


def test_the_lines_of_both_are_known() -> None:
    with observing() as observation:
        run = Run()
        run.train(1)
        restored(lambda state: state)(run)
        events = observation.recording.events
    texts = [e.source.text for e in events if e.kind in (KEPT, "state taken") and e.source is not None]
    assert texts == ["kept = keep(run.net.state_dict())", "run.net.load_state_dict(kept)"]


def test_nothing_is_kept_alive() -> None:
    with observing():
        run = Run()
        state = run.net.state_dict()
        gone = weakref.ref(state["0.weight"])
        run.train(1)
        run.net.load_state_dict(state)
        del state
        assert gone() is None
