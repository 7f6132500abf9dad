"""`module.requires_grad = ...`: seen while we observe, and the same for the user in every way with and without us."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.capture.observing import observing


class Own(nn.Module):
    requires_grad = True


class Configured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad = False
        self.inner = nn.Linear(2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Plain:
    requires_grad = "mixed in"


class Property:
    @property
    def requires_grad(self) -> str:
        return f"property {self._value}"  # type: ignore[attr-defined]

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self._value = value


class MixedPlain(nn.Linear, Plain):
    pass


class MixedProperty(nn.Linear, Property):
    pass


class Answering(nn.Linear):
    def __getattr__(self, name: str) -> Any:
        return "answered" if name == "requires_grad" else super().__getattr__(name)


KINDS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(2, 2),
    "gru": lambda: nn.GRU(2, 2),
    "class attribute": Own,
    "in its constructor": Configured,
    "plain mixin": lambda: MixedPlain(2, 2),
    "property mixin": lambda: MixedProperty(2, 2),
    "own __getattr__": lambda: Answering(2, 2),
}


def read(module: nn.Module) -> Any:
    try:
        return hasattr(module, "requires_grad"), module.requires_grad
    except AttributeError as error:
        return str(error)


def about(module: nn.Module) -> list[Any]:
    """All that can be asked of a module with regard to the attribute."""
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    twin, again = copy.deepcopy(module), pickle.loads(pickle.dumps(module))
    names = [sorted(k for k in vars(m) if not k.startswith("_flat")) for m in (module, twin, again)]
    listed = [dir(module).count("requires_grad"), hasattr(type(module), "requires_grad")]
    return [
        read(module),
        read(twin),
        read(again),
        vars(module).get("requires_grad"),
        names,
        list(module.state_dict()),
        listed,
    ]


def story(make: Callable[[], nn.Module]) -> list[Any]:
    torch.manual_seed(0)
    module, told = make(), []
    told.append(about(module))
    for value in (True, False, "text"):
        module.requires_grad = value
        told.append(about(module))
    try:
        del module.requires_grad
    except AttributeError as error:
        told.append(str(error))
    told.append(read(module))
    try:
        del module.requires_grad
    except AttributeError as error:
        told.append(type(error))
    return told


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_for_the_user(kind: str) -> None:
    plain = story(KINDS[kind])
    with observing():
        observed = story(KINDS[kind])
        with observing():
            twice = story(KINDS[kind])
    assert observed == twice == plain


def test_the_descriptor_is_gone_and_values_stay() -> None:
    before = nn.Linear(2, 2)
    before.requires_grad = True
    with observing(), observing():
        assert before.requires_grad is True
        assert not hasattr(nn.Module, "requires_grad")
        during = nn.Linear(2, 2)
        during.requires_grad = False
    assert "requires_grad" not in vars(nn.Module)
    assert (before.requires_grad, during.requires_grad) == (True, False)
    assert not hasattr(nn.Linear(2, 2), "requires_grad")


def test_a_parameter_or_buffer_of_that_name_is_torchs_own_affair() -> None:
    with observing():
        module = nn.Module()
        module.requires_grad = nn.Parameter(torch.ones(1))
        assert list(module.state_dict()) == ["requires_grad"]
        assert module.requires_grad is module._parameters["requires_grad"]


@pytest.mark.filterwarnings("ignore:.torch.jit.script.:DeprecationWarning")
def test_scripted_modules() -> None:
    with observing(faultless=False) as observation:
        scripted = torch.jit.script(nn.Linear(2, 2))
        assert not hasattr(scripted, "requires_grad")
        assert scripted(torch.ones(1, 2)).shape == (1, 2)
    assert "module flag" not in {fault.where for fault in observation.observer.containment.faults}


def test_a_fault_of_ours_does_not_reach_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    with observing(faultless=False) as observation:
        module = nn.Linear(2, 2)
        monkeypatch.setattr(nn.Module, "parameters", lambda self: 1 / 0)
        module.requires_grad = False
        monkeypatch.undo()
        assert vars(module)["requires_grad"] is False
    assert "module flag" in {fault.where for fault in observation.observer.containment.faults}


# --- what is recorded ------------------------------------------------------------------------------------------------


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 3) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 3)).square().mean().backward()
        optimizer.step()


def recorded(between: Callable[[nn.Sequential], None]) -> list[tuple[int, str, float, str]]:
    with observing() as observation:
        net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1))
        net[0].requires_grad_(False)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        train(net, optimizer)
        between(net)
        train(net, optimizer)
    found = [event for event in observation.recording.events if event.kind == "module requires_grad"]
    return [(e.step, e.detail, e.value, e.source.text if e.source else "") for e in found]


def test_true_on_what_is_frozen() -> None:
    def between(net: nn.Sequential) -> None:
        net[0].requires_grad = True

    assert recorded(between) == [(3, "0", 1.0, "net[0].requires_grad = True")]


def test_false_on_what_trains() -> None:
    def between(net: nn.Sequential) -> None:
        net[2].requires_grad = False

    assert recorded(between) == [(3, "2", 0.0, "net[2].requires_grad = False")]


def test_silent_where_it_asks_for_nothing_or_the_method_follows() -> None:
    def between(net: nn.Sequential) -> None:
        net[2].requires_grad = True  # it trains
        net[0].requires_grad = False  # it is frozen
        net[1].requires_grad = False  # it has no parameters
        net.requires_grad = True
        net.requires_grad_(True)

    assert recorded(between) == []


def test_silent_where_the_attribute_is_read() -> None:
    def between(net: nn.Sequential) -> None:
        net[2].requires_grad = False
        assert net[2].requires_grad is False

    assert recorded(between) == []
