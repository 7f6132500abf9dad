"""A language model that learns another token than the next one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import NO_LEARNING
from netdoctor.checks.structure.causal_leak import CausalLeak
from netdoctor.checks.structure.copied_target import COPIES, copied_target
from netdoctor.checks.structure.shifts import given_line, moved_back, shifts_of
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine

OFFSET = "targets/offset"
BACK, COPIED, NEXT, TWICE = -1, 0, 1, 2
_GENERAL = "loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())"
_LABELS = "labels = input_ids.clone()"


@dataclass(frozen=True)
class ShiftedTarget(Check):
    """A language model learns the token after the next one, or one that it was given, and never the next.

    What it is: the loader or the loop shifts the targets by one, and the model (every `...ForCausalLM` of transformers
    does), or the loss code, shifts them once more; or the shift goes the wrong way.
    Why it hurts: the loss falls as ever, but what the model writes when it goes on by itself is wrong at every token.
    How it is decided: by experiment. In the first captured batches the targets, as the cross-entropy gets them, are the
    model's whole-number input moved by one and the same number of positions; on a copy of the trained model a token is
    exchanged, which tells the last token that a prediction sees. The target two after it is an error where targets that
    were the next tokens already are shifted again, else a warning: it may be meant. One that it sees (the
    last, or the one before) is an error where a copy that learns the next tokens beats the best constant prediction.
    When it stays silent: the next token, in whatever style; models that see later tokens (masked language models,
    taggers); several heads; texts that repeat themselves; targets that are no tokens of the input, or further away, as in
    tasks of memory or forecasts; runs without experiments.
    Fix: shift once, in the loader, in the loop or in the model.
    Sources: transformers' documentation of `labels` of its causal models ("the labels are shifted inside the model").
    """

    name = "shifted-target"
    arms = frozenset({OFFSET, COPIES})
    explains = NO_LEARNING | {"overfitting", "missing-positional-encoding", "train-eval-shift"}

    agree: float = 0.99  # of the targets: a loader may change a few (masks, noise)
    learned: float = 0.9  # of the best constant prediction's loss: above it nothing was learned (a trial's STUCK)

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get(OFFSET)
        if arm is None or arm.failure:
            yield from () if arm is None else (Abstention(self.name, arm.failure),)
            return
        offset = int(float(arm.facts["offset"]))
        sure = float(arm.facts.get("agree", 0.0)) >= self.agree
        if offset == TWICE and sure:
            yield self._ahead(recording, arm)
        elif offset in (BACK, COPIED) and sure and float(arm.facts.get("learned", 1.0)) <= self.learned:
            said = copied_target(
                self.name, recording, CausalLeak.follows, CausalLeak.lost
            )  # by causal-leak, and better
            yield from () if said is not None else (self._behind(recording, arm, offset),)

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

    def _behind(self, recording: Recording, arm: Arm, offset: int) -> Finding:
        shifts, handed = shifts_of(recording, arm), bool(arm.facts["handed"])
        source = shifts[-1].source if shifts else given_line(arm)
        own, token = ("t", "it stands on") if offset == COPIED else ("t - 1", "before")
        says = f"A prediction that sees tokens up to t is compared with token {own}, which is among them: it is repeated, not "
        says += "predicted. A copy with the next tokens for targets learns to predict them."
        how = "Hand the model the input itself as labels." if handed else "Shift the other way."
        fix = Fix("next-token", how, _LABELS if handed else _GENERAL, Reach.RUN)
        title = f"each position learns the token {token}: its targets are shifted the wrong way"
        return self._finding(arm, title, Severity.ERROR, says, source, fix)

    def _finding(self, arm: Arm, title: str, how: Severity, says: str, at: SourceLine | None, fix: Fix) -> Finding:
        agree, left = 100 * float(arm.facts["agree"]), 100 * float(arm.facts.get("learned", float("inf")))
        of = "loss on the next tokens, of the best constant's"
        shown = (Evidence(of, left, "≤", 100 * self.learned, "%"),) if "learned" in arm.facts else ()
        evidence = (Evidence("targets that are this token", agree, "≥", 100 * self.agree, "%"), *shown)
        sure, place = Certainty.PROVEN if shown else Certainty.MEASURED, Location.at(at, step=0)
        return Finding(self.name, title, how, says, place, evidence, (fix,), sure, first_step=0, share=1.0)
