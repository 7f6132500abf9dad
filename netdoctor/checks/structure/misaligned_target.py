"""A language model that learns another token than the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import NO_LEARNING
from netdoctor.checks.structure.shifts import given_line, moved_back, shifts_of
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine

OFFSET = "targets/offset"
BACK, NEXT, TWICE = -1, 1, 2
_GENERAL = "loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())"
_LABELS = "labels = input_ids.clone()"


@dataclass(frozen=True)
class MisalignedTarget(Check):
    """A language model learns the token after the next one, or the one before, and never the next.

    What it is: the loader or the loop shifts the targets by one, and the model (every `...ForCausalLM` of transformers
    does), or the loss code, shifts them once more; or the shift goes the wrong way.
    Why it hurts: the loss falls as ever, but what the model writes when it goes on by itself is wrong at every token.
    How it is decided: by experiment. In the first captured batches the targets, as the cross-entropy gets them, are the
    model's whole-number input moved by one and the same number of positions; on a copy of the trained model a token is
    exchanged, which tells the last token that a prediction sees. The target two after it is an error where targets that
    were the next tokens already are shifted again, else a warning: it may be meant. The one before it is an error where a
    copy that learns the next tokens beats the best constant prediction, so that there is something to predict.
    When it stays silent: the next token, in whatever style; models that see later tokens (masked language models,
    taggers); several heads; texts that repeat themselves; targets that are no tokens of the input, or further away, as in
    tasks of memory or forecasts; runs without experiments.
    Fix: shift once, in the loader, in the loop or in the model.
    Sources: transformers' documentation of `labels` of its causal models ("the labels are shifted inside the model").
    """

    name = "misaligned-target"
    arms = frozenset({OFFSET})
    explains = NO_LEARNING | {"overfitting", "missing-positional-encoding", "train-eval-shift"}

    agree: float = 0.99  # of the targets: a loader may change a few (masks, noise)
    learned: float = 0.9  # of the best constant prediction's loss: above it nothing was learned (a trial's STUCK)

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get(OFFSET)
        if arm is None:
            return
        if arm.failure:
            yield Abstention(self.name, arm.failure)
            return
        offset = int(float(arm.facts["offset"]))
        sure = float(arm.facts.get("agree", 0.0)) >= self.agree
        if offset == TWICE and sure:
            yield self._ahead(recording, arm)
        elif offset == BACK and sure and float(arm.facts.get("learned", 1.0)) <= self.learned:
            yield self._behind(recording, arm)

    def _ahead(self, recording: Recording, arm: Arm) -> Finding:
        shifts, call = shifts_of(recording, arm), given_line(arm)
        handed = bool(arm.facts["handed"])
        twice = handed or (bool(arm.facts["twice"]) and not any(shift.by == TWICE for shift in shifts))
        lines = list(dict.fromkeys(s.source for s in shifts if call is None or s.source.line != call.line))
        source = lines[0] if lines else call
        title = "the model learns the token after the next one: its targets are shifted "
        says = "A prediction that sees tokens up to t is compared with token t + 2. The loss falls, but going on by itself "
        says += "the model leaves out every other token. "
        if not twice:
            says += "If it is meant to look two tokens ahead, ignore this."
            fix = Fix("next-token", "Shift the targets by one.", _GENERAL, Reach.RUN)
            return self._finding(arm, f"{title}by two", Severity.WARNING, says, source, fix)
        second = f"line {lines[1].line}" if len(lines) > 1 else "the model" if handed else "the loss code"
        says += f"The targets are the next tokens already when {second} shifts them again."
        how = "leave it to the model, and hand it the input itself as labels" if handed else "in one of the two places"
        code = "" if source is None else moved_back(source.text)
        fix = Fix("next-token", f"Shift once: {how}.", code or (_LABELS if handed else _GENERAL), Reach.RUN)
        return self._finding(arm, f"{title}twice", Severity.ERROR, says, source, fix)

    def _behind(self, recording: Recording, arm: Arm) -> Finding:
        shifts = shifts_of(recording, arm)
        source = shifts[-1].source if shifts else given_line(arm)
        says = "A prediction that sees tokens up to t is compared with token t - 1, which is among them: it is repeated, not "
        says += "predicted. A copy with the next tokens for targets learns to predict them."
        fix = Fix("next-token", "Shift the other way.", _GENERAL, Reach.RUN)
        title = "the model learns the token before: its targets are shifted the wrong way"
        return self._finding(arm, title, Severity.ERROR, says, source, fix)

    def _finding(
        self, arm: Arm, title: str, severity: Severity, says: str, source: SourceLine | None, fix: Fix
    ) -> Finding:
        found = Evidence("targets that are this token", 100 * float(arm.facts["agree"]), "≥", 100 * self.agree, "%")
        learned = float(arm.facts.get("learned", 1.0))
        other = Evidence("loss on the next tokens, of the best constant's", 100 * learned, "≤", 100 * self.learned, "%")
        evidence = (found,) if severity is Severity.WARNING or "learned" not in arm.facts else (found, other)
        certainty = Certainty.PROVEN if "learned" in arm.facts else Certainty.MEASURED
        place = Location.at(source, step=0)
        return Finding(self.name, title, severity, says, place, evidence, (fix,), certainty, first_step=0, share=1.0)
