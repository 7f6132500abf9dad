"""One thing at a time taken out of a copy, or mended in it, to see what keeps it from fitting."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import function_name
from netdoctor.capture.step import Iteration
from netdoctor.capture.tape import Constant, Entry, Slot
from netdoctor.experiments.batchnorm import bypass_batchnorm
from netdoctor.experiments.initialisation import match_initialisation
from netdoctor.experiments.sandbox import Edit, Sandbox

_NAMES = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout"
DROPOUTS = frozenset(name + end for name in _NAMES.split() for end in ("", "_"))


@dataclass(frozen=True, slots=True)
class Treatment:
    """A change to a sandbox. `concerns` tells whether there is anything to change; `during` surrounds the run."""

    name: str
    concerns: Callable[[Sandbox, list[Iteration]], bool]
    apply: Callable[[Sandbox, list[Iteration]], object]
    during: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext


def treatments(penalised: bool, operations: frozenset[str]) -> Iterator[Treatment]:
    """The treatments, in the order in which they are tried: what most often is in the way comes first.

    `penalised`: the loss has a weight penalty. `operations`: the names of what the step ran.
    """
    functional = bool(DROPOUTS & operations)
    yield Treatment("with matched initialisation", lambda *_: True, _match)
    yield Treatment("without batchnorm", _has(_BatchNorm), _bypass)
    yield Treatment("without dropout", lambda s, i: functional or _drops(s), _stop_dropping, NoDropout)
    yield Treatment("without clipping", _clips, lambda sandbox, _: setattr(sandbox, "clipping", False))
    yield Treatment("without weight decay", lambda sandbox, _: _decays(sandbox), _stop_decaying)
    if penalised:
        yield Treatment("without penalty", lambda *_: True, _stop_penalising)


class NoDropout(TorchFunctionMode):
    """Lets functional dropout pass its input on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = function_name(func)
        if name in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if name == "scaled_dot_product_attention":
            kwargs["dropout_p"] = 0.0
            args = (*args[:4], 0.0, *args[5:]) if len(args) > 4 else args
            kwargs = {k: v for k, v in kwargs.items() if len(args) <= 4 or k != "dropout_p"}
        return func(*args, **kwargs)


def _bypass(sandbox: Sandbox, _: list[Iteration]) -> None:
    for module in sandbox.modules():
        bypass_batchnorm(module)


def _match(sandbox: Sandbox, _: list[Iteration]) -> None:
    for module in sandbox.modules():
        match_initialisation(module)


def _children(sandbox: Sandbox) -> Iterator[nn.Module]:
    return (child for module in sandbox.modules() for child in module.modules())


def _has(kind: type[nn.Module]) -> Callable[[Sandbox, list[Iteration]], bool]:
    return lambda sandbox, _: any(isinstance(child, kind) for child in _children(sandbox))


def _rate(child: nn.Module) -> str:
    """The name of the attribute that holds a module's dropout rate, or ""."""
    if isinstance(child, _DropoutNd):
        return "p"
    return "dropout" if isinstance(child, nn.MultiheadAttention | nn.RNNBase) else ""


def _drops(sandbox: Sandbox) -> bool:
    return any(getattr(child, _rate(child)) > 0 for child in _children(sandbox) if _rate(child))


def _stop_dropping(sandbox: Sandbox, _: list[Iteration]) -> None:
    for child in _children(sandbox):
        if _rate(child):
            setattr(child, _rate(child), 0.0)


def _clips(_: Sandbox, iterations: list[Iteration]) -> bool:
    return any(action.kind == "clip" for iteration in iterations for action in iteration.actions)


def _decays(sandbox: Sandbox) -> bool:
    return any(group.get("weight_decay", 0) for optimizer in sandbox.optimizers for group in optimizer.param_groups)


def _stop_decaying(sandbox: Sandbox, _: list[Iteration]) -> None:
    sandbox.pinned["weight_decay"] = 0.0
    for optimizer in sandbox.optimizers:
        for group in optimizer.param_groups:
            if "weight_decay" in group:
                group["weight_decay"] = 0.0


def _stop_penalising(sandbox: Sandbox, iterations: list[Iteration]) -> None:
    sandbox.edit = unpenalised(iterations)


def unpenalised(iterations: list[Iteration]) -> Edit:
    """An edit that multiplies by 0 what is added to a loss and is made of parameters alone."""
    backwards = [backward for iteration in iterations for backward in iteration.backwards]
    penalties = {number for backward in backwards for number in _made_of_weights(backward.entries)}

    def edit(entry: Entry, args: Any, kwargs: Any) -> tuple[Any, Any]:
        encoded = entry.args if isinstance(entry.args, tuple) else ()
        slots = [arg.number if isinstance(arg, Slot) else None for arg in encoded]
        mixed = any(n in penalties for n in slots) and any(n is not None and n not in penalties for n in slots)
        if entry.module is not None or not mixed or entry.name.strip("_") not in ("add", "iadd", "radd", "sub"):
            return args, kwargs
        changed = [arg * 0 if number in penalties else arg for arg, number in zip(args, slots, strict=True)]
        return tuple(changed), kwargs

    return edit


def _made_of_weights(entries: list[Entry]) -> set[int]:
    """The slots that depend on parameters but neither on data nor on a module's output."""
    found: set[int] = set()
    for entry in entries:
        if entry.module is None and _pure(entry, found):
            found.update(entry.outputs)
    return found


def _pure(entry: Entry, pure: set[int]) -> bool:
    items = entry.meanings()
    data = any(isinstance(item, Constant) and item.tensor.numel() > 1 for item in items)
    return bool(items) and not data and all(n in pure for n in entry.inputs())
