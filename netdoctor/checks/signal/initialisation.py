"""What scale a weight should start with, how far it is off, and the code that mends it.

Accepted are all scales between the smallest and the largest of the common schemes, by fan: PyTorch's default (of
standard deviation 1/sqrt(3 fan_in)), LeCun, Xavier/Glorot, He/Kaiming in both modes, up to tanh's gain of 5/3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from netdoctor.checks.signal import profile as depth
from netdoctor.finding import Fix, Reach
from netdoctor.recording import Kind, Layer, Recording, Stat

GAINS = {"tanh": 5 / 3, "relu": math.sqrt(2), "sigmoid": 1.0, "selu": 3 / 4}  # torch.nn.init.calculate_gain
_SMOOTH = {"gelu", "silu", "swish", "mish", "elu", "celu", "softplus", "hardswish", "glu"}
RELUS = frozenset(_SMOOTH | {"relu", "relu6", "leakyrelu", "leaky_relu", "prelu", "rrelu"})
USUAL = 1.6  # off the gain of sqrt(2): tells He initialisation from PyTorch's default, 2.4 times smaller
LISTED = 8  # more layers than this make a list that nobody pastes
_BETWEEN = frozenset({Kind.NORM, Kind.DROPOUT, Kind.OTHER})
_POOLS = {"max_pool1d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"}
_NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "dropout", "dropout2d", "feature_dropout"}
_SHAPES = {"reshape", "view", "flatten", "permute", "transpose", "contiguous", "squeeze", "unsqueeze"}
_STEPS = frozenset(_POOLS | _NORMS | _SHAPES | {"add", "__add__", "mul", "__mul__"})


@dataclass(frozen=True, slots=True)
class Scale:
    """A weight layer at step 0: scale and mean of its weights, and the band [low, high] of the common schemes."""

    layer: Layer
    rms: float
    mean: float
    low: float
    high: float

    @property
    def off(self) -> float:
        """How many times above the band (over 1) or below it (under 1) the scale lies; 1 within the band.

        A mean that is not zero adds up over the fan: mean x fan_in is compared with He's gain of sqrt(2).
        """
        drift = abs(self.mean) * self.layer.fan_in / math.sqrt(2) if abs(self.mean) > self.rms / 2 else 0.0
        if self.rms > self.high or drift > 1:
            return max(self.rms / self.high, drift)
        return min(self.rms / self.low, 1.0)

    @property
    def gain(self) -> float:
        """The scale of the output over that of a zero-mean input: rms x sqrt(fan_in)."""
        return self.rms * math.sqrt(self.layer.fan_in)


def scales(recording: Recording) -> list[Scale]:
    """The weights of linear layers before the first update, once each; frozen and zero ones are left out."""
    found: dict[str, Scale] = {}
    for layer in recording.of_kind(Kind.LINEAR):
        parameter = recording.parameters.get(layer.weight)
        track = recording.of_parameter(layer.weight, Stat.RMS)
        if parameter is None or track is None or track.steps[0] != 0 or layer.fan_in < 1 or layer.weight in found:
            continue
        rms, mean = track.values[0], depth.at(recording.of_parameter(layer.weight, Stat.MEAN), 0)
        if parameter.requires_grad and 0 < rms < math.inf:
            found[layer.weight] = Scale(
                layer, float(rms), mean or 0.0, *band(layer.fan_in, layer.fan_out or layer.fan_in)
            )
    return list(found.values())


def band(fan_in: int, fan_out: int) -> tuple[float, float]:
    """The smallest and the largest standard deviation of the common schemes for a weight with these fans."""
    low = min(1 / math.sqrt(3 * fan_in), math.sqrt(2 / (fan_in + fan_out)), 1 / math.sqrt(fan_out))
    return low, max(GAINS["tanh"] / math.sqrt(fan_in), math.sqrt(2 / fan_out))


def activation_after(recording: Recording, layer: Layer) -> str:
    """The type of the activation behind a layer, in lower case; "" when none follows.

    The captured graph decides (through norms, dropout and reshapes), the order of execution where there is none.
    """
    graph, kinds = recording.graph, {x.type.lower() for x in recording.of_kind(Kind.ACTIVATION)}
    own = None if graph is None else next((o for o in graph.operations if _makes(o.module, o.name, layer)), None)
    if graph is not None and own is not None:
        after = graph.follow(own, lambda o: o.name in RELUS | kinds, _STEPS)
        return "" if after is None else after.name
    for later in recording.layers[recording.layers.index(layer) + 1 :]:
        if later.kind is Kind.ACTIVATION:
            return later.type.lower()
        if later.kind not in _BETWEEN:
            break
    return ""


def normalised(recording: Recording, layer: Layer) -> Layer | None:
    """The normalisation directly behind a layer, or None."""
    index = recording.layers.index(layer) + 1
    return next((later for later in recording.layers[index : index + 1] if later.kind is Kind.NORM), None)


def fix(recording: Recording, layers: Sequence[Layer]) -> Fix:
    """The torch.nn.init calls for exactly these layers, by the activation behind each."""
    calls: dict[str, list[str]] = {}
    for layer in dict.fromkeys(layers):
        table = layer.kind is Kind.EMBEDDING
        call = "torch.nn.init.normal_({}, std=0.1)" if table else _call(activation_after(recording, layer))
        name = layer.weight or f"{layer.path}.weight"
        parameter = recording.parameters.get(name)
        loose = parameter is not None and not parameter.module_type  # a tensor of the script's own, under its own name
        if loose and parameter is not None and parameter.shape[0] == layer.fan_in != parameter.shape[-1]:
            call = call.replace("({}", '({}, mode="fan_out"') if "kaiming" in call else call  # x @ w: rows are inputs
        written = name if loose else expression(recording, name)
        if written not in calls.setdefault(call, []):
            calls[call].append(written)
    lines = [line for call, names in calls.items() for line in _lines(call, names)]
    says = "Initialise these weights for their fan and the activation behind them, before the optimizer is made."
    if all(layer.kind is Kind.EMBEDDING for layer in layers):
        says = "Start these tables at random, before the optimizer is made."
    return Fix("variance-scaling-init", says, "\n".join(lines), Reach.MODEL)


def remedies(recording: Recording, layers: Sequence[Layer], *, grows: bool) -> tuple[Fix, ...]:
    """The initialisation, and what stands between the layers, which comes first for weights of a usual scale."""
    own = {s.layer.weight: s for s in scales(recording)}
    gains = [own[x.weight].gain / GAINS["relu"] for x in layers[:-1] if x.weight in own]
    usual = bool(gains) and (max(gains) <= USUAL if grows else min(gains) >= 1 / USUAL)
    weights = fix(recording, [layer for layer in layers if layer.weight])
    return (RESCALE, weights) if usual else (weights, RESCALE)


def expression(recording: Recording, name: str) -> str:
    """A parameter's name as the reader's Python: "body.3.weight" becomes "net.body[3].weight"."""
    start, path = owner(recording, name)
    return start + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split("."))


def owner(recording: Recording, name: str) -> tuple[str, str]:
    """The reader's variable that holds a parameter's model ("model" when unknown), and the parameter's path inside of it."""
    parameter = recording.parameters.get(name)
    label = parameter.model if parameter is not None else ""
    if label and name.startswith(f"{label}."):
        return label, name.removeprefix(f"{label}.")
    return str(recording.facts.get("model_variable", "")) or "model", name


def described(found: Scale) -> str:
    """A weight that starts off scale in one line, with the numbers."""
    mean = f", mean {found.mean:.2g}" if abs(found.mean) > found.rms / 2 else ""
    size, schemes = "large" if found.off > 1 else "small", f"{found.low:.2g} to {found.high:.2g}"
    return f"the weights of {found.layer.name} start too {size}: {found.rms:.2g}{mean}; common schemes give {schemes}"


def edge(found: Scale) -> tuple[str, float]:
    """The side and the edge of the band of common schemes that a weight lies beyond."""
    return (">", found.high) if found.rms > found.high else ("<", found.low if found.off < 1 else found.high)


def advise(treatment: str, says: str, code: str = "", reach: Reach = Reach.MODEL) -> Fix:
    """A fix in one line."""
    return Fix(treatment, says, code, reach)


def _makes(module: str, name: str, layer: Layer) -> bool:
    return module == layer.path and (name.startswith(("linear", "conv")) or name == layer.type)


def _call(activation: str) -> str:
    if activation in RELUS:
        return 'torch.nn.init.kaiming_normal_({}, nonlinearity="relu")'
    if activation in {"tanh", "hardtanh"}:
        return 'torch.nn.init.xavier_normal_({}, gain=torch.nn.init.calculate_gain("tanh"))'
    if activation == "selu":
        return 'torch.nn.init.kaiming_normal_({}, nonlinearity="linear")'
    return "torch.nn.init.xavier_normal_({})"


def _lines(call: str, names: list[str]) -> list[str]:
    if len(names) <= 2:
        return [call.format(name) for name in names]
    if len(names) <= LISTED:
        listed = "".join(f"    {name},\n" for name in names)
        return [f"for weight in (\n{listed}):\n    {call.format('weight')}"]
    model = names[0].partition(".")[0] if not names[0].startswith("self.") else ".".join(names[0].split(".")[:2])
    ends = tuple(sorted({name.removeprefix(f"{model}.").replace("[", ".").replace("]", "") for name in names}))
    return [
        f"names = {set(ends)!r}".replace("'", '"'),
        f"for name, weight in {model}.named_parameters():\n    if name in names:\n        " + call.format("weight"),
    ]


NORMALISE = advise(
    "add-normalisation", "Once the initialisation is right: a LayerNorm or BatchNorm between the layers."
)
SHORTCUTS = advise(
    "add-shortcuts", "Give each pair of layers an identity shortcut, so that depth cannot wear the gradient out."
)
LOWER_LR = advise("lower-lr", "Lower the learning rate ten times.", reach=Reach.RUN)
CLIP = advise(
    "clip-gradients",
    "Clip the gradient norm (1, 5 or 10) between backward and step; it contains spikes, it does not mend the cause.",
    "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)",
    Reach.RUN,
)
RESCALE = advise(
    "rescale-between-layers",
    "Bring what scales the signal between the layers (a factor, a sum over neighbours or branches) to unit scale.",
)
RELU = advise("relu-for-sigmoid", "Use ReLU, with He initialisation, between the hidden layers.", "nn.ReLU()")
