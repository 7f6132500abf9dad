"""Questions that one batch answers: do samples stay apart, does no position see later ones, is evaluation repeatable?

Each returns a Finding, or None where the answer is as it should be. The model is copied; it is not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from netdoctor.capture.tree import substitute, tensors
from netdoctor.errors import MisuseError
from netdoctor.experiments.passes import ROUNDING, Kept, Pass, Subject, differ, first_difference, inputs_of
from netdoctor.experiments.replacing import alone, other_future
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity

_RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


def leakage(model: nn.Module, batch: Any, dim: int = 0) -> Finding | None:
    """Whether a sample's output depends on the other samples of its batch (along `dim`).

    All other samples become copies of the one that is looked at, the first and then the last; its output must stay.
    In evaluation mode, where BatchNorm takes its running statistics. Raises MisuseError where the batch cannot tell.
    """
    inputs, subject = inputs_of(model, batch), Subject(model)
    size = _size(inputs, dim, "samples")
    for kept in (0, size - 1):
        repeated = _replaced(inputs, partial(alone, kept=kept, dim=dim, size=size))
        found = _compared(subject, inputs, repeated, partial(_at, kept=kept, dim=dim, size=size))
        if found is not None:
            at, share = found
            return Finding(
                "cross-sample-leakage",
                f"the output for one sample changes by {100 * share:.2g} % when only the others of its batch change",
                Severity.ERROR,
                "The model mixes samples: what it predicts depends on the company, so its score is another in use.",
                at,
                (Evidence("change of a sample's output", 100 * share, ">", 100 * ROUNDING, "%"),),
                (Fix("keep-samples-apart", _apart(at), "", Reach.MODEL),),
                Certainty.PROVEN,
            )
    return None


def _apart(at: Location) -> str:
    what = f"`{at.operation}`" if at.operation else "the operation that mixes them"
    return (
        f"Let {what} work within a sample: along a dimension other than that of the batch, after reshapes that keep "
        "the batch dimension (`x.flatten(1)`, `transpose` in place of `view`)."
    )


def looking_ahead(model: nn.Module, batch: Any, dim: int = 1) -> Finding | None:
    """Whether an output depends on inputs at later positions (along `dim`): what must not be in a next-token model.

    All positions after one are replaced by others of the batch, for three places; the outputs up to there must stay.
    Raises MisuseError where the inputs have no such dimension, or the outputs have none of its length.
    """
    inputs, subject = inputs_of(model, batch), Subject(model)
    length = _size(inputs, dim, "positions")
    for last in sorted({0, length // 2 - 1, length - 2}):
        other = _replaced(inputs, partial(_shuffled_after, last=last, dim=dim, length=length))
        found = _compared(
            subject,
            inputs,
            other,
            partial(_upto, last=last, dim=dim, length=length),
            partial(_along, last=last, dim=dim, length=length),
        )
        if found is not None:
            at, share = found
            return Finding(
                "causal-leak",
                f"the outputs up to position {last} change by {100 * share:.2g} % when only later inputs change",
                Severity.ERROR,
                "The model sees what it is to predict, so it learns to copy, and fails when it has to go on by itself.",
                at,
                (Evidence("change of earlier outputs", 100 * share, ">", 100 * ROUNDING, "%"),),
                (_mask(at),),
                Certainty.PROVEN,
            )
    return None


def _mask(at: Location) -> Fix:
    operation = at.operation or ""
    if operation in _RECURRENT:
        return Fix("one-direction", "Run along time only.", "bidirectional=False", Reach.MODEL)
    if operation.startswith("conv"):
        code = "x = torch.nn.functional.pad(x, (kernel_size - 1, 0))  # and padding=0 in the convolution"
        return Fix("pad-left", "Let the kernel reach back only.", code, Reach.MODEL)
    if operation == "scaled_dot_product_attention":
        code = "torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)"
        return Fix("causal-mask", "Mask what comes later.", code, Reach.MODEL)
    code = "later = torch.ones(T, T, dtype=torch.bool).triu(1)\nscores = scores.masked_fill(later, float('-inf'))"
    return Fix("causal-mask", "Mask what comes later, before the softmax.", code, Reach.MODEL)


def unrepeatable(model: nn.Module, batch: Any) -> Finding | None:
    """Whether two passes in evaluation mode over the same batch, with different random numbers, differ."""
    inputs, subject = inputs_of(model, batch), Subject(model)
    first, second = (subject.run(inputs, lambda t: t, seed) for seed in (1, 2))
    share = max((differ(a, b) for a, b in zip(first.outputs, second.outputs, strict=True)), default=0.0)
    if share <= ROUNDING:
        return None
    at = first_difference(first, second)
    drops = "dropout" in (at.operation or "") or "attention" in (at.operation or "")
    fix = Fix("training-flag", "Let the dropout follow the model's mode.", "training=self.training", Reach.MODEL)
    other = Fix("fixed-noise", "Draw random numbers in training mode only.", "if self.training:", Reach.MODEL)
    return Finding(
        "nondeterministic-eval",
        f"in evaluation mode two passes over the same batch differ by {100 * share:.2g} % of the output",
        Severity.ERROR,
        "Something draws random numbers whatever the model's mode, so every evaluation is another.",
        at,
        (Evidence("largest difference between two passes", 100 * share, ">", 100 * ROUNDING, "%"),),
        (fix if drops else other,),
        Certainty.PROVEN,
    )


def _compared(
    subject: Subject, inputs: Any, changed: Any, keep: Kept, anywhere: Kept | None = None
) -> tuple[Location, float] | None:
    """Where and by how much what is kept differs between the two inputs; None where it does not."""
    watched = anywhere or keep
    one, other = subject.run(inputs, watched), subject.run(changed, watched)
    share = max((differ(a, b) for a, b in zip(_kept(one, keep), _kept(other, keep), strict=True)), default=0.0)
    return (first_difference(one, other), share) if share > ROUNDING else None


def _kept(done: Pass, keep: Kept) -> list[Tensor]:
    kept = [entries for output in done.outputs if (entries := keep(output)) is not None]
    if not kept:
        shapes = ", ".join(str(tuple(output.shape)) for output in done.outputs) or "no tensor"
        raise MisuseError(
            f"the output ({shapes}) has no dimension of the input's length there, so nothing can be compared"
        )
    return kept


def _size(inputs: Any, dim: int, what: str) -> int:
    """How many samples or positions the inputs have; at least two, the same in all tensors that count."""
    sizes = [t.shape[dim] for t in tensors(inputs) if t.dim() > dim]
    if not sizes or max(sizes) < 2:
        raise MisuseError(f"this needs inputs with at least two {what} along dimension {dim}")
    return max(sizes)


def _replaced(inputs: Any, replace: Callable[[Tensor], Tensor]) -> Any:
    changed = substitute(inputs, replace)
    pairs = list(zip(tensors(inputs), tensors(changed), strict=True))
    if all(torch.equal(a, b) for a, b in pairs):
        raise MisuseError("all entries of this batch are the same, so nothing can be told from it: give a varied one")
    return changed


def _shuffled_after(tensor: Tensor, last: int, dim: int, length: int) -> Tensor:
    """The tensor with another future; booleans (masks) stay."""
    if tensor.dim() <= dim or tensor.shape[dim] != length or tensor.dtype == torch.bool:
        return tensor
    return other_future(tensor, last, dim)


def _at(tensor: Tensor, dim: int, size: int, kept: int) -> Tensor | None:
    return tensor.select(dim, kept) if tensor.dim() > dim and tensor.shape[dim] == size else None


def _upto(tensor: Tensor, dim: int, length: int, last: int) -> Tensor | None:
    return tensor.narrow(dim, 0, last + 1) if tensor.dim() > dim and tensor.shape[dim] == length else None


def _along(tensor: Tensor, dim: int, length: int, last: int) -> Tensor | None:
    """The first positions, wherever the positions lie: convolutions have them after the channels."""
    axes = [axis for axis, size in enumerate(tensor.shape) if size == length]
    axis = dim if dim in axes else axes[-1] if axes else None
    return None if axis is None else tensor.narrow(axis, 0, last + 1)
