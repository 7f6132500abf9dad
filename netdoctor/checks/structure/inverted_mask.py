"""A mask of attention in the wrong sense: it hides what it should show."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.mask_trials import AS_IT_IS, INVERTED, SEEN, ahead, told, trial, words
from netdoctor.checks.structure.mask_words import COUNTED, explained, let_through, turned_line
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine
from netdoctor.trend import judge

TREATMENT = "inverted-mask"


@dataclass(frozen=True)
class InvertedMask(Check):
    """A mask hides from attention what it should show, and shows what it should hide.

    What it is: `nn.MultiheadAttention`, `nn.TransformerEncoder` and `nn.Transformer` ignore where a boolean mask is True;
    `F.scaled_dot_product_attention` attends where it is True, and in Hugging Face's attention_mask 1 means keep. A mask
    of one sense given to the other; `masked_fill(mask, -inf)` with a mask of what is to be kept.
    Why it hurts: attention sees nothing but padding, or the future alone; a sample without padding sees nothing (NaN).
    How it is decided: on a copy, from the masks of the first captured batch: all that takes part is the same in all
    samples at each position while most of what is hidden is not (in the keys, or in an input of that shape), or
    nothing at all takes part; or all of the past is hidden, and nothing of the future. Then two copies train from the
    same weights on the same batches, one with the mask turned round: it is far ahead (half of the loss, or twice as
    much lost), a warning; an error where the script's training does not work.
    When it stays silent: right masks, however much they hide; causal ones; batches without padding; a model that
    learns as well with the mask turned round; causal masks where training works (a model that runs backwards in time).
    Fix: the mask negated, tried on a copy.
    Sources: PyTorch's documentation of MultiheadAttention (key_padding_mask) and of scaled_dot_product_attention
    (attn_mask); the glossary of Hugging Face Transformers (attention mask).
    """

    name = "inverted-mask"
    arms = frozenset({SEEN, AS_IT_IS, INVERTED})
    explains = EVERYTHING | {"ignored-input", "train-eval-shift", "overfitting", "cross-sample-leakage"}

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        seen = recording.arms.get(SEEN)
        pair = recording.arms.get(AS_IT_IS), recording.arms.get(INVERTED)
        if seen is not None and seen.failure:
            yield Abstention(self.name, seen.failure)
        if seen is None or not told(recording, seen):
            return
        if pair[0] is None or pair[1] is None or pair[0].failure or pair[1].failure:
            failed = pair[0].failure if pair[0] is not None else "the trial with the mask turned round was not run"
            yield Abstention(self.name, f"a mask seems to hide what it should show, but {failed}")
        elif ahead(pair[0], pair[1], recording, judge(recording)):
            yield self._finding(recording, seen, pair[0], pair[1])

    def _finding(self, recording: Recording, seen: Arm, control: Arm, treated: Arm) -> Finding:
        facts, module = seen.facts, str(seen.facts["module"]) or None
        source = (
            SourceLine(str(facts["file"]), int(float(facts["line"])), str(facts["text"])) if facts["file"] else None
        )
        fix = Fix(TREATMENT, "Turn the mask round.", turned_line(facts), Reach.MODEL, trial(control, treated))
        return Finding(
            self.name,
            f"the mask of the attention in {module or 'the model'} is the wrong way round: {let_through(facts)}",
            Severity.ERROR if outcome.hurt(judge(recording)) else Severity.WARNING,
            f"{explained(facts)} {words(control, treated)}",
            Location.at(source, module, str(facts["operation"]), step=0),
            (Evidence(COUNTED[str(facts["kind"])], 0.0, "<", 1.0),),
            (fix,),
            Certainty.PROVEN,
            first_step=0,
            share=1.0,
        )
