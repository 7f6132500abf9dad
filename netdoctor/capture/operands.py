"""Operations of the loop's own, between a model and `backward`, that are given something new in each step: targets, masks, weights.

`(out - y) ** 2` is no function that could report its calls. On steps that follow the pattern of the loop a function mode stands
from the end of the model to `backward`, which keeps what these operations are given and looks at nothing else.
"""

from __future__ import annotations

import types
from typing import Any

from torch import Tensor

from netdoctor.capture.tape import Backward, Constant, Entry
from netdoctor.capture.tree import tensors

Key = int | str | tuple[int, str]  # of a module, of a function of torch.nn.functional, of an operation


def key_of(call: Any) -> Key:
    """What tells an operation from all others. The getters of properties (`x.T`) are made anew each time they are asked for."""
    return (id(call.__self__), call.__name__) if type(call) is types.MethodWrapperType else id(call)


def same_call(one: Any, other: Any) -> bool:
    """Whether two entries made the same call."""
    return one is other or (one is not None and key_of(one) == key_of(other))


def counts(args: Any, kwargs: Any) -> bool:
    """Whether a call is one that is numbered: a gradient can flow through it."""
    if args and type(args[0]) is Tensor and args[0].requires_grad:  # nearly always, and asked for in every step
        return True
    return any(tensor.requires_grad for tensor in tensors((args, kwargs)))


class Trial:
    """One step that is watched in full, and in which the operations report their calls as well: both must say the same."""

    def __init__(self) -> None:
        self._calls: dict[Key, list[list[Tensor]]] = {}
        self.before: list[int] = []  # how many calls were reported before each backward

    def see(self, key: Key, args: Any, kwargs: Any) -> None:
        """A call was reported."""
        self._calls.setdefault(key, []).append(list(tensors((args, kwargs))))

    def agrees(self, backwards: list[Backward], operations: frozenset[Key]) -> bool:
        """Whether the calls of these operations that were watched are those that were reported, in number and constants."""
        entries = [entry for backward in backwards for entry in backward.entries if entry.module is None]
        return all(self._told(entry) for entry in entries if key_of(entry.call) in operations)

    def _told(self, entry: Entry) -> bool:
        calls = self._calls.get(key_of(entry.call), [])
        if entry.nth >= len(calls):
            return False
        meanings, given = entry.meanings(), calls[entry.nth]
        pairs = zip(meanings, given, strict=False)
        return len(meanings) == len(given) and all(m.tensor is t for m, t in pairs if isinstance(m, Constant))


def entry_key(entry: Entry, functions: frozenset[str]) -> Key:
    """Under which key the calls of an entry's module, function or operation are kept."""
    if entry.module is not None:
        return id(entry.module)
    return entry.name if entry.name in functions else key_of(entry.call)
