"""How strongly weight decay pulls at the weights, beside what the gradient does to them."""

from __future__ import annotations

from collections.abc import Mapping

from netdoctor.checks.data.harm import constant_loss
from netdoctor.recording import Array, Optimizer, Parameter, Recording, Role, Stat, Track, median
from netdoctor.trend import judge

DECOUPLED = frozenset({"AdamW", "NAdamW", "Lion"})


def pulls(recording: Recording, early: bool = False) -> dict[str, float]:
    """Weight matrix → pull of its weight decay over that of the gradient, median over the last (or `early`: first) third of the
    observed steps.

    Coupled decay (SGD, Adam) adds decay x weight to the gradient: their scales are compared. Decoupled decay (AdamW) takes
    lr x decay x weight from the weight itself: that is compared with the whole update.
    """
    found = {}
    for optimizer in recording.optimizers:
        for name in optimizer.parameters:
            parameter = recording.parameters.get(name)
            group = _group(optimizer)
            if parameter is not None and len(parameter.shape) > 1 and float(group.get("weight_decay", 0.0)) > 0:
                pull = _pull(recording, parameter, optimizer, group, early)
                if pull is not None:
                    found[name] = pull
    return found


def _group(optimizer: Optimizer) -> Mapping[str, float | str | bool]:
    """The options of the group with the strongest decay: which parameter lies in which group is not recorded."""
    return max(optimizer.groups, key=lambda group: float(group.get("weight_decay", 0.0)), default={})


def _pull(
    recording: Recording,
    parameter: Parameter,
    optimizer: Optimizer,
    group: Mapping[str, float | str | bool],
    early: bool,
) -> float | None:
    decoupled = optimizer.type in DECOUPLED or bool(group.get("decoupled_weight_decay"))
    factor = float(group["weight_decay"]) * (float(group.get("lr", 0.0)) if decoupled else 1.0)
    other = recording.of_parameter(parameter.name, Stat.RMS, Role.UPDATE if decoupled else Role.WEIGHT_GRADIENT)
    weight = recording.of_parameter(parameter.name, Stat.RMS)
    if other is None or weight is None:
        return None
    return factor * median(_third(weight, early)) / max(median(_third(other, early)), 1e-30)


def _third(track: Track, early: bool) -> Array:
    count = max(1, len(track.values) // 3)
    return track.values[:count] if early else track.values[-count:]


def loss_left(recording: Recording) -> float:
    """What is left of the loss at the end: of that of a constant prediction, or of the start where that is not known."""
    trend, constant = judge(recording), constant_loss(recording)
    scale = constant if constant > 0 else trend.start  # NaN compares false
    return trend.end / scale if scale > 0 else float("nan")


def weaker(decay: float, optimizer: str) -> float:
    """A hundredth of a weight decay, and no more than is usual: 1e-2 where it is decoupled (AdamW), 1e-3 in the gradient."""
    return min(decay / 100, 1e-2 if optimizer in DECOUPLED else 1e-3)
