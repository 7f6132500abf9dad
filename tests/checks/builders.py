"""A fluent builder of hand-made recordings, so that a check can be tested without torch.

    recording = (
        Builder(steps=40)
        .linear("body.0", fan_in=64, units=32, rms=1.0, weight_rms=0.1, update=1e-4)
        .activation("body.1", "ReLU", units=32, rms=0.6)
        .optimizer("SGD", lr=0.1)
        .loss(lambda step: 2.3 * 0.99**step)
        .done()
    )

Wherever a value over steps is asked for, a number (constant), a function of the step, or a sequence (one per sampled
step) will do; `UNIT_*` statistics take a vector (the same at each step), a function that returns one, or an array
(steps, units).

A graph is written value by value; `value` and `operation` return the index of the (first) value made, not the builder:

    build = Builder()
    x = build.value((32, 10))
    p = build.operation("softmax", x, module="head", dim=-1)
    build.backward(build.operation("cross_entropy", p, build.value((32,), "int64"), shape=()))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from netdoctor.graph import Operation, StepGraph, Value
from netdoctor.recording import (
    Arm,
    Event,
    Kind,
    Layer,
    Optimizer,
    Origin,
    Parameter,
    Recording,
    Role,
    Series,
    Site,
    SourceLine,
    Stat,
    Track,
)

Curve = float | Callable[[int], Any] | Sequence[float] | NDArray[Any]

_KINDS = {
    "Linear": Kind.LINEAR,
    "Conv": Kind.LINEAR,
    "linear": Kind.LINEAR,
    "conv": Kind.LINEAR,
    "matmul": Kind.LINEAR,
    "ReLU": Kind.ACTIVATION,
    "LeakyReLU": Kind.ACTIVATION,
    "Sigmoid": Kind.ACTIVATION,
    "Tanh": Kind.ACTIVATION,
    "GELU": Kind.ACTIVATION,
    "SiLU": Kind.ACTIVATION,
    "ELU": Kind.ACTIVATION,
    "relu": Kind.ACTIVATION,
    "tanh": Kind.ACTIVATION,
    "sigmoid": Kind.ACTIVATION,
    "gelu": Kind.ACTIVATION,
    "BatchNorm": Kind.NORM,
    "LayerNorm": Kind.NORM,
    "GroupNorm": Kind.NORM,
    "LSTM": Kind.RECURRENT,
    "GRU": Kind.RECURRENT,
    "RNN": Kind.RECURRENT,
    "MultiheadAttention": Kind.ATTENTION,
    "Embedding": Kind.EMBEDDING,
    "Dropout": Kind.DROPOUT,
    "Softmax": Kind.SOFTMAX,
    "softmax": Kind.SOFTMAX,
}


def sampled(steps: int) -> NDArray[np.int64]:
    """The steps that capture samples in a run of `steps`: 0 to 7, then each about 1.1 times the one before."""
    out = list(range(min(steps, 8)))
    while out and (following := max(out[-1] + 1, int(out[-1] * 1.1))) < steps:
        out.append(following)
    return np.asarray(out, dtype=np.int64)


def kind_of(type_: str) -> Kind:
    """The kind of a layer from its type's name; the longest prefix decides, OTHER when none fits."""
    fitting = [prefix for prefix in _KINDS if type_.startswith(prefix)]
    return _KINDS[max(fitting, key=len)] if fitting else Kind.OTHER


def curve(values: Curve | ArrayLike, steps: NDArray[np.int64], vector: bool = False) -> NDArray[np.float64]:
    """Values at each of the steps, shape (steps,), or (steps, units) where `vector` is True."""
    if callable(values):
        return np.asarray([values(int(step)) for step in steps], dtype=np.float64)
    array = np.asarray(values, dtype=np.float64)
    if vector:
        return np.tile(array, (len(steps), 1)) if array.ndim == 1 else array
    return np.full(len(steps), float(array)) if array.ndim == 0 else array


class Builder:
    """Builds one recording; every method but `value`, `operation` and `done` returns the builder."""

    def __init__(self, steps: int = 40, file: str = "train.py") -> None:
        self.recording = Recording(steps=steps)
        self.steps = sampled(steps)
        self.every = np.arange(steps, dtype=np.int64)
        self.file = file

    # --- layers and parameters -------------------------------------------------------------------------------------

    def layer(
        self,
        path: str,
        type_: str,
        *,
        kind: Kind | None = None,
        units: int = 16,
        call: int = 0,
        rms: Curve | None = None,
        gradient: Curve | None = None,
        stats: dict[Stat, Curve] | None = None,
        line: int | None = None,
        text: str = "",
        **fields: Any,
    ) -> Builder:
        """A layer; `rms` is its activation's scale, `gradient` that of the gradient, `stats` any other."""
        source = None if line is None else SourceLine(self.file, line, text)
        order = len(self.recording.layers)
        layer = Layer(path, type_, kind or kind_of(type_), order, call, units=units, source=source, **fields)
        self.recording.layers.append(layer)
        if rms is not None:
            self.track(layer.site(Role.OUTPUT), Stat.RMS, rms)
        if gradient is not None:
            self.track(layer.site(Role.OUTPUT_GRADIENT), Stat.RMS, gradient)
        for stat, values in (stats or {}).items():
            self.track(layer.site(Role.OUTPUT), stat, values)
        return self

    def linear(
        self,
        path: str,
        type_: str = "Linear",
        *,
        fan_in: int = 16,
        units: int = 16,
        bias: bool = True,
        shape: tuple[int, ...] | None = None,
        weight_rms: Curve | None = None,
        weight_gradient: Curve | None = None,
        update: Curve | None = None,
        optimizer: int | None = 0,
        requires_grad: bool = True,
        **layer: Any,
    ) -> Builder:
        """A layer with weight (and bias) parameters and the RMS of the weight, of its gradient and of its update."""
        weight, named_bias = f"{path}.weight", f"{path}.bias" if bias else ""
        own: dict[str, Any] = {
            "module": path,
            "module_type": type_,
            "optimizer": optimizer,
            "requires_grad": requires_grad,
        }
        self.parameter(weight, shape or (units, fan_in), rms=weight_rms, gradient=weight_gradient, update=update, **own)
        if bias:
            self.parameter(named_bias, (units,), **own)
        layer.setdefault("fan_out", units)
        return self.layer(path, type_, units=units, weight=weight, bias=named_bias, fan_in=fan_in, **layer)

    def activation(self, path: str, type_: str = "ReLU", **layer: Any) -> Builder:
        """An activation layer; `active` may be given: the UNIT_ACTIVE track, and `samples` the values per unit."""
        stats = dict(layer.pop("stats", {}))
        for key, stat in (("active", Stat.UNIT_ACTIVE), ("saturated", Stat.UNIT_SATURATED), ("samples", Stat.SAMPLES)):
            if key in layer:
                stats[stat] = layer.pop(key)
        return self.layer(path, type_, stats=stats, **layer)

    def parameter(
        self,
        name: str,
        shape: tuple[int, ...] = (16, 16),
        *,
        module: str | None = None,
        module_type: str = "Linear",
        dtype: str = "float32",
        optimizer: int | None = 0,
        rms: Curve | None = None,
        gradient: Curve | None = None,
        update: Curve | None = None,
        **fields: Any,
    ) -> Builder:
        """A parameter, with the RMS of its value, gradient and applied update where given."""
        path = name.rpartition(".")[0] if module is None else module
        self.recording.parameters[name] = Parameter(
            name, path, module_type, shape, dtype, optimizer=optimizer, **fields
        )
        for values, role in ((rms, Role.WEIGHT), (gradient, Role.WEIGHT_GRADIENT), (update, Role.UPDATE)):
            if values is not None:
                self.of_parameter(name, Stat.RMS, values, role)
        return self

    def optimizer(
        self, type_: str = "SGD", lr: float = 0.1, *, parameters: Sequence[str] | None = None, **options: Any
    ) -> Builder:
        """An optimizer over the named parameters (default: all so far that require grad), and its "lr" scalar."""
        names = parameters or [n for n, p in self.recording.parameters.items() if p.requires_grad]
        index, line = len(self.recording.optimizers), options.pop("line", None)
        source = None if line is None else SourceLine(self.file, line)
        group = {"lr": lr, **options}
        made = Optimizer(index, type_, (group,), tuple(names), source, steps=self.recording.steps)
        self.recording.optimizers.append(made)
        return self if "lr" in self.recording.scalars else self.scalar("lr", lr)

    # --- what was measured -----------------------------------------------------------------------------------------

    def track(self, site: Site, stat: Stat, values: Curve, steps: Sequence[int] | None = None) -> Builder:
        """A track at the sampled steps, or at the steps given."""
        at = self.steps if steps is None else np.asarray(steps, dtype=np.int64)
        vector = stat.name.startswith("UNIT_")
        self.recording.tracks[(site, stat)] = Track(at, curve(values, at, vector))
        return self

    def of_layer(self, path: str, stat: Stat, values: Curve, role: Role = Role.OUTPUT, call: int = 0) -> Builder:
        """A track of a layer that was added before."""
        layer = next(x for x in self.recording.layers if x.path == path and x.call == call)
        return self.track(layer.site(role), stat, values)

    def of_parameter(self, name: str, stat: Stat, values: Curve, role: Role = Role.WEIGHT) -> Builder:
        """A track of a parameter that was added before."""
        return self.track(self.recording.parameters[name].site(role), stat, values)

    def loss(self, values: Curve, label: str = "loss") -> Builder:
        """The loss of every step."""
        self.recording.losses[label] = Series(self.every, curve(values, self.every))
        return self

    def scalar(self, name: str, values: Curve, steps: Sequence[int] | None = None) -> Builder:
        """A scalar of every step ("lr", "gradient norm", "loss scale", "evaluation loss"), or of the steps given."""
        at = self.every if steps is None else np.asarray(steps, dtype=np.int64)
        self.recording.scalars[name] = Series(at, curve(values, at))
        return self

    # --- what happened ---------------------------------------------------------------------------------------------

    def event(self, step: int, kind: str, detail: str = "", value: float = float("nan"), line: int = 0) -> Builder:
        """One event, counted."""
        source = SourceLine(self.file, line) if line else None
        self.recording.events.append(Event(step, kind, detail, value, source))
        return self.count(kind, self.recording.counts.get(kind, 0) + 1)

    def each_step(self, *kinds: str) -> Builder:
        """These events in this order in each step, e.g. `each_step("zero_grad", "backward", "step")`."""
        for step in range(self.recording.steps):
            for kind in kinds:
                self.event(step, kind)
        return self

    def count(self, kind: str, times: int) -> Builder:
        """How often a kind of event happened."""
        self.recording.counts[kind] = times
        return self

    def facts(self, **facts: float | str | bool) -> Builder:
        """Facts such as `loss_family="cross_entropy"`, `pretrained=True`."""
        self.recording.facts.update(facts)
        return self

    def origin(self, phase: str, kind: str = "NaN", step: int = 0, text: str = "", line: int = 12, **f: Any) -> Builder:
        """Where the first NaN or Inf was born; `text` is the user's line."""
        source = SourceLine(self.file, line, text) if text else None
        self.recording.origin = Origin(phase, kind, step, source=source, **f)
        return self

    def arm(
        self,
        name: str,
        losses: ArrayLike = (),
        *,
        profile: dict[str, tuple[float, float]] | None = None,
        curves: dict[str, ArrayLike] | None = None,
        failure: str = "",
        **facts: float | str | bool,
    ) -> Builder:
        """An experiment's run, e.g. `arm("trial/lr x0.1", losses, lr=0.01)`."""
        kept = {key: np.asarray(values, dtype=np.float64) for key, values in (curves or {}).items()}
        values = np.asarray(losses, dtype=np.float64)
        self.recording.arms[name] = Arm(name, values, 0.0, facts, profile or {}, kept, failure)
        return self

    # --- the graph of the first step -------------------------------------------------------------------------------

    @property
    def graph(self) -> StepGraph:
        """The graph, made on first use."""
        if self.recording.graph is None:
            self.recording.graph = StepGraph()
            self.recording.graphs.append(self.recording.graph)
        return self.recording.graph

    def value(
        self, shape: tuple[int, ...] = (), dtype: str = "float32", *, origin: str = "input", **fields: Any
    ) -> int:
        """A value that no captured operation made (input, parameter, buffer); returns its index."""
        index = len(self.graph.values)
        self.graph.values.append(Value(index, shape, dtype, origin, **fields))
        return index

    def operation(
        self,
        name: str,
        *inputs: int,
        shape: tuple[int, ...] | None = None,
        dtype: str | None = None,
        module: str = "",
        module_type: str = "",
        call: int = 0,
        line: int = 0,
        out: dict[str, Any] | None = None,
        grad_enabled: bool = True,
        text: str = "",
        outer: str = "",
        **attributes: float | str | bool,
    ) -> int:
        """An operation; returns the index of the value it makes. Shape and dtype default to the first input's.

        `out` sets fields of the made value (low, high, trained, ...); `trained` defaults to whether any input is.
        """
        graph, first = self.graph, self.graph.values[inputs[0]] if inputs else None
        fields: dict[str, Any] = {"trained": any(self._trained(i) for i in inputs), **(out or {})}
        fields.setdefault("requires_grad", fields["trained"] and grad_enabled)
        index, made = len(graph.operations), len(graph.values)
        shape = shape if shape is not None else (first.shape if first else ())
        dtype = dtype or (first.dtype if first else "float32")
        graph.values.append(Value(made, shape, dtype, "operation", index, **fields))
        file = self.file if line else ""
        at: dict[str, Any] = {
            "call": call,
            "file": file,
            "line": line,
            "grad_enabled": grad_enabled,
            "inside": bool(module or outer),
            "text": text,
            "outer": outer,
        }
        graph.operations.append(Operation(index, name, module, module_type, inputs, (made,), attributes, **at))
        return made

    def weight(self, name: str, shape: tuple[int, ...] = (16, 16)) -> int:
        """A trainable parameter as a value of the graph; returns its index."""
        return self.value(shape, origin="parameter", name=name, requires_grad=True, trained=True)

    def backward(self, value: int) -> Builder:
        """Marks the value that `backward` was called on."""
        self.graph.loss = value
        return self

    def _trained(self, index: int) -> bool:
        value = self.graph.values[index]
        return value.trained or (value.origin == "parameter" and value.requires_grad)

    def done(self) -> Recording:
        """The recording."""
        return self.recording
