"""What runs where the observation cannot look: said in words for the reader, never passed over in silence."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture import statistics

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer

_SAYS = {
    "thread": "a model ran in another thread than the one that netdoctor watches: what it did there was not seen",
    "transform": "modules ran inside of a torch.func transform (grad, vmap, jvp ...): what they did there was not seen",
    "meta": "a model on the meta device has shapes but no values: it was not judged",
    "scripted": "parts of the model are TorchScript: their layers were not watched",
    "compiled": "the model is compiled: its layers were not watched; run it once without torch.compile to see them",
    "compiled part": "parts of the model are compiled: their layers were not watched; run it once without torch.compile",
    "compiled function": "code is compiled: what runs in it was not watched; run it once without torch.compile",
    "sharded": "weights are sharded: what is said of weights, gradients and updates is of the first process's part",
    "spawned": "processes were started by torch.multiprocessing: what they trained was not seen (torchrun is)",
}


def say(observer: Observer, kind: str) -> bool:
    """Note that something of this kind was not seen. True, so that it can stand in a condition."""
    observer.blind_spots.setdefault(kind, _SAYS[kind])
    return True


def elsewhere(observer: Observer) -> bool:
    """Whether this is another thread than the observed one."""
    return threading.get_ident() != observer.thread and say(observer, "thread")


def on_meta(observer: Observer, things: Any) -> bool:
    """Whether tensors have no values to look at; `things` is a list of tensors, or an optimizer."""
    if isinstance(things, Optimizer):
        things = [p for group in things.param_groups[:1] for p in group["params"][:1]]
    return bool(things) and isinstance(things[0], Tensor) and things[0].is_meta and say(observer, "meta")


def but_meta(observer: Observer, optimizer: Optimizer, work: Callable[[Optimizer], None]) -> None:
    """Work on an optimizer, unless its parameters have no values."""
    if not on_meta(observer, optimizer):
        work(optimizer)


def local_parts(observer: Observer, tensors: list[Tensor]) -> list[Tensor]:
    """The parts of sharded tensors that lie in this process, which is said; others as they are."""
    if any(statistics.is_shard(tensor) for tensor in tensors):
        say(observer, "sharded")
        return [statistics.local(tensor) for tensor in tensors]
    return tensors


def see_model(observer: Observer, model: nn.Module) -> None:
    """Look for parts of a model that are closed to us; on measured steps only, as it goes through all modules."""
    for child in model.modules():
        if isinstance(child, torch.jit.ScriptModule):
            say(observer, "scripted")
        elif hasattr(child, "_orig_mod") or getattr(child, "_compiled_call_impl", None) is not None:
            say(observer, "compiled part")
