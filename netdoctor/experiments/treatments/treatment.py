"""What a treatment is: one change to a copy, and what the change is made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

from netdoctor.capture.step import Iteration, TrainingStep
from netdoctor.capture.tape import Constant, Entry
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.tiny_batch import rewrite
from netdoctor.finding import Finding, Fix
from netdoctor.graph import StepGraph
from netdoctor.recording import Layer, Recording

Key = Callable[[nn.Module], str]
_SEPARATOR = "\x1f"  # between a model's label and a path inside of it (netdoctor.capture.naming)


class Places:
    """Which module or loose weight of the script a reader's name means."""

    def __init__(self, step: TrainingStep, key: Key | None = None, leaf_name: Callable[[Tensor], str] | None = None):
        parts = {id(child) for module in step.modules for child in module.modules() if child is not module}
        self.tops = [module for module in step.modules if id(module) not in parts]
        self.models: dict[str, nn.Module] = {}
        self.leaves = {} if leaf_name is None else {leaf_name(leaf): leaf for leaf in step.leaves}
        self._modules: dict[str, nn.Module] = {}
        for top in self.tops:
            for path, child in top.named_modules():
                label, _, inner = ("", "", path) if key is None else key(child).rpartition(_SEPARATOR)
                for name in {inner, ".".join(part for part in (label, inner) if part)}:
                    self._modules.setdefault(name, child)
                if not inner:
                    self.models[label] = child

    def module(self, name: str) -> nn.Module | None:
        """The module of a layer's name, which may end in " (relu)" or " [call 2]"; None when there is none."""
        return self._modules.get(name.partition(" ")[0])

    def parameter(self, name: str) -> Tensor | None:
        """The parameter of this name, "body.0.weight"; None when there is none."""
        path, _, last = name.rpartition(".")
        module = self.module(path)
        return None if module is None else module._parameters.get(last)


@dataclass(slots=True)
class Bench:
    """A copy that is about to train, and all that a treatment may change of it before it does.

    `iterations` are what it will be trained on: to be rewritten, never changed in place. `stack` is open while it trains.
    """

    sandbox: Sandbox
    iterations: list[Iteration]
    stack: ExitStack = field(default_factory=ExitStack)
    notes: list[str] = field(default_factory=list)  # what exactly was done, for the reader
    seconds: float = 60.0  # that the arm may take
    measured: list[float] = field(default_factory=list)  # per step, what to tell in place of the loss; empty: the loss

    def copy_of(self, original: nn.Module) -> nn.Module | None:
        """The copy of a module."""
        found = self.sandbox.copies.of(original)
        return found if isinstance(found, nn.Module) else None

    def rewrite(self, change: Callable[[Entry], Entry]) -> None:
        """Replace entries of the captured iterations; those that several losses share go on being shared."""
        made: dict[int, Entry] = {}

        def changed(entry: Entry) -> Entry:
            if id(entry) not in made:
                made[id(entry)] = change(entry)
            return made[id(entry)]

        self.iterations = [_rewritten(iteration, changed) for iteration in self.iterations]


def _rewritten(iteration: Iteration, changed: Callable[[Entry], Entry]) -> Iteration:
    actions = []
    for action in iteration.actions:
        backward = action.backward
        if backward is not None:
            backward = replace(backward, entries=[changed(entry) for entry in backward.entries])
        actions.append(replace(action, backward=backward))
    return Iteration(actions, iteration.bytes)


def with_constants(entry: Entry, change: Callable[[Tensor], Tensor]) -> Entry:
    """The entry with its constant tensors changed; a tensor that `change` gives back as it is stays."""

    def changed(constant: Constant) -> Constant:
        tensor = change(constant.tensor)
        return constant if tensor is constant.tensor else Constant(tensor, tensor._version)

    return replace(entry, args=rewrite(entry.args, changed), kwargs=rewrite(entry.kwargs, changed))


def _nothing(_: Bench) -> None:
    return None


def as_trained(step: TrainingStep) -> Sandbox:
    """A copy of everything as the training left it."""
    return Sandbox(replace(step, starts={}, verified=True))


@dataclass(frozen=True, slots=True)
class Measure:
    """What a trial is about where the loss does not tell: a number that grows with the trouble, taken of both copies.

    `of` is asked after the steps of the trial; NaN where it cannot tell. A copy with `limit` or less is free of the trouble.
    """

    quantity: str  # "outputs of two passes differ by", for the reader
    of: Callable[[Bench], float]
    limit: float
    unit: str = ""
    witness: bool = (
        True  # a worse loss is worse; False where the trouble itself lowers the loss, or both are not the same
    )
    second: bool = False  # heard only where the losses show no cure: they tell as well, on data that is hard enough


@dataclass(frozen=True, slots=True)
class Treatment:
    """One change. `sandbox` makes the copy, `apply` changes it before it trains.

    `both` is done to the control arm as well (BatchNorm bypassed, say, to see what it hides), and `control` makes that
    arm's copy; `beside` is done to it alone, to measure what the treated arm's loss measures. Losses are told times
    `unit` (treated arm) and `control_unit`, so that both mean the same. `says` tells what is unusual.
    """

    apply: Callable[[Bench], object] = _nothing
    sandbox: Callable[[TrainingStep], Sandbox] = Sandbox
    both: Callable[[Bench], object] = _nothing
    beside: Callable[[Bench], object] = _nothing
    control: Callable[[TrainingStep], Sandbox] = Sandbox
    unit: float = 1.0
    control_unit: float = 1.0
    says: str = ""
    holds: Callable[[Bench], bool] | None = None  # of a trained copy: is it rid of the trouble? None: the loss decides
    measure: Measure | None = None  # the number that decides, with the loss as a witness; None: the loss decides alone
    steps: int | None = None  # of both arms; 0: the copies are looked at as they are. None: as many as a trial has


@dataclass(frozen=True, slots=True)
class Case:
    """A fix of a finding, with all that is known of the training that it is for."""

    step: TrainingStep
    recording: Recording
    finding: Finding
    fix: Fix
    places: Places

    @property
    def graph(self) -> StepGraph | None:
        """The captured graph that the finding's line is in."""
        return self.recording.graph_at(self.finding.location.file, self.finding.location.line)

    def layers(self) -> list[Layer]:
        """The finding's layers in order of execution; its location's where it lists none."""
        names = set(self.finding.places) or {self.finding.location.module or ""}
        found = [layer for layer in self.recording.layers if {layer.name, layer.path} & names]
        return list({(layer.path, layer.type): layer for layer in reversed(found)}.values())[::-1]

    def modules(self, bench: Bench, layers: list[Layer] | None = None) -> Iterator[nn.Module]:
        """The copies of the modules of these layers (default: the finding's), each once."""
        seen: set[int] = set()
        for layer in self.layers() if layers is None else layers:
            original = self.places.module(layer.path)
            copied = None if original is None else bench.copy_of(original)
            if copied is not None and id(copied) not in seen:
                seen.add(id(copied))
                yield copied


Maker = Callable[[Case], Treatment | None]


def first_argument(args: Any, kwargs: Any) -> Any:
    """What a torch function was called on."""
    return args[0] if args else kwargs["input"]
