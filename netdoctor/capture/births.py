"""Which operations made the tensors that do not depend on parameters: constants to the tape, but they may be faulty, too."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.functions import plain, reflection
from netdoctor.capture.tree import tensors

_KEPT = 4096  # operations of a step that are remembered
_FAR = 20
# Operations that only hand on what they are given: a NaN in their result was there before, whether or not that is still alive.
_CARRYING_NAMES = """
stack cat concat concatenate hstack vstack dstack column_stack getitem index_select gather take take_along_dim
    masked_select select narrow chunk split unbind view reshape flatten unflatten permute transpose movedim squeeze
    unsqueeze expand repeat tile clone detach contiguous to float double half bfloat16 type cpu cuda roll flip pad copy
"""
_CARRYING = frozenset(_CARRYING_NAMES.split())


@dataclass(frozen=True, slots=True)
class Maker:
    """The operation that made a tensor out of finite values: its name, operands where they are still there, and line."""

    name: str
    position: tuple[str, int]
    inputs: tuple[Tensor, ...] = ()
    attributes: Mapping[str, float | str | bool] = field(default_factory=dict)


class Births:
    """Which operations made the tensors of the running step that do not depend on parameters. Held weakly."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[weakref.ref[Tensor], str, tuple[str, int], list[weakref.ref[Tensor]]]] = {}

    def note(self, name: str, position: tuple[str, int], args: Any, kwargs: Any, result: Any) -> None:
        """An operation on data was seen."""
        if len(self._made) < _KEPT and isinstance(result, Tensor) and result.is_floating_point():
            inputs = [weakref.ref(tensor) for tensor in tensors((args, kwargs))]
            self._made[id(result)] = (weakref.ref(result), name, position, inputs)

    def clear(self) -> None:
        """Forget the step."""
        self._made.clear()

    def maker(self, tensor: Tensor, depth: int = 0) -> Maker | None:
        """The operation that made the first non-finite value of this tensor, or None where that was not seen."""
        found = self._made.get(id(tensor))
        if found is None or found[0]() is not tensor or depth > _FAR:
            return None
        inputs = tuple(alive for ref in found[3] if (alive := ref()) is not None)
        broken = next((t for t in inputs if not bool(torch.isfinite(t).all())), None)
        if broken is not None:
            return self.maker(broken, depth + 1)
        name = plain(found[1])
        return None if name in _CARRYING else Maker(name, found[2], inputs, reflection(found[1]))
