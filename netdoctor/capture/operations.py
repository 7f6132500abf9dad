"""The watch over torch's functions: a function mode that is pushed only while operations are of interest."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from netdoctor.capture import functions
from netdoctor.capture.calls import known_operation
from netdoctor.capture.draws import takes
from netdoctor.capture.operands import counts

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer


def _popped(last: Callable[[Any], bool]) -> list[Any]:
    """The function modes above the first one that `last` knows, or all of them, taken from the stack."""
    modes = []
    while depth := torch._C._len_torch_function_stack():
        if last(torch._C._get_function_stack_at(depth - 1)):
            break
        modes.append(torch._C._pop_torch_function_stack())
    return modes


class OperationMode(TorchFunctionMode):
    """Shows every torch function call of this thread to the observer while it is pushed."""

    def __init__(self, observer: Observer) -> None:
        super().__init__()
        self._observer = observer
        self.on = False
        self.resting = False  # what runs without gradient is not worth a watch: see `rest`
        self.thin = False  # only the operations of the loop's pattern are of interest: see operands.py

    def enter(self, thin: bool = False) -> None:
        """Start watching, below all modes of the user's: they end in any order with ours. May be called when already on."""
        self.thin, self.resting = thin, False
        if not self.on:
            above = _popped(lambda mode: isinstance(mode, DeviceContext))  # which insists on being the lowest
            torch._C._push_on_torch_function_stack(self)
            for mode in reversed(above):
                torch._C._push_on_torch_function_stack(mode)
            self.on = True

    def leave(self) -> None:
        """Stop watching."""
        if self.on:
            above = _popped(lambda mode: mode is self)
            if torch._C._len_torch_function_stack():
                torch._C._pop_torch_function_stack()
                self.on = False
            for mode in reversed(above):
                torch._C._push_on_torch_function_stack(mode)

    def rest(self) -> None:
        """Stop watching a step that has no end, while nothing in sight could lead to a loss: a rollout, or a loop that makes its
        gradients where no watch sees them. What asks for a gradient, and the next step, are watched again."""
        # Torch takes a mode off the stack while it works, and puts it back after: it cannot leave from in there.
        self.resting = self._observer.tape.idle()

    def _worth(self, args: Any, kwargs: Any) -> bool:
        """Whether an operation could lead to a loss; then there is a watch again, with room for what comes."""
        if not torch.is_grad_enabled() or not counts(args, kwargs):
            return False
        self.resting = False
        if self._observer.graph is not None:
            self._observer.graph.make_room()
        return True

    def end_thin(self) -> None:
        """Stop watching where only the operations of the pattern are of interest: it does not hold any longer."""
        if self.thin:
            self.leave()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.resting and not self._worth(args, kwargs):
            return func(*args, **kwargs)
        # The compiler traces through here, and must find nothing of ours; inside of torch.func tensors have no values to read.
        if torch.compiler.is_compiling():
            return func(*args, **kwargs)
        observer = self._observer
        if torch._C._functorch.peek_interpreter_stack() is not None:
            if observer.graph is not None:
                observer.containment.run("operation out of sight", observer.graph.lose_sight)
            return func(*args, **kwargs)
        func = observer.reported.get(func, func)
        if observer.pattern.operations and not observer.suspended and not observer.inside:
            observer.containment.run("operation of the pattern", known_operation, observer, func, args, kwargs)
        if self.thin:
            return func(*args, **kwargs)
        name = functions.spoken_name(func)
        if not name or observer.suspended or observer.in_backward:
            if not name and observer.graph is not None and not observer.suspended and takes(func):
                observer.containment.run("number taken", observer.graph.take, args)
            return func(*args, **kwargs)
        noted = observer.containment.run("operation", observer.before_operation, name, func, args, kwargs)
        result = func(*args, **kwargs)
        if noted is not None:
            observer.containment.run("operation result", observer.after_operation, noted, name, args, kwargs, result)
        return result
