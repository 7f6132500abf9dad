"""Which optimizers there are: their numbers, options, parameters, and the user's line that built each of them."""

from __future__ import annotations

import weakref
from dataclasses import replace

from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.naming import ModuleNames
from netdoctor.capture.source import line_outside_of
from netdoctor.recording import Optimizer as OptimizerFacts
from netdoctor.recording import SourceLine


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """All that an optimizer trains, group after group."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


class Optimizers:
    """Knows optimizers from their construction on, or from their first step; holds them weakly."""

    def __init__(self, names: ModuleNames) -> None:
        self.facts: list[OptimizerFacts] = []
        self.steps: list[int] = []  # how many each of them took
        self.spans: dict[int, tuple[int, int]] = {}  # number → the training steps of its first and its last step
        self.alive: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._names = names
        self._sources: weakref.WeakKeyDictionary[Optimizer, SourceLine] = weakref.WeakKeyDictionary()
        self._indices: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._rates: weakref.WeakKeyDictionary[Optimizer, tuple[float, ...]] = weakref.WeakKeyDictionary()

    def numbers(self) -> set[int]:
        """The numbers of those that are alive; -1 for one that has none yet."""
        return {self._indices.get(optimizer, -1) for optimizer in self.alive}

    def hold_gradients(self) -> bool:
        """Whether a parameter of any of them has a gradient."""
        return any(p.grad is not None for optimizer in self.alive for p in parameters_of(optimizer))

    def any_fused(self) -> bool:
        """Whether any of them steps by a fused kernel, which does not count what it writes to."""
        return any(group.get("fused") for optimizer in self.alive for group in optimizer.param_groups)

    def made(self, optimizer: Optimizer) -> None:
        """An optimizer was constructed."""
        self.alive.add(optimizer)
        line = line_outside_of(optimizer)
        if line is not None:
            self._sources[optimizer] = line
        rates = [group.get("lr") for group in optimizer.param_groups]
        self._rates[optimizer] = tuple(float(rate) for rate in rates if isinstance(rate, int | float))
        for number, group in enumerate(optimizer.param_groups):
            for position, parameter in enumerate(group["params"]):
                if not isinstance(parameter, nn.Parameter) and not self._names.parameter_name(parameter):
                    self._names.name_loose(parameter, f"parameter {number}.{position}")

    def index_of(self, optimizer: Optimizer) -> int:
        """The optimizer's number, given at its first step."""
        index = self._indices.get(optimizer)
        if index is None:
            index = self._indices[optimizer] = len(self.facts)
            self.steps.append(0)
            self.alive.add(optimizer)
            names = tuple(map(self._key, parameters_of(optimizer)))
            groups = tuple(
                {k: v for k, v in group.items() if isinstance(v, int | float | str | bool)}
                | (
                    {"beta1": group["betas"][0], "beta2": group["betas"][1]}
                    if isinstance(group.get("betas"), tuple)
                    else {}
                )
                for group in optimizer.param_groups
            )
            kind, source, rates = type(optimizer).__name__, self._sources.get(optimizer), self._rates.get(optimizer, ())
            self.facts.append(OptimizerFacts(index, kind, groups, names, source, rates=rates))
        return index

    def count(self, index: int, step: int) -> None:
        """An optimizer stepped, in a step of the training."""
        self.steps[index] += 1
        self.spans[index] = (self.spans[index][0] if index in self.spans else step, step)

    def register(self, optimizer: Optimizer) -> None:
        """Number an optimizer that never stepped, too; and give all parameters the names that are known by now: of models that ran
        after the optimizer began its first step, of groups that were added later."""
        index = self.index_of(optimizer)
        names = tuple(map(self._key, parameters_of(optimizer)))
        self.facts[index] = replace(self.facts[index], parameters=names)

    def _key(self, parameter: Tensor) -> str:
        return self._names.parameter_key(parameter) or self._names.name_loose(parameter, f"parameter{len(self.facts)}")
