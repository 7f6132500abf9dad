"""Whether two steps of a loop did the same, up to what models, loss functions and operations of the loop's own were given."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.naming import unwrapped
from netdoctor.capture.operands import same_call
from netdoctor.capture.tape import Backward, Constant, Entry, Leaf, Slot


def regular(module: nn.Module) -> bool:
    """Whether a pattern may hold calls of this module: wrapped and compiled ones do more than they show."""
    compiled = getattr(module, "_compiled_call_impl", None) is not None
    return unwrapped(module) is module and not compiled and not isinstance(module, torch.jit.ScriptModule)


def of_functional(entry: Entry) -> bool:
    """Whether this is a call of a function that torch.nn.functional has under that name."""
    function = vars(F).get(entry.name)
    return function is not None and entry.call in (function, getattr(function, "__wrapped__", None))


def same_step(first: list[Backward], second: list[Backward], renewed: set[int]) -> bool:
    """Whether two steps did the same, up to what they were given. Fills `renewed` with the ids of those entries of the second one
    whose arguments are new."""
    numbers: dict[int, int] = {}
    for a, b in zip(first, second, strict=True):
        plain = not (a.retain or b.retain or any(s is not None for s in (*a.seeds, *b.seeds)))
        if not plain or a.position != b.position or len(a.entries) != len(b.entries) or a.fresh != b.fresh:
            return False
        for old, new in zip(a.entries, b.entries, strict=True):
            if not _same_entry(old, new, numbers, renewed):
                return False
            numbers.update(zip(old.outputs, new.outputs, strict=True))
        if [numbers.get(slot.number) for slot in a.losses] != [slot.number for slot in b.losses]:
            return False
    return True


def _same_entry(old: Entry, new: Entry, numbers: dict[int, int], renewed: set[int]) -> bool:
    x, y = old.context, new.context
    if x is None or y is None or not (x.grad and y.grad) or x.autocast != y.autocast:
        return False
    if new.module is None and x.autocast is not None:
        return False
    alike = (
        same_call(old.call, new.call) and old.module is new.module and (old.mutates, old.nth) == (new.mutates, new.nth)
    )
    if not alike or old.position != new.position or len(old.outputs) != len(new.outputs):
        return False
    if new.module is None and _same((old.args, old.kwargs), (new.args, new.kwargs), numbers):
        return True
    if new.module is None and new.mutates:  # its first argument is no longer what it was given
        return False
    if new.module is not None and not regular(new.module):
        return False
    renewed.add(id(new))
    a, b = old.meanings(), new.meanings()
    return len(a) == len(b) and all(
        (isinstance(p, Constant) and isinstance(q, Constant)) or _same(p, q, numbers) for p, q in zip(a, b, strict=True)
    )


def _same(a: Any, b: Any, numbers: dict[int, int]) -> bool:
    if type(a) is not type(b):
        return False
    if isinstance(a, Slot):
        return bool(numbers.get(a.number) == b.number)
    if isinstance(a, Leaf):
        return bool(a.tensor is b.tensor)
    if isinstance(a, Constant):
        return bool(a.tensor is b.tensor and a.version == b.version)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_same(x, y, numbers) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key], numbers) for key in a)
    try:
        return bool(a is b or a == b)
    except Exception:  # things that cannot be compared may differ
        return False
