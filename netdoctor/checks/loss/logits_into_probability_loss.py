"""Raw scores, or plain probabilities, in a loss that expects log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import BCE, NLL, Comparison, comparisons, line, maker
from netdoctor.checks.loss.lines import renamed
from netdoctor.checks.loss.symptoms import EVERYTHING
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

EXPECT_LOGS = frozenset({NLL, "kl_div"})
LINEAR = frozenset({"linear", "matmul", "addmm", "conv2d", "conv1d"})
RENAMED = {
    "NLLLoss": "CrossEntropyLoss",
    "nll_loss": "cross_entropy",
    "BCELoss": "BCEWithLogitsLoss",
    "binary_cross_entropy": "binary_cross_entropy_with_logits",
}


@dataclass(frozen=True)
class LogitsIntoProbabilityLoss(Check):
    """A loss for (log-)probabilities is given something else.

    What it is: `nll_loss` and `kl_div` expect the logarithms of probabilities, which are never above 0;
    `binary_cross_entropy` expects probabilities. Here they get raw scores, or probabilities without the logarithm.
    Why it hurts: with raw scores the loss has no lower bound, so that training drives the scores to infinity and not
    to the right class; scores that are merely clamped to [0, 1] have no gradient outside.
    How it is decided: on the operations and values of the captured step. The prediction of nll_loss or kl_div holds
    values above 0; or that of binary_cross_entropy is a layer's output, cut off to [0, 1] at most.
    When it stays silent: log_softmax, logsigmoid or a logarithm before the loss; a sigmoid or softmax before BCE; values
    that could be log-probabilities.
    Fix: the loss for raw scores: cross_entropy, binary_cross_entropy_with_logits.
    Sources: PyTorch's documentation of NLLLoss, KLDivLoss and BCELoss; advice E-A1.
    """

    name = "logits-into-probability-loss"
    explains = EVERYTHING | {"output-activation"}

    above: float = 1e-4  # log-probabilities are never above 0; rounding of log_softmax stays far under this

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for comparison in comparisons(recording):
            prediction, loss = comparison.prediction, comparison.operation
            if not prediction.requires_grad:
                continue
            if loss.name in EXPECT_LOGS and prediction.high > self.above:
                yield self._finding(recording, comparison, "log-probabilities, which are never above 0", 0.0)
            elif loss.name == BCE and _raw(comparison):
                yield self._finding(recording, comparison, "probabilities, as a sigmoid makes them", 1.0)

    def _finding(self, recording: Recording, comparison: Comparison, expected: str, limit: float) -> Finding:
        prediction, loss, made = comparison.prediction, comparison.operation, comparison.maker
        source = line(recording, loss)
        probabilities = made is not None and made.name in {"softmax", "sigmoid"}
        given = "probabilities" if probabilities else "raw scores"
        if loss.name == "kl_div" or probabilities:
            code = "log_probabilities = torch.log_softmax(scores, dim=-1)"
            fix = Fix("log-softmax", "Give the loss the output of log_softmax.", code, Reach.MODEL)
        else:
            code = renamed(source, RENAMED)
            fix = Fix("loss-for-logits", "Use the loss for raw scores.", code, Reach.MODEL)
        return Finding(
            self.name,
            f"{loss.name} is given {given} up to {prediction.high:.3g}",
            Severity.ERROR,
            f"{loss.name} expects {expected}. It is given {given} between {prediction.low:.3g} and "
            f"{prediction.high:.3g}{f', made by {made.name}' if made is not None else ''}.",
            Location.at(source, made.module or None if made is not None else None, loss.name, step=0),
            (Evidence(f"largest value given to {loss.name}", prediction.high, ">", limit),),
            (fix,),
            first_step=0,
            share=1.0,
        )


def _raw(comparison: Comparison) -> bool:
    """Whether the prediction is a layer's output, at most clamped or rectified."""
    made = comparison.maker
    if made is not None and made.name in {"clamp", "clip", "relu", "hardtanh", "clamp_max", "relu6"} and made.inputs:
        made = maker(comparison.graph, made.inputs[0])
    return made is not None and made.name in LINEAR
