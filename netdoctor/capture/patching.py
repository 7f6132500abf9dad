"""Replacing attributes of torch for the time of the observation, and putting every one of them back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Patches:
    """A stack of attribute replacements. `remove` undoes them in reverse order; an attribute that somebody else replaced
    meanwhile is left alone, since putting ours back would undo their work."""

    def __init__(self) -> None:
        self._done: list[tuple[object, str, Any, Any, bool]] = []

    def wrap(self, owner: object, name: str, make: Callable[[Any], Any]) -> None:
        """Replace `owner.name` by `make(original)`."""
        own = vars(owner) if hasattr(owner, "__dict__") else {}
        defined_here = name in own
        original = own[name] if defined_here else getattr(owner, name)
        replacement = make(original)
        setattr(owner, name, replacement)
        self._done.append((owner, name, original, replacement, defined_here))

    def remove(self) -> None:
        """Put everything back. May be called twice."""
        while self._done:
            owner, name, original, replacement, defined_here = self._done.pop()
            current = vars(owner).get(name, replacement)
            if current is not replacement:
                continue
            if defined_here:
                setattr(owner, name, original)
            else:
                delattr(owner, name)
