"""The check `lost-updates`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Role, Stat
from netdoctor.trend import judge

BITS = {"bfloat16": 8, "float16": 11}  # of the significand, the hidden one included


@dataclass(frozen=True)
class LostUpdates(Check):
    """The parameters are of half precision, and most updates are too small to change them.

    What it is: bfloat16 has 8 significant bits: what is added to a weight and is less than 1/512 of it rounds away.
    Why it hurts: the optimizer runs, gradients are fine, and the weights stay where they are.
    How it is decided: around observed steps, of the entries that have a gradient the share that came out unchanged. For
    half of the half-precision weight matrices or more it is 50 % or more (median over the last third of the run), and
    the loss does not fall, or hardly; a warning where that cannot be told, and from 90 % on even where the loss falls.
    When it stays silent: float32 parameters under autocast; steps at less than half of the highest learning rate; a loss
    at its floor; training that works with a part of its updates lost.
    Fix: float32 parameters with autocast.
    Sources: Micikevicius et al. 2018, section 3.1 (float32 master weights); Zamirai et al. 2020 (bfloat16 updates and
    stochastic rounding).
    """

    name = "lost-updates"
    needs = frozenset({Stat.ROUNDED_AWAY, Stat.RMS})
    explains = frozenset(
        {"loss-not-decreasing", "learning-rate-too-low", "cannot-overfit-tiny-batch", "underfitting", "no-gradient"}
        | {"sgd-without-momentum", "clip-too-small", "lr-decays-too-fast"}
    )

    lost: float = 0.5  # of the entries: more of the step is lost than is taken
    nearly_all: float = 0.9  # of the entries: whatever the loss does, it is not what the optimizer meant
    share: float = 0.5  # of the matrices

    def judge(self, recording: Recording) -> Iterator[Finding]:
        shares = dict(self._shares(recording))
        typical = sorted(shares.values())[int(len(shares) * (1 - self.share))] if shares else 0.0
        trend = judge(recording)
        if typical < (self.nearly_all if outcome.learns(trend) else self.lost) or trend.kind == "converged":
            return
        worst = {name: share for name, share in shares.items() if share >= self.lost}
        name = max(worst, key=lambda key: worst[key])
        parameter = recording.parameters[name]
        held = modules(recording, worst)
        layer = recording.layer_at(parameter.module)
        bits = 2 ** BITS.get(parameter.dtype, 8)
        device = recording.header.device.partition(":")[0] or "cuda"
        code = (
            f'model.float()\nwith torch.autocast("{device}", dtype=torch.bfloat16):\n    loss = criterion(model(x), y)'
        )
        site = parameter.site(Role.UPDATE)
        yield Finding(
            self.name,
            f"{100 * typical:.0f} % of the updates of {parameter.dtype} weights round away ({listed(held)})",
            Severity.ERROR if outcome.hurt(trend) else Severity.WARNING,
            f"A change of less than 1/{2 * bits} of a {parameter.dtype} weight leaves it as it is. "
            f"{outcome.words(trend)}",
            Location.at(layer.source if layer else None, held[0], step=0),
            (Evidence("updates rounded away, at worst", 100 * worst[name], "≥", 100 * self.lost, "%", site),),
            (Fix("float32-weights", "Keep the weights in float32, and compute under autocast.", code, Reach.MODEL),),
            first_step=0,
            places=tuple(worst),
            share=typical,
        )

    def _shares(self, recording: Recording) -> Iterator[tuple[str, float]]:
        """Weight matrix → share of its updates that was rounded away, median over the last third of the steps at a high rate."""
        rates = recording.scalars.get("lr")
        for name, parameter in recording.parameters.items():
            track = recording.of_parameter(name, Stat.ROUNDED_AWAY, Role.UPDATE)
            if track is None or len(parameter.shape) < 2:
                continue
            moving = np.isfinite(track.values)
            if rates is not None and rates.steps.size:  # at the end of a schedule updates may be as small as they like
                moving &= np.interp(track.steps, rates.steps, rates.values) > rates.values.max() / 2
            late = moving & (track.steps >= recording.steps * 2 / 3)  # the weights have grown by then
            moving = late if late.any() else moving
            if moving.any() and not math.isnan(middle := float(np.median(track.values[moving]))):
                yield name, middle
