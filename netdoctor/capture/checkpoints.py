"""Whether a run was resumed: what a loaded checkpoint holds, and whether an optimizer was given its state back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from netdoctor.capture.containment import Containment

_MOST = 64  # entries of a checkpoint that are looked at
Wrap = Callable[[object, str, Callable[[Any], Any]], None]


class Checkpoints:
    """Notes two facts: "optimizer_state_in_checkpoint" and "optimizer_state_loaded"."""

    def __init__(self, facts: dict[str, float | str | bool], containment: Containment) -> None:
        self._facts = facts
        self._containment = containment

    def install(self, wrap: Wrap) -> None:
        """Watch `torch.load` and `Optimizer.load_state_dict`."""
        wrap(torch, "load", lambda original: self._after(original, self._loaded))
        wrap(Optimizer, "load_state_dict", lambda original: self._after(original, self._restored))

    def _after(self, original: Any, see: Callable[[Any], None]) -> Any:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            self._containment.run("checkpoint", see, result)
            return result

        return wrapper

    def _loaded(self, checkpoint: Any) -> None:
        if isinstance(checkpoint, Mapping) and any(_is_optimizer(v) for v in list(checkpoint.values())[:_MOST]):
            self._facts["optimizer_state_in_checkpoint"] = True

    def _restored(self, _: Any) -> None:
        self._facts["optimizer_state_loaded"] = True


def _is_optimizer(entry: Any) -> bool:
    """Whether an entry is the state of an optimizer that has stepped: its parameters have a state of their own."""
    return isinstance(entry, Mapping) and {"state", "param_groups"} <= set(entry) and bool(entry["state"])
