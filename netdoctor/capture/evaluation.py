"""The script's own evaluations: passes between training steps that no loss is trained on, their mode, data and losses."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from netdoctor.capture import functions
from netdoctor.capture.data import LOSSES, DataRecorder
from netdoctor.capture.last_batch import LastBatch
from netdoctor.capture.recorder import SeriesRecorder
from netdoctor.capture.source import user_chain
from netdoctor.capture.stale_norms import StaleNorms
from netdoctor.capture.stuck_modes import StuckModes
from netdoctor.capture.tape import Backward, Entry
from netdoctor.capture.tree import tensors
from netdoctor.data import Evaluation, Override

MAX_PLACES = 6  # lines that evaluate from
WATCHED_PASSES = 16  # of one evaluation: an epoch's loss is read from as many batches
SAMPLED_PASSES, SAMPLED_PHASES = 4, 16  # whose inputs are sampled
HELD_PASSES, HELD_BYTES = 4, 16 << 20  # of each line that evaluates: kept whole, to be run again on a copy
FRUITLESS = 3  # evaluations in which nothing was compared: acting, sampling, targets of a teacher
_PROBED = 64  # numbers that tell whether the same batch is passed again
_COMPARE = frozenset({"eq", "ne", "isclose", "allclose"})
_SHAPES = frozenset(
    [
        "view",
        "reshape",
        "flatten",
        "squeeze",
        "unsqueeze",
        "getitem",
        "to",
        "float",
        "detach",
        "clone",
        "contiguous",
        "item",
    ]
)
Chain = tuple[tuple[str, int, int], ...]
Made = Callable[[Tensor], bool]
Behind = Callable[[list[Tensor], tuple[str, int]], Backward | None]


@dataclass(slots=True)
class _Place:
    """One line that evaluates, told apart by the lines that led to it."""

    chain: Chain
    data: DataRecorder = field(default_factory=DataRecorder)
    losses: SeriesRecorder = field(default_factory=SeriesRecorder)
    phases: int = 0
    step: int = -1  # of the running phase
    in_phase: int = 0  # passes of the running phase
    passes: int = 0
    train_mode: int = 0
    layers: dict[str, None] = field(default_factory=dict)
    compared: bool = False
    repeated: int = 0
    probe: Tensor | None = None
    module: str = ""
    held: list[Backward] = field(default_factory=list)  # the first passes that gave a loss
    override: Override | None = None

    @property
    def watched(self) -> bool:
        """Whether what the script does with the results is still of interest."""
        return self.in_phase <= WATCHED_PASSES and (self.compared or self.phases <= FRUITLESS)


@dataclass(slots=True)
class _Pass:
    """A pass that may turn out to be an evaluation: no backward came after it yet."""

    place: _Place
    step: int
    grad: bool
    training: bool
    layers: tuple[str, ...]
    losses: dict[str, Tensor] = field(default_factory=dict)
    factor: float = 1.0
    compared: bool = False
    held: Backward | None = None


class EvaluationRecorder:
    """Follows passes that are not trained on. Reads no random state; holds one small loss at a time."""

    def __init__(self, key_of: Callable[[nn.Module], str]) -> None:
        self._key_of = key_of
        self.norms = StaleNorms()
        self.batch = LastBatch()
        self.stuck = StuckModes()
        self._places: dict[Chain, _Place] = {}
        self._pass: _Pass | None = None
        self._trained: tuple[str, ...] = ()  # how the training makes its loss: the functions after the model
        self._reduction: Any = None
        self.on_gradient: Callable[[], None] = lambda: None  # told of an evaluation that ran with gradients on

    # --- what the observer tells -------------------------------------------------------------------------------------

    def enter(self, module: nn.Module, grad: bool, step: int, arguments: Any, made: Made) -> None:
        """An outermost module is about to run."""
        if grad and module.training:
            self.norms.trains(module)
            self.batch.trains(module, arguments)
            if self._pass is not None:
                self._commit()
            return
        if self._pass is not None and any(made(tensor) for tensor in tensors(arguments)):
            return  # the rest of the model, or a loss with weights of its own
        self._commit()
        self.norms.evaluates(module, step, arguments)
        self.batch.evaluates()
        place = self._place(user_chain())
        if place is None:
            return
        self._count(place, module, step)
        if place.in_phase <= SAMPLED_PASSES and place.phases <= SAMPLED_PHASES:
            place.data.see_inputs(step, 0, arguments, place.chain[0][:2], made, lambda _: None)
            _probe(place, arguments)
        layers = tuple(self._in_training(module)) if place.in_phase == 1 else tuple(place.layers)
        stuck = self.stuck.within(module)
        place.override = place.override or stuck
        self._pass = _Pass(place, step, grad, module.training or stuck is not None, layers)

    def left(self, entry: Entry, result: Any) -> bool:
        """A module gave its result; says whether the operations that follow should be watched."""
        running = self._pass
        if running is None:
            return False
        if self._trained and self._trained[0] == "module" and self._trained[1] == entry.name:
            found = list(tensors(result))
            place = int(self._trained[2])
            if place < len(found) and _is_loss(found[place]):
                running.losses["module"], running.compared = found[place].detach(), True
        return running.place.watched

    def see(self, name: str, args: Any, kwargs: Any, result: Any, behind: Behind) -> None:
        """An operation on the results of the pass."""
        running = self._pass
        if running is None or not running.place.watched:
            return
        plain = functions.plain(name)
        if plain in _COMPARE and (sum(isinstance(a, Tensor) for a in args) > 1 or _of_class(args)):
            running.compared = True
        elif isinstance(result, Tensor) and _is_loss(result) and (running.grad or not result.requires_grad):
            self._see_scalar(running, plain, args, kwargs, result, behind)

    def trained(self, backward: Backward) -> None:
        """A loss is trained on: passes with gradient that led to it were no evaluation."""
        if self._pass is not None and self._pass.grad:
            self._pass = None
        if not self._trained:
            self._trained = _signature(backward)
            last = backward.entries[-1]
            self._reduction = last.kwargs.get("reduction") if isinstance(last.kwargs, dict) else None

    def held(self) -> dict[tuple[str, int], list[Backward]]:
        """By the line that evaluates: its first passes that gave a loss, to be run again on a copy of the model."""
        return {_line(place): list(place.held) for place in self._places.values() if place.held}

    def release(self) -> None:
        """Let go of the batches."""
        self._pass = None
        for place in self._places.values():
            place.held.clear()

    def evaluations(self, display: Callable[[str], str]) -> list[Evaluation]:
        """What was seen, one entry per line that evaluates and compares."""
        self._commit()
        found = [_told(place, display) for place in self._places.values() if place.compared]
        return [evaluation for evaluation in found if evaluation.passes]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _see_scalar(self, running: _Pass, plain: str, args: Any, kwargs: Any, result: Tensor, behind: Behind) -> None:
        if plain in LOSSES:
            running.losses[plain], running.compared = result.detach(), True
            summed = kwargs.get("reduction") == "sum" and self._reduction != "sum"
            target = args[1] if len(args) > 1 else None
            running.factor = 1 / max(1, target.numel()) if summed and isinstance(target, Tensor) else 1.0
            if not summed:
                running.held = _held(running.place, result, behind)
        elif self._trained and self._trained[-1] == plain and self._trained[0] not in LOSSES:
            made = behind([result], ("", 0))
            if made is not None and _signature(made) == self._trained:
                running.losses["|".join(self._trained)], running.compared = result.detach(), True

    def _place(self, chain: Chain) -> _Place | None:
        if not chain:
            return None
        if chain not in self._places:
            if len(self._places) >= MAX_PLACES:
                return None
            self._places[chain] = _Place(chain)
        return self._places[chain]

    def _count(self, place: _Place, module: nn.Module, step: int) -> None:
        if step != place.step:
            place.step, place.in_phase, place.probe = step, 0, None
            place.phases += 1
        place.in_phase += 1
        place.module = place.module or self._key_of(module)

    def _in_training(self, module: nn.Module) -> list[str]:
        """The layers that work differently in evaluation, and are not in evaluation mode."""
        return [self._key_of(child) for child in module.modules() if child.training and _differs(child)]

    def _commit(self) -> None:
        """The pass was an evaluation after all."""
        done, self._pass = self._pass, None
        if done is None:
            return
        place = done.place
        place.passes += 1
        place.compared |= done.compared
        place.held += [] if done.held is None else [done.held]
        if done.grad and done.compared:
            self.on_gradient()
        if done.training:
            place.train_mode += 1
            place.layers.update(dict.fromkeys(done.layers))
        wanted = self._trained[0] if self._trained and self._trained[0] in LOSSES else None
        value = done.losses.get(wanted) if wanted else next(iter(done.losses.values()), None)
        if value is not None:
            place.losses.add(done.step, float(value) * done.factor)


def _held(place: _Place, loss: Tensor, behind: Behind) -> Backward | None:
    """What led to the loss of an evaluation, while there is room."""
    if len(place.held) >= HELD_PASSES or sum(e.bytes() for b in place.held for e in b.entries) >= HELD_BYTES:
        return None
    made = behind([loss], _line(place))
    if made is None or any(entry.context is None for entry in made.entries if entry.module is not None):
        return None
    for entry in made.entries:
        if entry.module is not None:
            entry.modes = tuple(child.training for child in entry.module.modules())
    made.value = float(loss.detach())
    return made


def _line(place: _Place) -> tuple[str, int]:
    return next((frame for frame in place.chain[1:2] if frame[0] == place.chain[0][0]), place.chain[0])[:2]


def _is_loss(tensor: Tensor) -> bool:
    return tensor.numel() == 1 and tensor.is_floating_point() and not tensor.is_meta


def _differs(module: nn.Module) -> bool:
    """Whether a layer of torch's own does something else in training mode than in evaluation mode."""
    if isinstance(module, _DropoutNd):
        return module.p > 0
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.dropout > 0
    return isinstance(module, _BatchNorm) and module.track_running_stats


def _probe(place: _Place, arguments: Any) -> None:
    """Whether this pass is given what the one before was, as a sampling over dropout masks is."""
    first = next((t for t in tensors(arguments) if t.numel() and not t.is_sparse), None)
    if first is None:
        return
    probe = first.detach().reshape(-1)[:_PROBED].clone()
    if place.probe is not None and probe.shape == place.probe.shape and bool((probe == place.probe).all()):
        place.repeated += 1
    place.probe = probe


def _signature(backward: Backward) -> tuple[str, ...]:
    """How a loss is made: its known loss function, the module that gives it, or the functions after the model."""
    names = [functions.plain(entry.name) for entry in backward.entries if entry.module is None]
    known = [name for name in names if name in LOSSES]
    last = backward.entries[-1]
    if known:
        return (known[0],)
    if last.module is not None and backward.losses[0].number in last.outputs:
        return ("module", last.name, str(last.outputs.index(backward.losses[0].number)))
    return tuple(name for name in names if name not in _SHAPES)


def _told(place: _Place, display: Callable[[str], str]) -> Evaluation:
    series = place.losses.series()
    file, line = _line(place)
    return Evaluation(
        np.asarray(series.steps),
        series.values,
        place.phases,
        place.passes,
        place.train_mode,
        tuple(display(key) for key in place.layers),
        place.repeated,
        display(place.module),
        tuple(place.data.inputs()),
        file,
        line,
        linecache.getline(file, line).strip() if file else "",
        place.override,
    )


def _of_class(args: Any) -> bool:
    """Whether predicted classes, one per sample, are compared with the number of one class."""
    classes = args[0] if args else None
    return isinstance(classes, Tensor) and classes.dtype is torch.int64 and classes.dim() > 0 and type(args[1]) is int
