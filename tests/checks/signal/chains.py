"""Chains of layers with a given scale per layer, as hand-made recordings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from netdoctor.check import Check
from netdoctor.finding import Finding
from netdoctor.recording import Recording, Stat
from tests.checks.builders import Builder, Curve

FLAT: Curve = 2.3
FALLING: Curve = [2.3 * 0.95**step for step in range(60)]


def chain(
    levels: Sequence[Curve],
    loss: Curve = FLAT,
    *,
    activation: str = "ReLU",
    steps: int = 60,
    weight: Curve = 0.1,
    **linear: Any,
) -> Builder:
    """Layers body.0, body.2, ... whose outputs have the given scale and variation, with activations between.

    The variation over the batch follows the scale, unless `variation` gives it; `gradients` are per layer.
    """
    build = Builder(steps)
    variations = linear.pop("variation", levels)
    gradients = linear.pop("gradients", [1e-3] * len(levels))
    weights = weight if isinstance(weight, list) else [weight] * len(levels)
    for index, level in enumerate(levels):
        stats = {Stat.BATCH_STD: variations[index]}
        scales = {"weight_rms": weights[index], "weight_gradient": gradients[index]}
        build.linear(f"body.{2 * index}", rms=level, stats=stats, line=10 + index, **{**scales, **linear})
        if index < len(levels) - 1:
            build.activation(f"body.{2 * index + 1}", activation, rms=level, stats=stats)
    return build.loss(loss).facts(loss_family="cross_entropy", classes=10, loss_lower_bound=0.0)


def findings(check: Check, recording: Recording) -> list[Finding]:
    """What the check found; abstentions are left out."""
    return [said for said in check.judge(recording) if isinstance(said, Finding)]
