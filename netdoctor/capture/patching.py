"""Replacing attributes of torch for the time of the observation, and putting every one of them back."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

# Through here goes `apply` of every custom autograd function, also where the user kept it under another name before.
FUNCTIONS: Any = torch.autograd.function._SingleLevelFunction


def torch_apply(function: Any) -> Any:
    """torch's own `apply` of a custom autograd function, beneath whatever was wrapped around it."""
    above: Any = super(FUNCTIONS, function)
    return above.apply


def next_apply(original: Any) -> Callable[..., Any]:
    """What stood in the place of `FUNCTIONS.apply` before it was replaced, as a function of the class and the arguments."""

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        bound = isinstance(original, classmethod)  # of another session; else torch's own, further up
        return original.__func__(cls, *args, **kwargs) if bound else torch_apply(cls)(*args, **kwargs)

    return apply


# Replacements whose session ended while another session's wrapper stood above them: what was there before each of them, and
# whether its owner defined it. Whoever takes the wrapper away puts that back instead.
_orphans: dict[int, tuple[Any, Any, bool]] = {}


class Patches:
    """A stack of attribute replacements. `remove` undoes them in reverse order; an attribute that somebody else replaced
    meanwhile is left alone, since putting ours back would undo their work. Sessions may end in any order."""

    def __init__(self) -> None:
        self._done: list[tuple[object, str, Any, Any, bool]] = []

    def wrap(self, owner: object, name: str, make: Callable[[Any], Any]) -> None:
        """Replace `owner.name` by `make(original)`."""
        own = vars(owner) if hasattr(owner, "__dict__") else {}
        self._put(owner, name, own[name] if name in own else getattr(owner, name), make)

    def add(self, owner: type, name: str, make: Callable[[Any], Any]) -> None:
        """Give a class an attribute that it does not have: `make(None)`, or `make(original)` where another session gave it one."""
        self._put(owner, name, vars(owner).get(name), make)

    def _put(self, owner: object, name: str, original: Any, make: Callable[[Any], Any]) -> None:
        defined_here = hasattr(owner, "__dict__") and name in vars(owner)
        replacement = make(original)
        setattr(owner, name, replacement)
        self._done.append((owner, name, original, replacement, defined_here))

    def remove(self) -> None:
        """Put everything back. May be called twice."""
        while self._done:
            owner, name, original, replacement, defined_here = self._done.pop()
            if vars(owner).get(name, replacement) is not replacement:
                _orphans[id(replacement)] = replacement, original, defined_here
                continue
            while id(original) in _orphans:
                _, original, defined_here = _orphans.pop(id(original))
            if defined_here:
                setattr(owner, name, original)
            else:
                delattr(owner, name)


def announced(original: Any, note: Any) -> Any:
    """The original, with a note of each call before it."""

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        note()
        return original(*args, **kwargs)

    return wrapper
