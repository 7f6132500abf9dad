"""What to say about dead units: how many, since when, by which cause, and what helps."""

from __future__ import annotations

import math
import re

from netdoctor.checks.signal import outcome
from netdoctor.checks.signal.initialisation import expression
from netdoctor.checks.training.optimizer_line import with_lr
from netdoctor.checks.units.liveness import Liveness
from netdoctor.checks.units.window import entering_at, value_at
from netdoctor.finding import Evidence, Fix, Reach
from netdoctor.recording import Recording, Role, Stat
from netdoctor.trend import Trend

NEGATIVE = 2.0  # standard deviations: a mean so far under 0 leaves 2 % of a normal distribution above it
LARGE_UPDATE = 0.1  # two decades over the healthy update ratio of 1e-3 (CS231n)
LISTED = 6  # layers named in a sentence


def title(first: Liveness, layers: int) -> str:
    """One line with the number and the moment."""
    when = "from the start" if first.from_start else f"since step {first.died_after}"
    more = f", and {layers - 1} more layer{'s' if layers > 2 else ''}" if layers > 1 else ""
    return f"{int(first.dead.sum())} of {len(first.dead)} units of {first.layer.spoken} are dead {when}{more}"


def evidence(first: Liveness, limit: float) -> tuple[Evidence, ...]:
    """Share of dead units, how much was looked at, and the gradient of the incoming weights."""
    site = first.layer.site(Role.OUTPUT)
    found = [
        Evidence(
            f"dead units of {first.layer.spoken}", 100 * first.share, "≥", 100 * limit, "%", site, Stat.UNIT_ACTIVE
        ),
        Evidence("samples per unit looked at", first.samples, "≥", 256.0, "", site, Stat.SAMPLES),
    ]
    if math.isfinite(first.zero_gradient):
        found.append(Evidence("dead units without any weight gradient", 100 * first.zero_gradient, "≥", 50.0, "%"))
    return tuple(found)


def explanation(recording: Recording, first: Liveness, sick: list[Liveness], trend: Trend) -> str:
    """What was seen, why, what it means for the other layers, and what the loss says."""
    seen = (
        f"Not one value other than 0 for any of {first.samples:.0f} samples in {first.steps} sampled steps from step "
        f"{first.first_step} on. A ReLU has no gradient there, so no update brings these units back."
    )
    return " ".join(filter(None, (seen, _cause(recording, first), _others(first, sick), outcome.words(trend))))


def fixes(recording: Recording, first: Liveness) -> tuple[Fix, ...]:
    """By when they died: bias and initialisation, or the learning rate; then the rectifier that cannot die."""
    leaky = Fix("leaky-relu", "Use a LeakyReLU: it keeps a small gradient below 0.", _leaky(first), Reach.MODEL)
    if first.from_start:
        return (*_initialise(recording, first), leaky)
    return (*_slower(recording, first), leaky)


def _cause(recording: Recording, first: Liveness) -> str:
    return _at_start(recording, first) if first.from_start else _at_update(recording, first)


def _at_start(recording: Recording, first: Liveness) -> str:
    bias = _bias(recording, first)
    mean, std = entering_at(recording, first.layer, 0)
    if math.isfinite(mean) and mean < -NEGATIVE * std:
        offset = (
            f"; the bias of {first.feeder.spoken} starts at {bias:.3g}"
            if first.feeder and _by_bias(recording, first)
            else ""
        )
        return (
            f"They never fired: what goes into the ReLU has mean {mean:.3g} and standard deviation {std:.3g}{offset}."
        )
    if _by_bias(recording, first) and first.feeder is not None:
        return f"They never fired: the bias of {first.feeder.spoken} starts at {bias:.3g}."
    return "They never fired: initialisation, or the scale of the input, keeps what goes into the ReLU below 0."


def _at_update(recording: Recording, first: Liveness) -> str:
    step = first.died_after
    ratio = value_at(recording.update_ratio(first.feeder.weight), step) if first.feeder else math.nan
    lr = _lr(recording, step)
    rate = f" The learning rate was {lr:.3g}." if math.isfinite(lr) else ""
    if ratio > LARGE_UPDATE and first.feeder is not None:
        return (
            f"They fired until step {step}: the update there was {ratio:.3g} times the scale of {first.feeder.weight} "
            f"(healthy: about 1e-3) and pushed what goes into the ReLU below 0.{rate}"
        )
    return f"They fired until step {step}; an update then pushed what goes into the ReLU below 0.{rate}"


def _others(first: Liveness, sick: list[Liveness]) -> str:
    later = [f"{item.layer.name} ({100 * item.share:.0f} %)" for item in sick if item is not first]
    if not later:
        return ""
    more = f" and {len(later) - LISTED} more" if len(later) > LISTED else ""
    follows = ", where its input is all 0" if first.share == 1 else ""
    return f"Dead units as well in {', '.join(later[:LISTED])}{more}{follows}."


def _bias(recording: Recording, first: Liveness) -> float:
    track = recording.of_parameter(first.feeder.bias, Stat.MEAN) if first.feeder else None
    return math.nan if track is None else track.first


def _by_bias(recording: Recording, first: Liveness) -> bool:
    """Whether the bias makes at least half of the offset that keeps the input of the ReLU below 0."""
    bias, (mean, _) = _bias(recording, first), entering_at(recording, first.layer, 0)
    return bias < 0 and (bias <= mean / 2 if mean < 0 else bias <= -1)


def _lr(recording: Recording, step: int) -> float:
    series = recording.scalars.get("lr")
    known = [] if series is None else list(series.values[series.steps <= step])
    return float(known[-1]) if known else math.nan


def _initialise(recording: Recording, first: Liveness) -> tuple[Fix, ...]:
    fed = first.feeder
    weight = _variable(recording, fed.weight) if fed else ""
    weight = weight or _in_line(first)
    bias = _variable(recording, fed.bias) if fed and fed.bias else ""
    code = f'torch.nn.init.kaiming_normal_({weight}, nonlinearity="relu")' if weight else ""
    if bias and _by_bias(recording, first):
        zero = Fix("zero-bias", "Start the bias at 0.", f"torch.nn.init.zeros_({bias})", Reach.MODEL)
        return zero, Fix("variance-scaling-init", "Initialise the incoming weights for a ReLU.", code, Reach.MODEL)
    return (Fix("variance-scaling-init", "Initialise the incoming weights for a ReLU.", code, Reach.MODEL),)


def _in_line(first: Liveness) -> str:
    """The weight, with how its fan is counted, that the rectifier's own line multiplies with; "" where it holds none."""
    text = first.layer.source.text if first.layer.source is not None else ""
    product = re.search(r"@ *([\w.]+(?:\[\w+\])?)", text)  # x @ weight: rows are inputs
    linear = re.search(r"\blinear\([^(),]+, *([\w.]+(?:\[\w+\])?)", text)
    return f'{product[1]}, mode="fan_out"' if product else linear[1] if linear else ""


def _variable(recording: Recording, name: str) -> str:
    """The parameter as Python; "" where it has a made-up name (a loose tensor of a functional model)."""
    parts = name.split(".")
    if not all(part.isdigit() or part.isidentifier() for part in parts):
        return ""
    return expression(recording, name) if len(parts) > 1 else name


def _slower(recording: Recording, first: Liveness) -> tuple[Fix, ...]:
    if not recording.optimizers:
        return ()
    parameter = recording.parameters.get(first.feeder.weight) if first.feeder else None
    index = parameter.optimizer if parameter is not None and parameter.optimizer is not None else 0
    optimizer = recording.optimizers[min(index, len(recording.optimizers) - 1)]
    if not math.isfinite(optimizer.lr):
        return ()
    lr = optimizer.lr / 10
    says = f"Lower the learning rate to {lr:g}, or warm it up: the units died in an update."
    return (Fix("lower-lr", says, with_lr(optimizer, lr), Reach.RUN),)


def _leaky(first: Liveness) -> str:
    text = first.layer.source.text if first.layer.source is not None else ""
    module = re.sub(r"\bReLU6?\((inplace=(?:True|False))?\)", _leaky_module, text)
    if module != text:
        return module
    call = re.sub(r"\b(?:F|functional)\.relu6?\(", "F.leaky_relu(", text)
    call = call if call != text else re.sub(r"\btorch\.relu\(", "torch.nn.functional.leaky_relu(", text)
    return (
        call
        if text and call != text
        else "nn.LeakyReLU(0.01)  # in place of nn.ReLU(); F.leaky_relu in place of F.relu"
    )


def _leaky_module(found: re.Match[str]) -> str:
    return f"LeakyReLU(0.01{', ' + found[1] if found[1] else ''})"
