"""Treatments of what is computed and then dropped: the result of a layer takes the place of what went into it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from netdoctor.capture.step import Replay
from netdoctor.capture.tree import substitute, tensors
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments.treatment import Bench, Case, Treatment


class _InPlaceOf(TorchFunctionMode):
    """Once a module has run, whoever uses what went into it gets its result, where that has the same shape."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.given: Tensor | None = None
        self.result: Tensor | None = None
        self.used = 0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end, with_kwargs=True)

    def _begin(self, *_: Any) -> None:
        self.given = self.result = None

    def _end(self, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        result = next(tensors(output), None)
        same = [t for t in tensors((args, kwargs)) if result is not None and t.shape == result.shape]
        if result is not None and same and result is not same[0]:
            self.given, self.result = same[0], result

    def _exchange(self, tensor: Tensor) -> Tensor:
        if tensor is not self.given or self.result is None:
            return tensor
        self.used += 1
        return self.result

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.given is not None:
            args, kwargs = substitute((tuple(args), kwargs or {}), self._exchange)
        return func(*args, **(kwargs or {}))


def use_result(case: Case) -> Treatment | None:
    """The result of the finding's module, which nothing uses, in place of its input from there on."""
    original = case.places.module(case.finding.location.module or "")
    if original is None or not _is_used(case, original):
        return None

    def apply(bench: Bench) -> None:
        _enter(bench, original)
        bench.notes.append(f"the result of {case.finding.location.module} in place of what goes into it")

    return Treatment(apply)


def _enter(bench: Bench, original: nn.Module) -> _InPlaceOf:
    module = bench.copy_of(original)
    if module is None:
        raise LookupError("the module was not copied")
    mode = _InPlaceOf(module)
    bench.stack.enter_context(mode)
    return mode


def _is_used(case: Case, original: nn.Module) -> bool:
    """Whether anything after the module uses its input, so that there is something to exchange: tried on a copy."""
    with ExitStack() as stack:
        bench = Bench(Sandbox(case.step), case.step.iterations, stack)
        mode = _enter(bench, original)
        Replay(bench.sandbox.copies).loss(bench.iterations[0].backwards[0])
        return mode.used > 0


TREATMENTS = {"use-or-remove": use_result}
