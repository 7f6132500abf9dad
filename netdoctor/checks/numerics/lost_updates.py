"""The check `lost-updates`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.numerics.rounding import CONTROL, MASTER, Copies, copies, shares, typical
from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, Role, Stat
from netdoctor.trend import judge

BITS = {"bfloat16": 8, "float16": 11}  # of the significand, the hidden one included


@dataclass(frozen=True)
class LostUpdates(Check):
    """The parameters are of half precision, and most updates are too small to change them.

    What it is: bfloat16 has 8 significant bits: what is added to a weight and is less than 1/512 of it rounds away.
    Why it hurts: the optimizer runs, gradients are fine, and the weights stay where they are.
    How it is decided: on a copy whose optimizer steps on float32 copies of the weights, and all else of which is the
    script's, the loss falls half as far again, by 5 % of its start or more; a warning where nine tenths of it went all
    the same. Where that could not run: around observed steps, of the entries that have a gradient the share that came out
    unchanged. For half of the half-precision weight matrices or more it is 50 % or more (median over the last third of
    the run), and the loss does not fall, or hardly; a warning where that cannot be told, and from 90 % on even where the
    loss falls, or where it grew to that only after the steps of the copy.
    When it stays silent: float32 parameters under autocast, or float32 copies of the weights; steps at less than half of
    the highest learning rate; a loss at its floor; training that works with a part of its updates lost.
    Fix: float32 parameters with autocast.
    Sources: Micikevicius et al. 2018, section 3.1 (float32 master weights); Zamirai et al. 2020 (bfloat16 updates and
    stochastic rounding).
    """

    name = "lost-updates"
    needs = frozenset({Stat.ROUNDED_AWAY, Stat.RMS})
    arms = frozenset({CONTROL, MASTER})
    explains = frozenset(
        {"loss-not-decreasing", "learning-rate-too-low", "cannot-overfit-tiny-batch", "underfitting", "no-gradient"}
        | {"sgd-without-momentum", "clip-too-small", "lr-decays-too-fast"}
    )

    lost: float = 0.5  # of the entries: more of the step is lost than is taken
    nearly_all: float = 0.9  # of the entries: whatever the loss does, it is not what the optimizer meant
    share: float = 0.5  # of the matrices
    further: float = 1.5  # times the loss that the script's own weights take off: 1.0 to 1.1 where enough is kept
    done: float = 0.9  # of the loss, by the end of the run: it got there all the same
    gained: float = 0.05  # of the loss at the start: a smaller difference is no effect

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found, trend, copied = dict(shares(recording)), judge(recording), copies(recording)
        typical_share = typical(found, self.share)
        if copied is not None and found and copied.worse(self.further, self.gained):
            severity = Severity.WARNING if trend.kind == "converged" or trend.drop >= self.done else Severity.ERROR
            yield self._finding(recording, found, typical_share, severity, copied)
            return
        if typical_share < (self.nearly_all if outcome.learns(trend) else self.lost) or trend.kind == "converged":
            return
        early = typical(dict(shares(recording, late=False)), self.share)
        if copied is None or (early < self.nearly_all <= typical_share):
            severity = Severity.ERROR if outcome.hurt(trend) and copied is None else Severity.WARNING
            yield self._finding(recording, found, typical_share, severity, None)

    def _finding(
        self, recording: Recording, found: dict[str, float], part: float, severity: Severity, copied: Copies | None
    ) -> Finding:
        worst = {name: share for name, share in found.items() if share >= self.lost} or found
        name = max(worst, key=lambda key: worst[key])
        parameter, held = recording.parameters[name], modules(recording, worst)
        layer = recording.layer_at(parameter.module)
        bits = 2 ** BITS.get(parameter.dtype, 8)
        device = recording.header.device.partition(":")[0] or "cuda"
        code = (
            f'model.float()\nwith torch.autocast("{device}", dtype=torch.bfloat16):\n    loss = criterion(model(x), y)'
        )
        if copied is None:
            site = parameter.site(Role.UPDATE)
            evidence = Evidence("updates rounded away, at worst", 100 * worst[name], "≥", 100 * self.lost, "%", site)
        says = copied.words if copied else outcome.words(judge(recording))
        return Finding(
            self.name,
            f"{100 * part:.0f} % of the updates of {parameter.dtype} weights round away ({listed(held)})",
            severity,
            f"A change of less than 1/{2 * bits} of a {parameter.dtype} weight leaves it as it is. {says}",
            Location.at((copied and copied.source) or (layer.source if layer else None), held[0], step=0),
            (copied.evidence(self.further) if copied else evidence,),
            (Fix("float32-weights", "Keep the weights in float32, and compute under autocast.", code, Reach.MODEL),),
            Certainty.PROVEN if copied else Certainty.MEASURED,
            first_step=0,
            places=tuple(worst),
            share=part,
        )
