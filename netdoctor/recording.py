"""What was observed of a training run, as numbers and text only: never a tensor, never a module.

Capture writes a `Recording`, experiments add `Arm`s to it, checks and renderers read it. Everything in here can be built by
hand in a test, saved, and judged again on a machine without torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from netdoctor.data import Evaluation, TensorFacts
from netdoctor.graph import StepGraph
from netdoctor.origin import MAX_SKIPS as MAX_SKIPS  # what follows is a part of the recording's vocabulary
from netdoctor.origin import NORMALISED as NORMALISED
from netdoctor.origin import Culprit as Culprit
from netdoctor.origin import Operand as Operand
from netdoctor.origin import Origin as Origin
from netdoctor.origin import SourceLine as SourceLine

FORMAT = 1
Array = NDArray[np.float64]


class Role(str, Enum):
    """Which tensor of a place in the model a statistic describes."""

    INPUT = "input"
    OUTPUT = "output"
    OUTPUT_GRADIENT = "output gradient"
    WEIGHT = "weight"
    WEIGHT_GRADIENT = "weight gradient"
    UPDATE = "update"

    __hash__ = str.__hash__  # Enum's own is Python code, and every look for a track asks for it


class Stat(str, Enum):
    """The closed list of statistics. Shares lie in [0, 1]; `UNIT_*` are vectors with one entry per unit (channel)."""

    MEAN = "mean"
    STD = "standard deviation"
    RMS = "root mean square"
    ABSMAX = "largest magnitude"
    NONFINITE = "non-finite values"  # count of NaN and Inf
    BATCH_STD = "standard deviation over the batch"  # of each entry over samples, root mean square over entries
    SATURATED_SHARE = "share of saturated values"  # sigmoid outside [0.018, 0.982], |tanh| > 0.999, softmax max > 0.999
    UNIT_ACTIVE = "units active"  # 1 where the unit gave a non-zero value for any sample or position
    UNIT_SATURATED = "units saturated"  # share of saturated values, per unit
    UNIT_ZERO_GRADIENT = "units without gradient"  # 1 where a weight's row got exactly zero gradient
    DISTINCT_ROWS = "share of distinct rows"  # 1/units when all units are identical; of an embedding its columns
    SAMPLES = "samples seen"  # values per unit that went into the statistics of this step (batch x positions)
    FROZEN_UPDATE = "update while frozen"  # rms change by the optimizer of a parameter that does not require a gradient
    ROUNDED_AWAY = "share of updates rounded away"  # of a half-precision parameter's entries with a gradient: unchanged
    TIME_RATIO = "growth along time"  # log10(rms at first / rms at last position), for gradients of sequences

    __hash__ = str.__hash__


class Kind(str, Enum):
    """What a layer is for."""

    LINEAR = "linear"  # dense, convolution, matrix product with a parameter
    ACTIVATION = "activation"
    NORM = "norm"
    RECURRENT = "recurrent"
    ATTENTION = "attention"
    EMBEDDING = "embedding"
    DROPOUT = "dropout"
    SOFTMAX = "softmax"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Site:
    """A place that is measured: the module path, the layer type, the role of the tensor, and the call of a reused module.

    `parameter` is the full parameter name ("body.3.weight") for the roles WEIGHT, WEIGHT_GRADIENT and UPDATE, else "".
    """

    module: str
    layer: str
    role: Role
    call: int = 0
    parameter: str = ""


@dataclass(frozen=True, slots=True)
class Track:
    """A statistic over the sampled steps. `values` has shape (steps,) or, for `UNIT_*` statistics, (steps, units)."""

    steps: NDArray[np.int64]
    values: Array

    @property
    def first(self) -> float:
        """The value at the first sampled step (for vectors, its mean)."""
        return float(np.mean(self.values[0]))

    @property
    def last(self) -> float:
        """The value at the last sampled step (for vectors, its mean)."""
        return float(np.mean(self.values[-1]))


@dataclass(frozen=True, slots=True)
class Series:
    """A scalar over optimizer steps, thinned when long: `steps` ascending, `values` of the same length."""

    steps: NDArray[np.int64]
    values: Array


def median(values: Array) -> float:
    """The median of a few hundred values, NaN if one is NaN or there are none; `np.median` takes 20 µs to begin."""
    return middle(values.tolist())


def middle(values: list[float]) -> float:
    """The same of a list."""
    ordered = sorted(values)
    if not ordered or any(map(math.isnan, ordered)):
        return math.nan
    half = len(ordered) // 2
    return float(ordered[half]) if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2


def shared(one: Track | Series, other: Track | Series) -> tuple[NDArray[np.int64], Array, Array]:
    """The steps at which both were sampled, and the values of either there."""
    if one.steps.tobytes() == other.steps.tobytes():  # as a rule: they are taken on the same steps
        return one.steps, one.values, other.values
    steps, left, right = np.intersect1d(one.steps, other.steps, return_indices=True)
    return steps, one.values[left], other.values[right]


@dataclass(frozen=True, slots=True)
class Histogram:
    """How the values of a parameter (role WEIGHT) or of its gradient (WEIGHT_GRADIENT) are spread, at a few steps.

    `counts` has shape (steps, bins): how many of about 500 sampled values lie in each of the equal bins between that step's
    lowest and highest finite value, `low` and `high` (NaN where none was finite; equal where all values are the same).
    """

    parameter: str
    role: Role
    steps: NDArray[np.int64]
    low: Array
    high: Array
    counts: NDArray[np.int64]

    @property
    def sound(self) -> bool:
        """Whether all of it belongs together: as many rows as steps, in their order."""
        rows = len(self.steps)
        whole = self.steps.ndim == self.low.ndim == self.high.ndim == 1 and self.counts.ndim == 2
        return (
            whole
            and rows == len(self.low) == len(self.high) == len(self.counts)
            and bool(np.all(np.diff(self.steps) > 0))
        )


@dataclass(frozen=True, slots=True)
class Excerpt:
    """Lines of one of the user's files as they were when it ran; `first` is the number of the first of them."""

    file: str
    first: int
    lines: tuple[str, ...]


def spoken(path: str) -> str:
    """A module path as it reads in a sentence: "body.3", but "layer 3" where it is a number alone."""
    return f"layer {path}" if path.isdigit() else path


@dataclass(frozen=True, slots=True)
class Layer:
    """One place that makes an activation: a leaf module, or a functional operation such as `F.relu` inside a module.

    Layers are listed in the order in which the first captured step ran them. `weight` and `bias` name parameters.
    `fan_in` counts the inputs of one unit, `fan_out` the units that one input feeds (torch.nn.init's convention).
    `model` is the label of the trained model it belongs to ("" when only one model trains).
    """

    path: str
    type: str
    kind: Kind
    order: int
    call: int = 0
    model: str = ""
    units: int = 0
    weight: str = ""
    bias: str = ""
    fan_in: int = 0
    fan_out: int = 0
    source: SourceLine | None = None  # where the module is built, or where the operation stands
    training: bool = True
    function: str = ""  # the torch function that ran: "linear", "conv2d", "relu", whatever the layer's type

    @property
    def name(self) -> str:
        """What a reader calls it: the module path, with the operation or the call where that is needed."""
        base = self.path or self.model or "the model"
        if self.type.islower():  # a functional operation: torch's functions are lower case, modules are not
            base = f"{base} ({self.type})"
        return base if self.call == 0 else f"{base} [call {self.call + 1}]"

    @property
    def spoken(self) -> str:
        """The name as it reads in a sentence: "layer 3" where it is a number alone."""
        return spoken(self.name)

    def site(self, role: Role) -> Site:
        """The site of this layer's activation or of the gradient with respect to it."""
        return Site(self.path, self.type, role, self.call)


@dataclass(frozen=True, slots=True)
class Parameter:
    """A trainable or frozen parameter. `optimizer` is the index of the optimizer that owns it, or None."""

    name: str
    module: str
    module_type: str
    shape: tuple[int, ...]
    dtype: str
    requires_grad: bool = True
    optimizer: int | None = None
    model: str = ""
    optimizer_eps: float = 0.0
    same_as: str = ""  # another parameter that started with the very same values (or their transpose)

    def site(self, role: Role) -> Site:
        """The site of this parameter's value, gradient or update."""
        return Site(self.module, self.module_type, role, 0, self.name)


@dataclass(frozen=True, slots=True)
class Optimizer:
    """An optimizer as first seen. `groups` holds the scalar options of each group (lr, momentum, eps, ...)."""

    index: int
    type: str
    groups: tuple[Mapping[str, float | str | bool], ...]
    parameters: tuple[str, ...]
    source: SourceLine | None = None
    steps: int = 0
    span: tuple[int, ...] = ()  # the training steps of its first and its last step; () when it never stepped
    rates: tuple[float, ...] = ()  # learning rates of its groups as it was built; () where that was not seen

    @property
    def lr(self) -> float:
        """The learning rate of the first group at the first step."""
        return float(self.groups[0].get("lr", float("nan"))) if self.groups else float("nan")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened once: kind ("step", "zero_grad", "backward", "clip", "mode", "evaluation", ...), where, what."""

    step: int
    kind: str
    detail: str = ""
    value: float = float("nan")
    source: SourceLine | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One run of an experiment on a copy: `losses` per step, scalar `facts`, and whether and why it could not run.

    `profile` maps layer names to (activation rms, gradient rms) at its first step, in order of execution.
    """

    name: str
    losses: Array
    seconds: float = 0.0
    facts: Mapping[str, float | str | bool] = field(default_factory=dict)
    profile: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    curves: Mapping[str, Array] = field(default_factory=dict)
    failure: str = ""  # why it could not run; "" when it ran

    @property
    def steps(self) -> int:
        """The training steps behind the losses: the fact "steps" where these are evaluations, else one per loss."""
        return int(float(self.facts.get("steps", self.losses.size)))


@dataclass(frozen=True, slots=True)
class Fault:
    """An exception inside netdoctor that was contained: where, what, and how often."""

    where: str
    error: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Header:
    """What was run, with what."""

    target: str = ""
    netdoctor: str = ""
    torch: str = ""
    python: str = ""
    device: str = "cpu"
    started: str = ""
    ranks: int = 1
    observing_s: float = 0.0
    ended: str = "finished"  # or "raised TypeError: ...", "interrupted", "exit 3", "stopped after 100 steps"


@dataclass(slots=True)
class Recording:
    """The whole of what was observed. Losses are keyed by a label: "loss", or "loss (train.py:31)" where there are several."""

    header: Header = field(default_factory=Header)
    steps: int = 0  # optimizer steps taken
    layers: list[Layer] = field(default_factory=list)
    parameters: dict[str, Parameter] = field(default_factory=dict)
    optimizers: list[Optimizer] = field(default_factory=list)
    losses: dict[str, Series] = field(default_factory=dict)
    scalars: dict[str, Series] = field(default_factory=dict)  # "lr", "gradient norm", "loss scale", "evaluation loss"
    tracks: dict[tuple[Site, Stat], Track] = field(default_factory=dict)
    histograms: list[Histogram] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)  # how often each kind of event happened
    graph: StepGraph | None = None
    # One per backward call of the first captured iteration, then of steps in which the loop had become another one.
    graphs: list[StepGraph] = field(default_factory=list)
    origin: Origin | None = None
    arms: dict[str, Arm] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    blind_spots: list[str] = field(default_factory=list)  # what could not be observed, in plain words
    facts: dict[str, float | str | bool] = field(default_factory=dict)
    inputs: list[TensorFacts] = field(default_factory=list)  # what the outermost models are given
    targets: list[TensorFacts] = field(default_factory=list)  # what the losses compare with
    evaluations: list[Evaluation] = field(default_factory=list)  # one per line that evaluates between steps
    excerpts: list[Excerpt] = field(default_factory=list)  # the user's lines around every place that can be named

    def track(self, site: Site, stat: Stat) -> Track | None:
        """The track of one statistic at one site, or None where it was not taken."""
        return self.tracks.get((site, stat))

    def of_layer(self, layer: Layer, stat: Stat, role: Role = Role.OUTPUT) -> Track | None:
        """The track of a layer's activation (default) or of the gradient with respect to it."""
        return self.track(layer.site(role), stat)

    def graph_at(self, file: str | None, line: int | None) -> StepGraph | None:
        """The first captured graph with an operation on this line of the user's; the first of all where none has."""
        return next((graph for graph in self.graphs if graph.holds(file, line)), self.graph)

    def of_parameter(self, name: str, stat: Stat, role: Role = Role.WEIGHT) -> Track | None:
        """The track of a parameter's value (default), gradient or update."""
        parameter = self.parameters.get(name)
        return None if parameter is None else self.track(parameter.site(role), stat)

    def update_ratio(self, name: str) -> Track | None:
        """rms(applied update) / rms(weight) of a parameter per sampled step; None where either was not recorded.

        Source: CS231n's notes, ratio of updates to weights; healthy is about 1e-3. Steps where the weight is all zero are left out.
        """
        update = self.of_parameter(name, Stat.RMS, Role.UPDATE)
        weight = self.of_parameter(name, Stat.RMS, Role.WEIGHT)
        if update is None or weight is None:
            return None
        steps, moved, scale = shared(update, weight)
        kept = scale > 0
        return Track(steps[kept], moved[kept] / scale[kept]) if kept.any() else None

    @property
    def loss(self) -> Series | None:
        """The loss of the training when there is one kind of loss; None when there are several (GAN, actor and critic)."""
        return next(iter(self.losses.values())) if len(self.losses) == 1 else None

    def layer_at(self, path: str) -> Layer | None:
        """The first layer with this module path."""
        return next((layer for layer in self.layers if layer.path == path), None)

    def of_kind(self, *kinds: Kind) -> list[Layer]:
        """The layers of the given kinds, in order of execution."""
        return [layer for layer in self.layers if layer.kind in kinds]
