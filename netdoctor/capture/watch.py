"""Replays a captured step under an operation-level watch: every operation, what went in, what came out, and from where."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netdoctor.capture import functions
from netdoctor.capture.graphs import scalar_attributes
from netdoctor.capture.patching import FUNCTIONS, Patches, torch_apply
from netdoctor.capture.source import user_position
from netdoctor.capture.statistics import local
from netdoctor.capture.step import Replay
from netdoctor.capture.tree import tensors
from netdoctor.graph import Scalar

NODE_KEY = "netdoctor operation"  # where an operation's number is kept in the metadata of its autograd nodes
_SMALL = 4096


@dataclass(slots=True)
class Watched:
    """One operation of the replay. `inputs` and `outputs` are its tensors, detached, alive until the search is over."""

    index: int
    name: str
    module: nn.Module | None
    inputs: list[Tensor]
    outputs: list[Tensor]
    attributes: dict[str, Scalar]
    position: tuple[str, int]
    makers: list[int | None] = field(
        default_factory=list
    )  # the operation that made each input, None for what came from outside
    call: int = 0
    bad: list[tuple[bool, bool]] = field(
        default_factory=list
    )  # per input, from before the call: (holds a NaN, holds an Inf)
    outer: tuple[str, int] = ("", 0)  # the line of the loop that led here, where `position` may lie inside the model
    given: list[Tensor] = field(default_factory=list)  # the inputs themselves
    parameters: list[str] = field(default_factory=list)  # per input, the key of the parameter that it is, or ""


class Watch(TorchFunctionMode):
    """Collects the operations of a replay. `operations` are in order of execution."""

    def __init__(self, replay: Replay, parameter_name: Callable[[Tensor], str] = lambda _: "") -> None:
        super().__init__()
        self._parameter_name = parameter_name
        self._patches = Patches()
        self.operations: list[Watched] = []
        self._replay = replay
        self._stack: list[nn.Module] = []
        self._makers: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._handles: list[Any] = []
        self._calls: dict[int, int] = {}

    def __enter__(self) -> Watch:
        self._patches.wrap(FUNCTIONS, "apply", self._function_apply)
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._patches.remove()

    def _function_apply(self, original: Any) -> Any:
        """Custom autograd functions are no torch functions: they are watched where they are applied, and so is what they do
        inside: where that made a result, the result is its, and the function only has the node of the graph."""

        def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
            run = torch_apply(cls)
            if cls.__module__.startswith("torch."):
                return run(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                inputs = list(tensors((args, kwargs)))
                makers, bad = [self.maker(t) for t in inputs], [is_bad(t) for t in inputs]
                names, kept = [self._parameter_name(t) for t in inputs], [t.detach() for t in inputs]
            start = len(self.operations)
            result = run(*args, **kwargs)
            with torch._C.DisableTorchFunction():
                outputs = list(tensors(result))
                inside = {id(t): made for t in outputs if (made := self.maker(t)) is not None and made >= start}
                self._keep(f"{cls.__name__}.apply", kept, outputs, makers, {})
                self._describe(bad, names, inputs)
                for tensor in outputs:
                    if id(tensor) in inside:
                        self._makers[id(tensor)] = (weakref.ref(tensor), inside[id(tensor)])
            return result

        return classmethod(apply)

    def attach(self, module: nn.Module) -> None:
        """Follow which of the copy's modules is running."""
        for child in module.modules():
            self._handles.append(child.register_forward_pre_hook(self._enter))
            self._handles.append(child.register_forward_hook(self._leave, always_call=True))

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append(module)
        self._calls[id(module)] = self._calls.get(id(module), -1) + 1

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def maker(self, tensor: Tensor) -> int | None:
        """The operation that made a tensor, or None."""
        found = self._makers.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = functions.function_name(func)
        if functions.is_silent(func, name):
            return func(*args, **kwargs)
        inputs = given = list(tensors((args, kwargs)))
        makers = [self.maker(tensor) for tensor in inputs]
        changes = functions.mutates(name, kwargs)
        bad = [is_bad(tensor) for tensor in inputs]
        parameters = [self._parameter_name(tensor) for tensor in inputs]
        # Copies of what the call may overwrite: its first argument, and small state such as running statistics.
        inputs = [t.detach().clone() if changes or t.numel() <= _SMALL else t.detach() for t in inputs]
        result = func(*args, **kwargs)
        outputs = list(tensors(args[0] if changes and args else result))
        attributes = scalar_attributes(args, kwargs) | functions.reflection(name)
        self._keep(functions.plain(name), inputs, outputs, makers, attributes)
        self._describe(bad, parameters, given)
        return result

    def _keep(
        self,
        name: str,
        inputs: list[Tensor],
        outputs: list[Tensor],
        makers: list[int | None],
        attributes: dict[str, Scalar],
    ) -> None:
        index = len(self.operations)
        module = self._stack[-1] if self._stack else None
        position = user_position(Replay.run_entry.__code__)
        entry = self._replay.entry
        if not position[0] and entry is not None:
            position = entry.position
        call = self._calls.get(id(module), 0) if module is not None else 0
        # Detached: the search looks at values, and must not hold the graph that backward is about to free.
        kept = [tensor.detach() for tensor in outputs]
        self.operations.append(Watched(index, name, module, inputs, kept, attributes, position, makers, call))
        for tensor in outputs:
            self._makers[id(tensor)] = (weakref.ref(tensor), index)
            _mark(tensor, index)

    def _describe(self, bad: list[tuple[bool, bool]], parameters: list[str], given: list[Tensor]) -> None:
        made = self.operations[-1]
        made.bad, made.parameters, made.given = bad, parameters, given
        made.outer = made.position if self._replay.entry is None else self._replay.entry.position

    def close(self) -> None:
        """Stop following modules."""
        for handle in self._handles:
            handle.remove()


def _mark(tensor: Tensor, index: int) -> None:
    """Write the operation's number on the autograd nodes that it made: those behind its output that carry none yet."""
    queue: list[Any] = [tensor.grad_fn]
    while queue:
        node = queue.pop()
        if node is None or NODE_KEY in node.metadata or node.name() == "torch::autograd::AccumulateGrad":
            continue
        node.metadata[NODE_KEY] = index
        queue.extend(following for following, _ in node.next_functions)


def backward_nodes(loss: Tensor) -> Iterator[Any]:
    """All autograd nodes behind a loss, each once."""
    seen: set[int] = set()
    queue: list[Any] = [loss.grad_fn]
    keep: list[Any] = []  # python wrappers of nodes live only as long as somebody holds them; ids must stay valid
    while queue:
        node = queue.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        keep.append(node)
        yield node
        queue.extend(following for following, _ in node.next_functions)


def is_bad(tensor: Tensor) -> tuple[bool, bool]:
    """(holds a NaN, holds an Inf) of a float or complex tensor."""
    tensor = local(tensor)
    if (
        tensor.numel() == 0
        or tensor.is_meta
        or not (tensor.is_floating_point() or tensor.is_complex())
        or tensor.layout is not torch.strided
    ):
        return False, False
    return bool(torch.isnan(tensor).any()), bool(torch.isinf(tensor).any())
