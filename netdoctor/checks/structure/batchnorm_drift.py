"""BatchNorm's running statistics are not those of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.data.harm import constant_loss
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Layer, Recording
from netdoctor.trend import judge


@dataclass(frozen=True)
class BatchnormDrift(Check):
    """The running statistics that BatchNorm uses in evaluation mode are not those of the batches that it trains on.

    What it is: a momentum that never catches up (0.001) or keeps the last batch only (0.99: TensorFlow counts the other
    way round), batches of different kinds through one BatchNorm; or a loaded, frozen backbone left in training mode,
    whose statistics wander off with the new batches.
    Why it hurts: training looks fine, while every evaluation gives something else.
    How it is decided: on a copy of the trained model, dropout off, the captured batches once with their own statistics
    and once with the running ones. A warning when the latter loses half of what training had gained, or a tenth of it
    and the loss is three times the other. Of a frozen BatchNorm with loaded statistics: its running mean moved by 0.1
    deviations or more (median over channels).
    When it stays silent: fewer than 50 steps (200 with a momentum between 0.02 and 0.5: the weights of a young network
    run ahead of any running statistics); training that gained nothing; several optimizers; models whose both modes
    agree; the script's own evaluation mode in training.
    Fix: momentum = 0.1, `torch.optim.swa_utils.update_bn`; `eval()` for the norms of what is frozen.
    Sources: Ioffe and Szegedy, Batch Normalization, 2015 (section 3.1); PyTorch's BatchNorm2d on momentum; advice E-T1.
    """

    name = "batchnorm-drift"
    arms = frozenset({"final/evaluation", "final/batch statistics"})

    steps: int = 50  # with momentum 0.1 the start then counts for 0.5 %
    usual: int = 200  # where the momentum is usual: at first the weights may run away from any running statistics
    lost: float = 0.5  # of what training gained: whatever the loss, the result is no longer that of the training
    part: float = 0.1  # of the same, together with `times`: a loss from 0.01 to 0.03 alone is no harm
    times: float = 3.0  # running statistics lag a little behind: up to twice the loss was seen on healthy runs
    moved: float = 0.1  # deviations: beyond the noise of a momentum of 0.1 on batches of 16 and more

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        running, batch = (recording.arms.get(f"final/{name}") for name in ("evaluation", "batch statistics"))
        if running is None or batch is None or recording.facts.get("several_optimizers"):
            return
        if running.failure or batch.failure:
            yield Abstention(self.name, running.failure or batch.failure)
            return
        drift = float(batch.facts.get("frozen_drift", 0.0))
        if drift >= self.moved:
            yield self._frozen(recording, str(batch.facts["frozen_module"]), drift)
        if recording.steps >= (self.usual if batch.facts.get("usual_momentum") else self.steps):
            yield from self._disagree(recording, running, batch)

    def _disagree(self, recording: Recording, running: Arm, batch: Arm) -> Iterator[Finding]:
        trend, constant = judge(recording), constant_loss(recording)
        first = trend.start if recording.loss is None else float(recording.loss.values[0])
        start = constant if np.isfinite(constant) else first
        given, own = float(np.mean(running.losses)), float(np.mean(batch.losses))
        gained = start - own
        lost = (given - own) / gained if gained > 0 else 0.0
        off = lost >= self.lost or (lost >= self.part and given >= self.times * own) or np.isnan(given)
        if not trend.learning or not off:
            return
        says = (
            f"On the captured batches the trained model has a loss of {own:.4g} with the statistics of the batch, and "
        )
        fix = "Let the running statistics follow, or take them anew after training."
        code = "nn.BatchNorm2d(channels, momentum=0.1)\n# or: torch.optim.swa_utils.update_bn(loader, model)"
        yield self._finding(
            next((x for x in recording.layers if x.type.startswith("BatchNorm")), None),
            "BatchNorm's running statistics are off: the model works in training mode only",
            f"{says}of {given:.4g} with the running ones, as in evaluation mode.",
            Evidence("of what training gained, lost in evaluation mode", 100 * lost, "≥", 100 * self.part, "%"),
            Fix("batchnorm-momentum", fix, code, Reach.MODEL),
        )

    def _frozen(self, recording: Recording, path: str, drift: float) -> Finding:
        layer = recording.layer_at(path)
        says = "Its weights are frozen, but it is in training mode: what was learned with it no longer fits."
        code = "for module in backbone.modules():\n    if isinstance(module, nn.modules.batchnorm._BatchNorm):\n"
        title = f"the running mean of the frozen {path} moved by {drift:.2g} standard deviations"
        evidence = Evidence("move of the running mean, in standard deviations", drift, "≥", self.moved)
        fix = Fix("freeze-norms", "Keep frozen norms in evaluation mode.", f"{code}        module.eval()", Reach.RUN)
        return self._finding(layer, title, says, evidence, fix)

    def _finding(self, at: Layer | None, title: str, says: str, number: Evidence, fix: Fix) -> Finding:
        where = Location.at(at.source, at.path) if at is not None else Location()
        return Finding(
            self.name, title, Severity.WARNING, says, where, (number,), (fix,), Certainty.MEASURED, share=1.0
        )
