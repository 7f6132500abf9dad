"""The check `stale-statistics`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.training.optimizer_line import first_source
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Measured, Reach, Severity, Trial, Verdict
from netdoctor.recording import Recording

_CODE = """# in the update of the average, after the parameters:
for mine, theirs in zip(average.buffers(), model.buffers()):
    mine.copy_(theirs)
# or once before it is evaluated: torch.optim.swa_utils.update_bn(loader, average)"""


@dataclass(frozen=True)
class StaleStatistics(Check):
    """An average of the weights is evaluated with BatchNorm statistics of before the training.

    What it is: a copy that follows the model (EMA, a teacher) averages `parameters()`, and its buffers stay what they
    were: mean 0 and variance 1, as BatchNorm is built.
    Why it hurts: the training goes well, and everything that is measured or shipped with the copy is wrong.
    How it is decided: a model is evaluated after at least 20 steps, every BatchNorm in it has the statistics it was built
    with, and a model of the same norms, whose matrices are near its own, was trained and has others: in one of its norms
    0.5 standard deviations or more away (median over channels).
    The copy is tried with the trained statistics, on the inputs of that evaluation: it must come nearer to the trained model.
    When it stays silent: copies whose buffers are copied too, or that get their statistics before the last evaluation;
    networks that only look like the trained one; data whose statistics are 0 and 1 at every norm.
    Fix: copy the buffers as well, as torch's AveragedModel does, or `update_bn`.
    Sources: PyTorch's documentation of torch.optim.swa_utils (update_bn, use_buffers).
    """

    name = "stale-statistics"
    explains = frozenset({"train-eval-shift", "overfitting", "batchnorm-drift", "non-finite-evaluation"})

    mended: float = 0.25  # of the distance that the copy had: the rest is what its weights lag behind
    shift: float = 0.5  # standard deviations: every activation is then off by as much

    def judge(self, recording: Recording) -> Iterator[Finding]:
        norms, shift = (float(recording.facts.get(f"stale_norms{end}", 0)) for end in ("", "_shift"))
        if norms < 1 or shift < self.shift:
            return
        trial = self._trial(recording)
        yield Finding(
            self.name,
            f"the copy that is evaluated has the BatchNorm statistics of before the training, in all of its {norms:.0f} norms",
            Severity.ERROR,
            "Its weights follow the trained model, its running means and variances do not: they are still 0 and 1. What it "
            "gives in evaluation mode has little to do with what the model learned.",
            Location.at(first_source(recording, "stale norms")),
            (Evidence("distance of the trained statistics, in standard deviations", shift, "≥", self.shift),),
            (Fix("copy-buffers", "Let the copy have the buffers, too.", _CODE, Reach.RUN, trial),),
            Certainty.PROVEN if trial and trial.verdict is Verdict.CURED else Certainty.MEASURED,
            share=1.0,
        )

    def _trial(self, recording: Recording) -> Trial | None:
        """The copy with the trained statistics, beside the copy as it is, on the inputs of one evaluation."""
        own, given = (recording.facts.get(f"stale_norms_{name}") for name in ("own", "given"))
        if own is None or given is None:
            return None
        left = float(given) / float(own) if float(own) > 0 else 1.0
        verdict = (
            Verdict.CURED if left <= self.mended else Verdict.EASED if left <= 2 * self.mended else Verdict.NO_EFFECT
        )
        what = "what the copy gives is off from what the trained model gives by"
        return Trial(verdict, measured=Measured(what, 100 * float(own), 100 * float(given), "%"))
