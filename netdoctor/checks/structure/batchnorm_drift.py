"""BatchNorm's running statistics are not those of the data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from netdoctor.check import Check
from netdoctor.checks.structure import running_statistics
from netdoctor.checks.structure.running_statistics import DRAWS
from netdoctor.finding import Abstention, Evidence, Finding
from netdoctor.recording import Arm, Recording
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
    and the loss is three times the other. With a momentum of 0.5 or more the running ones are a draw: each captured
    batch (as small as the last one before an evaluation) leaves its own, others are evaluated with them, and their mean
    loss is set beside that with the average of all; a fifth of what was gained is then enough, or a twentieth and three
    times the loss.
    Of a frozen BatchNorm with loaded statistics: its running mean moved by 0.1 deviations or more (median over channels).
    When it stays silent: fewer than 50 steps (200 with a momentum between 0.02 and 0.5: the weights of a young network
    run ahead of any running statistics); training that gained nothing; several optimizers; models whose both modes
    agree; batches so large that each has the data's statistics; statistics that were taken anew; the script's own
    evaluation mode in training.
    Fix: momentum = 0.1 or less, `torch.optim.swa_utils.update_bn`; `eval()` for the norms of what is frozen.
    Sources: Ioffe and Szegedy, Batch Normalization, 2015 (section 3.1); PyTorch's BatchNorm2d on momentum; advice E-T1.
    """

    name = "batchnorm-drift"
    arms = frozenset({"final/evaluation", "final/batch statistics", DRAWS})

    steps: int = 50  # with momentum 0.1 the start then counts for 0.5 %
    usual: int = 200  # where the momentum is usual: at first the weights may run away from any running statistics
    lost: float = 0.5  # of what training gained: whatever the loss, the result is no longer that of the training
    part: float = 0.1  # of the same, together with `times`: a loss from 0.01 to 0.03 alone is no harm
    times: float = 3.0  # running statistics lag a little behind: up to twice the loss was seen on healthy runs
    drawn: float = 0.2  # as `lost`, on average over draws: with one set of weights nothing lags behind, so less is harm
    drawn_part: float = 0.05  # as `part` there, for the same reason: 0.1 of the 2.3 of ten classes
    renewed: float = 0.33  # of the distance that one batch leaves: an average of ten and more is as near to another one
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
            path = str(batch.facts["frozen_module"])
            yield running_statistics.frozen(self.name, recording, path, drift, self.moved)
        enough = recording.steps >= (self.usual if batch.facts.get("usual_momentum") else self.steps)
        if enough:
            yield from self._by_chance(recording) or self._disagree(recording, running, batch)

    def _by_chance(self, recording: Recording) -> list[Finding]:
        arm = recording.arms.get(DRAWS)
        if arm is None or arm.failure or float(arm.facts["apart"]) < self.renewed:
            return []
        average = float(arm.facts["averaged"])
        if not (judge(recording).learning or running_statistics.learned(recording, average)):
            return []
        found = self._harm(recording, float(np.mean(arm.losses)), average, self.drawn, self.drawn_part)
        return [running_statistics.by_chance(self.name, recording, arm, found)] if found else []

    def _disagree(self, recording: Recording, running: Arm, batch: Arm) -> list[Finding]:
        if not judge(recording).learning:
            return []
        given, own = float(np.mean(running.losses)), float(np.mean(batch.losses))
        found = self._harm(recording, given, own, self.lost, self.part)
        return [running_statistics.off(self.name, recording, given, own, found)] if found else []

    def _harm(self, recording: Recording, given: float, own: float, most: float, part: float) -> Evidence | None:
        """What is lost with a loss of `given` instead of `own`, of what training gained; None where that is no harm."""
        gained = running_statistics.untrained(recording) - own
        lost = (given - own) / gained if gained > 0 else 0.0
        if lost >= most or (lost >= part and given >= self.times * own) or np.isnan(given):
            limit = 100 * (part if lost < most else most)
            return Evidence("of what training gained, lost in evaluation mode", 100 * lost, "≥", limit, "%")
        return None
