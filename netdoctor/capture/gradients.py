"""Loops without an optimizer: `torch.autograd.grad` is a backward call there, and a line of their own moves the weights."""

from __future__ import annotations

import functools
import linecache
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from netdoctor.capture.source import source_line
from netdoctor.recording import SourceLine

if TYPE_CHECKING:
    from netdoctor.capture.taps import Taps

_MOVES = re.compile(r"[\w\])]\s*-=|\.data\s*\+?=[^=]|\.(?:sub|add|addcdiv|copy)_\(|=[^=].*-.*grad")
_LINES = 15  # after the backward call: the gradients are used at once, or in a function of their own


def moving_line(file: str, line: int) -> SourceLine | None:
    """The first line after a backward call that looks like an update of weights in place; None where there is none nearby."""
    for number in range(line + 1, line + 1 + _LINES):
        if _MOVES.search(linecache.getline(file, number).partition("#")[0]):
            return source_line(file, number)
    return None


def by_hand(taps: Taps, optimized: Callable[[], bool]) -> Callable[[Any], Any]:
    """What wraps `torch.autograd.grad`. `optimized` tells whether the loop has an optimizer, which then decides what a step is."""

    def wrapping(original: Any) -> Any:
        @functools.wraps(original)
        def grad(
            outputs: Any,
            inputs: Any,
            grad_outputs: Any = None,
            retain_graph: Any = None,
            create_graph: Any = False,
            *a: Any,
            **k: Any,
        ) -> Any:
            def work() -> Any:
                return original(outputs, inputs, grad_outputs, retain_graph, create_graph, *a, **k)

            if retain_graph or create_graph or grad_outputs is not None or torch.compiler.is_compiling():
                return work()
            if optimized() or not _trains(outputs, inputs):
                return work()
            losses = [outputs] if isinstance(outputs, Tensor) else list(outputs)
            return taps.run_backward(losses, (None,) * len(losses), False, work)

        return grad

    return wrapping


def _trains(outputs: Any, inputs: Any) -> bool:
    """Whether these are gradients of losses with respect to weights: parameters, or several leaves. One leaf alone may be the
    input of a model, as in attacks and equations of physics."""
    losses = [outputs] if isinstance(outputs, Tensor) else outputs
    if isinstance(inputs, Tensor) or not isinstance(inputs, list | tuple) or not isinstance(losses, list | tuple):
        return isinstance(inputs, nn.Parameter) and isinstance(outputs, Tensor) and outputs.numel() == 1
    leaves = all(isinstance(x, Tensor) and x.is_leaf and x.requires_grad for x in inputs)
    named = all(isinstance(x, nn.Parameter) for x in inputs)
    scalars = bool(losses) and all(isinstance(x, Tensor) and x.numel() == 1 for x in losses)
    return scalars and leaves and (named or len(inputs) > 1) and len(inputs) > 0
