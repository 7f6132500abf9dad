"""One pass of a copy of a model in evaluation mode, watched: what each operation gave, where, and at which of the user's lines."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import SILENT, function_name
from netdoctor.capture.modes import in_evaluation
from netdoctor.capture.source import source_line, user_position
from netdoctor.capture.step import Copies
from netdoctor.capture.tree import tensors
from netdoctor.errors import MisuseError
from netdoctor.experiments.sandbox import quiet
from netdoctor.finding import Location

ROUNDING = 1e-4  # of the largest output: batched products round otherwise when their neighbours are others
_SEED = 1234
Kept = Callable[[Tensor], Tensor | None]


@dataclass(frozen=True, slots=True)
class Result:
    """What one operation gave: the entries that are compared, and where it ran."""

    operation: str
    module: str
    position: tuple[str, int]
    values: Tensor


@dataclass(frozen=True, slots=True)
class Pass:
    """The operations of a pass in order, and the tensors that the model returned."""

    results: tuple[Result, ...]
    outputs: tuple[Tensor, ...]


class Subject:
    """A model to be asked with different inputs: always a copy in evaluation mode, without gradients."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise MisuseError(f"the model must be a torch.nn.Module, not {type(model).__name__}")
        self._original = model

    def run(self, inputs: Any, keep: Kept, seed: int = _SEED) -> Pass:
        """The pass for these inputs; `keep` picks of every result what is compared. Random states are put back."""
        with quiet(), torch.no_grad():
            model = in_evaluation(Copies([self._original], []).of(self._original))
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            with _Watch(model, keep) as watch:
                returned = _call(model, inputs)
        return Pass(tuple(watch.results), tuple(t.detach() for t in tensors(returned) if t.is_floating_point()))


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module, keep: Kept) -> None:
        super().__init__()
        self.results: list[Result] = []
        self._keep = keep
        self._path = [""]
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda *_, name=name: self._path.append(name))
            module.register_forward_hook(self._left, always_call=True)

    def _left(self, *_: Any) -> None:
        self._path.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = function_name(func)
        if name not in SILENT:
            for tensor in tensors(result):
                kept = self._keep(tensor) if tensor.is_floating_point() else None
                if kept is not None:
                    self.results.append(Result(name, self._path[-1], user_position(), kept.detach().clone()))
        return result


def _call(model: nn.Module, inputs: Any) -> Any:
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def inputs_of(model: nn.Module, batch: Any) -> Any:
    """What the model takes of a batch: the first of a pair (inputs, target), unless the model itself takes two."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        return batch
    needed = [
        p
        for p in inspect.signature(model.forward).parameters.values()
        if p.default is p.empty and p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    return batch[0] if len(needed) < 2 else tuple(batch)


def first_difference(one: Pass, other: Pass) -> Location:
    """Where two passes first differ: operations that gave the same up to there are not to blame."""
    for a, b in zip(one.results, other.results, strict=False):
        if a.operation != b.operation or a.values.shape != b.values.shape:
            break
        if differ(a.values, b.values) > ROUNDING:
            return Location.at(source_line(*a.position), a.module or None, a.operation)
    return Location()


def differ(one: Tensor, other: Tensor) -> float:
    """The largest difference of two tensors over their largest magnitude; NaN at the same place is no difference."""
    if not one.numel():
        return 0.0
    a, b = one.double(), other.double()
    same = (a == b) | (a.isnan() & b.isnan())
    gap = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=torch.inf).max()
    size = torch.maximum(a.abs(), b.abs()).nan_to_num(nan=0.0, posinf=0.0).max().clamp_min(1e-30)
    return float(gap / size)
