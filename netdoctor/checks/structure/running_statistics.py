"""What to say of running statistics that are not those of the data: off, a matter of chance, or moved while frozen."""

from __future__ import annotations

import re

import numpy as np

from netdoctor.checks.data.harm import constant_loss
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Layer, Recording
from netdoctor.trend import LEARNED, NO_BETTER, judge

DRAWS = "final/draws"  # the arm: what evaluation gets from the statistics of each of the captured batches
USUAL = 0.1  # momentum: PyTorch's default
TURNS = 5.0  # times that what the statistics began with fell to 1/e: under 1 % of it is left
ALONE = 0.8  # momentum: the last batch outweighs all before it four times

_UPDATE = "nn.BatchNorm2d(channels, momentum=0.1)\n# or: torch.optim.swa_utils.update_bn(loader, model)"
_EVAL = "for module in backbone.modules():\n    if isinstance(module, nn.modules.batchnorm._BatchNorm):\n        module.eval()"


def off(name: str, recording: Recording, running: float, own: float, lost: Evidence) -> Finding:
    """The finding that evaluation mode gives another loss than the statistics of the batch do."""
    layer = next((x for x in recording.layers if x.type.startswith("BatchNorm")), None)
    title = "BatchNorm's running statistics are off: the model works in training mode only"
    says = (
        f"On the captured batches the trained model has a loss of {own:.4g} with the statistics of the batch, and of "
        f"{running:.4g} with the running ones, as in evaluation mode."
    )
    advice = "Let the running statistics follow, or take them anew after training."
    return _finding(name, layer, title, says, lost, Fix("batchnorm-momentum", advice, _UPDATE, Reach.MODEL))


def by_chance(name: str, recording: Recording, arm: Arm, lost: Evidence) -> Finding:
    """The finding that what evaluation gets depends on which batch was the last one."""
    momentum, size = float(arm.facts["momentum"]), float(arm.facts["samples"])
    layer = recording.layer_at(str(arm.facts["module"]))
    most = "hardly more than the last batch" if momentum >= ALONE else "little more than the last few batches"
    title = f"BatchNorm's momentum of {momentum:.3g} keeps {most}: how evaluation goes is a matter of chance"
    samples = f"{size:.0f} sample{'s' if size > 1 else ''}"
    says = (
        f"In PyTorch momentum is the weight of the new batch, in Keras that of the old ones: {100 * momentum:.3g} % of the "
        f"running statistics are those of the last batch, here of {samples}. With what each of {len(arm.losses)} batches of "
        f"{samples} leaves, the trained model has a loss of {np.mean(arm.losses):.4g} on other batches "
        f"({arm.losses.min():.4g} to {arm.losses.max():.4g}); with their average, of {float(arm.facts['averaged']):.4g}."
    )
    return _finding(name, layer, title, says, lost, _smaller(momentum, layer, recording.steps))


def frozen(name: str, recording: Recording, path: str, drift: float, limit: float) -> Finding:
    """The finding that the statistics of a frozen norm moved on."""
    says = "Its weights are frozen, but it is in training mode: what was learned with it no longer fits."
    title = f"the running mean of the frozen {path} moved by {drift:.2g} standard deviations"
    evidence = Evidence("move of the running mean, in standard deviations", drift, "≥", limit)
    fix = Fix("freeze-norms", "Keep frozen norms in evaluation mode.", _EVAL, Reach.RUN)
    return _finding(name, recording.layer_at(path), title, says, evidence, fix)


def untrained(recording: Recording) -> float:
    """The loss of a model that has learned nothing: that of the best constant prediction, or where that is unknown the first."""
    constant = constant_loss(recording)
    first = judge(recording).start if recording.loss is None else float(recording.loss.values[0])
    return constant if np.isfinite(constant) else first


def learned(recording: Recording, loss: float) -> bool:
    """Whether a training that is no better than a constant prediction by all that was seen is better by this loss.

    The trained model in evaluation mode, which is asked where losses are noisy, answers with the statistics that are in doubt.
    """
    return judge(recording).reason == NO_BETTER and loss <= LEARNED * constant_loss(recording)


def smaller(momentum: float, steps: int) -> float:
    """The momentum that is meant, where it was counted the other way round; large enough to forget its start in `steps` steps."""
    return float(f"{min(USUAL, max(1 - momentum, TURNS / max(1, steps))):.1g}")


def _smaller(momentum: float, layer: Layer | None, steps: int) -> Fix:
    new = smaller(momentum, steps)
    keras = f", which is Keras's {momentum:.3g}" if abs(new + momentum - 1) < 1e-9 else ""
    text = layer.source.text if layer is not None and layer.source is not None else ""
    line = re.sub(r"\bmomentum *= *[^,()]+(?=[,)])", f"momentum={new:g}", text)
    code = line if line != text else f"nn.{layer.type if layer else 'BatchNorm2d'}(channels, momentum={new:g})"
    return Fix("batchnorm-memory", f"Give a new batch little weight: {new:g}{keras}.", code, Reach.MODEL)


def _finding(name: str, at: Layer | None, title: str, says: str, number: Evidence, fix: Fix) -> Finding:
    where = Location.at(at.source, at.path) if at is not None else Location()
    return Finding(name, title, Severity.WARNING, says, where, (number,), (fix,), Certainty.MEASURED, share=1.0)
