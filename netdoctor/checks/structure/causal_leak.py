"""A next-token model that sees what it is to predict."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.structure.copied_target import COPIES, copied_target
from netdoctor.checks.structure.cross_sample_leakage import ATTENTION, RECURRENT
from netdoctor.checks.structure.leaks import changes, place
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Arm, Recording

ARM = "leakage/positions"
_BOTH_SIDES = re.compile(r"\bpad\((\w+), *[(\[] *([^,()\[\]]+), *([^,()\[\]]+?) *[)\]]")  # pad(x, (left, right)
ASKED = "leakage/samples"  # asked at the same time, whatever the targets are


@dataclass(frozen=True)
class CausalLeak(Check):
    """The model is trained to predict the next element of a sequence, and can see it.

    What it is: attention without a causal mask (or with one that is off by one, or turned round), a recurrent layer
    that runs both ways, a convolution that reaches to both sides, a norm or a mean over the positions. Or a decoder
    that is given the target as it stands, and not shifted by one.
    Why it hurts: the loss becomes wonderfully small, for the model copies the answer; left to go on by itself, it
    writes nonsense.
    How it is decided: by experiment. Only where the targets of the first captured batches are one of the model's inputs
    shifted by one position. On a copy of the trained model in evaluation mode all elements after a position are
    exchanged, for three positions: the outputs up to there must stay. Or where whole-number inputs equal the targets and
    later ones change no earlier output: predictions follow some that are exchanged, and need no other input.
    When it stays silent: all other targets (masked language models, tagging, translation's encoder), autoencoders, whose
    outputs see later inputs on purpose; runs without experiments; outputs that cannot be matched with positions.
    Fix: a causal mask, one direction, or padding on the left; a decoder's input shifted by one.
    Sources: Vaswani et al. 2017, section 3.2.3; van den Oord et al. 2016 (causal convolution); Karpathy's recipe
    (use backprop to chart dependencies).
    """

    name = "causal-leak"
    arms = frozenset({ARM, ASKED, COPIES})
    explains = frozenset({"overfitting", "loss-not-decreasing", "missing-positional-encoding", "train-eval-shift"})

    change: float = 1e-3  # of the largest output: as cross-sample-leakage, rounding stays under 1e-5
    follows: float = 0.9  # of the exchanged tokens: a model that predicts follows none of them but by chance
    lost: float = 0.05  # of the right predictions, without the other inputs: what a few tokens that it mistakes may do

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        copied = copied_target(self.name, recording, self.follows, self.lost)
        if copied is not None:
            yield copied
            return
        arm, tokens = recording.arms.get(ARM), recording.arms.get(COPIES)
        if arm is None and tokens is not None and tokens.failure:
            yield Abstention(self.name, tokens.failure)
        elif arm is None:
            if ASKED not in recording.arms:
                yield Abstention(self.name, "no experiment exchanged positions")
        elif arm.failure:
            yield Abstention(self.name, arm.failure)
        elif float(arm.facts.get("share", 0.0)) > self.change:
            yield self._finding(arm, float(arm.facts["share"]))

    def _finding(self, arm: Arm, share: float) -> Finding:
        operation = str(arm.facts.get("operation", ""))
        where = f"{operation} in {arm.facts['module'] or 'the model'}" if operation else "an operation of the model"
        return Finding(
            self.name,
            f"the output of early positions {changes(share)} when only later inputs change",
            Severity.ERROR,
            f"The targets are the input shifted by one, and {where} lets a position see those after it: the model can "
            "copy what it is to predict.",
            place(arm),
            (Evidence("change of early outputs", 100 * share, ">", 100 * self.change, "%"),),
            (_fix(operation, str(arm.facts.get("text", ""))),),
            Certainty.PROVEN,
            first_step=0,
            share=1.0,
        )


def _fix(operation: str, text: str) -> Fix:
    if operation in RECURRENT:
        return Fix("one-direction", "Run along time only.", "bidirectional=False", Reach.MODEL)
    if operation == "pad":
        own = _BOTH_SIDES.sub(r"pad(\1, (\2 + \3, 0)", text)
        code = own if own != text else "x = torch.nn.functional.pad(x, (left + right, 0))"
        return Fix("pad-left", "Pad on the left only.", code, Reach.MODEL)
    if operation.startswith("conv"):
        code = "x = torch.nn.functional.pad(x, (kernel_size - 1, 0))  # and padding=0 in the convolution"
        return Fix("pad-left", "Let the kernel reach back only.", code, Reach.MODEL)
    if operation == "scaled_dot_product_attention":
        code = "torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)"
        return Fix("causal-mask", "Mask what comes later.", code, Reach.MODEL)
    if operation in ATTENTION or "encoder_layer" in operation:
        code = "mask = torch.nn.Transformer.generate_square_subsequent_mask(x.shape[1])\nx = encoder(x, mask=mask)"
        return Fix("causal-mask", "Give the attention a causal mask.", code, Reach.MODEL)
    code = "later = torch.ones(T, T, dtype=torch.bool).triu(1)\nscores = scores.masked_fill(later, float('-inf'))"
    return Fix("causal-mask", "Mask what comes later, before the softmax.", code, Reach.MODEL)
