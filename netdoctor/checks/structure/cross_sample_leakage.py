"""A sample's output that depends on the other samples of its batch."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.structure.leaks import changes, place
from netdoctor.checks.structure.unread import nothing_read
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Arm, Recording

ARM = "leakage/samples"
RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})
ATTENTION = frozenset({"scaled_dot_product_attention", "multi_head_attention_forward"})


@dataclass(frozen=True)
class CrossSampleLeakage(Check):
    """What the model says of one sample depends on which other samples are in its batch.

    What it is: a recurrent layer or an attention that takes the batch for the sequence (batch_first), a softmax or a
    mean along the batch, a view that crosses it.
    Why it hurts: the model learns from its company: what it predicts for one sample alone, or in another order, is
    something else, and the score of an evaluation depends on how it is batched.
    How it is decided: by experiment, on a copy of the trained model in evaluation mode: all other samples of a captured
    batch become copies of the first one, then of the last one, whose output must stay. The batch is the dimension along
    which the targets are counted (or the one beside that of a sequence that predicts itself); of several that fit, all
    must leak. Or only what is made inside changes, while training is hurt and no input has any influence on the output.
    When it stays silent: BatchNorm, which takes its running statistics; BatchNorm without any; graphs and similarities
    of all samples with all, which link them on purpose; models that play against each other; losses that compare
    samples (the test is on the model's output).
    Fix: the layer that mixes them, along the right dimension.
    Sources: Karpathy, A Recipe for Training Neural Networks, 2019 (use backprop to chart dependencies); advice B-7.
    """

    name = "cross-sample-leakage"
    arms = frozenset({ARM})
    explains = frozenset(
        {"loss-not-decreasing", "cannot-overfit-tiny-batch", "label-input-mismatch", "overfitting", "unstable-loss"}
        | {"ignored-input", "input-independent-output"}  # it reads what lies where its own samples should be
    )

    change: float = 1e-3  # of the largest output: rounding of other neighbours in one product stays under 1e-5

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get(ARM)
        if arm is None or arm.failure:
            yield Abstention(self.name, arm.failure if arm else "no experiment exchanged samples")
        elif float(arm.facts.get("share", 0.0)) > self.change:
            yield self._finding(arm, float(arm.facts["share"]))
        elif arm.facts.get("inside") and nothing_read(recording) and harm(recording).state in {State.HURT, State.SLOW}:
            yield self._finding(arm, 0.0)

    def _finding(self, arm: Arm, share: float) -> Finding:
        operation, dim, size = str(arm.facts.get("operation", "")), arm.facts["dimension"], arm.facts["size"]
        where = f"{operation} in {arm.facts['module'] or 'the model'}" if operation else "an operation of the model"
        title = f"a sample's output {changes(share)} when only the others of its batch change"
        evidence = Evidence("change of a sample's output", 100 * share, ">", 100 * self.change, "%")
        if not share:
            title = "samples are mixed inside of the model, and what it says of one depends on no input at all"
            evidence = Evidence("change of the output when any input changes", 0.0, "≤", 0.0, "%")
        return Finding(
            self.name,
            title,
            Severity.ERROR,
            f"{where} mixes the {float(size):.0f} samples along dimension {float(dim):.0f}.",
            place(arm),
            (evidence,),
            (_fix(operation, int(float(dim)), str(arm.facts.get("text", ""))),),
            Certainty.PROVEN,
            first_step=0,
            share=1.0,
        )


def _fix(operation: str, dim: int, text: str) -> Fix:
    if operation in RECURRENT | ATTENTION or "attention" in operation:
        layout = "batch_first=True" if dim == 0 else "batch_first=False"
        says = f"Tell the layer where the batch is: the inputs have it in dimension {dim}."
        return Fix("batch-dimension", says, layout, Reach.MODEL)
    if operation in {"view", "reshape", "flatten", "unflatten"}:
        says = "Keep the batch dimension in reshapes; exchange axes with transpose or permute."
        return Fix("keep-samples-apart", says, f"x = x.flatten({dim + 1})" if dim == 0 else "", Reach.MODEL)
    says = f"Let {operation or 'the operation'} work within a sample, not along dimension {dim}."
    other = re.sub(rf"(\bdim\s*=\s*){dim}\b", r"\g<1>-1", text)
    return Fix("keep-samples-apart", says, other if other != text else "", Reach.MODEL)
