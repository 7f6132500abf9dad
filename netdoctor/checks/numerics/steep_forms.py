"""Rows of the table of safe forms: logarithms, roots, powers and divisions, which are steep or undefined at 0."""

from __future__ import annotations

from netdoctor.checks.numerics import operations as op
from netdoctor.checks.numerics.form import CLAMP, EVEN, FINITE_MASK, MASK_LATER, Form, always, row
from netdoctor.checks.numerics.operations import backward, every, forward, made_by, zero
from netdoctor.checks.numerics.rewriting import Edit
from netdoctor.recording import Origin

_LOGS = "log log2 log10"
_CLAMP_ROOT = Edit(0, "{x}.clamp_min({tiny})")
_CLAMP_UNIT = Edit(0, "{x}.clamp(-1 + {edge}, 1 - {edge})")
_STD = Edit(replaced="{x}.var({rest}correction=0).add({tiny}).sqrt()", drops=("unbiased", "correction"))
_NORM = "x.square().sum(dim=-1).clamp_min({tiny}).sqrt()"
_CLAMP_DENOMINATOR = Edit(1, "{x}.clamp_min({eps})", once=True)


def _two_tensors(origin: Origin) -> bool:
    return len(origin.inputs) > 1


def _line_known(origin: Origin) -> bool:
    return origin.upstream_source is not None


LOGARITHMS: tuple[Form, ...] = (
    row(
        _LOGS,
        every(forward, op.born_of("prod")),
        "A product of many factors is smaller than the smallest {dtype} number, so it is 0, and {op}(0) is -Inf.",
        "Add the logarithms of the factors in place of multiplying them; torch.logsumexp adds up what is in logarithms.",
        "log_p = factors.log().sum(dim=-1)  # in place of factors.prod(dim=-1).log()",
    ),
    row(
        _LOGS,
        every(forward, made_by("softmax")),
        "The softmax before it rounded a probability to exactly 0, and {op}(0) is -Inf.",
        "Keep the argument of {op} above 0; F.log_softmax, from the logits, does not even lose small probabilities.",
        "log_p = F.log_softmax(logits, dim=-1)  # in place of the log of a softmax",
        CLAMP,
    ),
    row(
        _LOGS,
        every(forward, made_by("sigmoid")),
        "The sigmoid before it rounded to exactly 0, and {op}(0) is -Inf.",
        "Keep the argument of {op} above 0; F.logsigmoid, from the logits, does not even lose small probabilities.",
        "log_p = F.logsigmoid(logits)  # in place of log(sigmoid(logits)); log(1 - p) is F.logsigmoid(-logits)",
        CLAMP,
    ),
    row(
        _LOGS,
        every(forward, op.below(0.0)),
        "Its input reaches down to {low}, and the logarithm of a negative number is NaN.",
        "Keep the argument of {op} above 0.",
        "torch.{op}(x.clamp_min({eps}))",
        CLAMP,
    ),
    row(
        _LOGS,
        forward,
        "{zeros} of its input values are exactly 0, and {op}(0) is -Inf.",
        "Keep the argument of {op} above 0.",
        "torch.{op}(x.clamp_min({eps}))",
        CLAMP,
    ),
    row(
        _LOGS,
        backward,
        "The derivative of {op}(x) is proportional to 1/x, which is infinite at 0." + MASK_LATER,
        "Keep the argument of {op} away from 0 before it is computed.",
        "torch.{op}(x.clamp_min({eps}))",
        CLAMP,
    ),
    row(
        "log1p",
        always,
        "Its input reaches down to {low}; log(1 + x) is -Inf at x = -1 and NaN below, and so is its derivative.",
        "Keep the argument of log1p above -1.",
        "torch.log1p(x.clamp_min(-1 + {edge}))",
        Edit(0, "{x}.clamp_min(-1 + {edge})"),
    ),
    row(
        "logit",
        always,
        "logit(p) is infinite at p = 0 and p = 1, and its input reaches from {low} to {high}.",
        "Give logit its eps, or keep the logits that p was made from.",
        "torch.logit(p, eps={edge})",
        Edit(keyword="eps={edge}"),
    ),
    row(
        "xlogy",
        always,
        "Its second operand reaches down to {low2}: x·log(0) is infinite wherever x is not 0.",
        "Keep the second operand above 0.",
        "torch.xlogy(x, y.clamp_min({eps}))",
        Edit(1, "{x}.clamp_min({eps})"),
    ),
    row(
        "logsumexp logcumsumexp",
        always,
        "Every entry of a row is -Inf (the row is masked completely): the result is -Inf, and its gradient 0/0.",
        "Mask with the smallest finite number in place of -inf.",
        EVEN,
        FINITE_MASK,
    ),
)

ROOTS_AND_POWERS: tuple[Form, ...] = (
    row(
        "sqrt",
        every(forward, op.below(0.0)),
        "Its input reaches down to {low} (rounding is enough), and the root of a negative number is NaN.",
        "Keep the argument of sqrt above 0.",
        "torch.sqrt(x.clamp_min({tiny}))",
        _CLAMP_ROOT,
    ),
    row(
        "sqrt",
        backward,
        "The derivative of sqrt(x) is 1/(2·sqrt(x)), which is infinite at x = 0; the chain rule then multiplies it "
        "by 0, and 0 times infinity is NaN. It happens where two things are exactly equal or a vector is all zero."
        + MASK_LATER,
        "Keep the argument of sqrt above 0, inside the root.",
        "torch.sqrt(x.clamp_min({tiny}))",
        _CLAMP_ROOT,
    ),
    row(
        "rsqrt",
        always,
        "1/sqrt(x) is infinite at 0 and NaN below, and its input reaches down to {low}.",
        "Keep the argument of rsqrt above 0.",
        "torch.rsqrt(x.clamp_min({eps}))",
        CLAMP,
    ),
    row(
        "pow",
        every(forward, op.below(0.0), lambda o: o.kind == "NaN"),
        "A negative base ({low}) raised to a fraction has no real value, so the result is NaN.",
        "Keep the base above 0.",
        "x.clamp_min({tiny}) ** p",
        _CLAMP_ROOT,
    ),
    row(
        "pow",
        every(forward, zero(0), lambda o: op.magnitude(o) < 1e15),
        "0 raised to a negative power is a division by 0.",
        "Keep the base away from 0.",
        "x.clamp_min({eps}) ** p",
        CLAMP,
    ),
    row(
        "pow",
        backward,
        "The derivative of x**p is p·x**(p-1); for p < 1 it is infinite at x = 0 (and NaN below)." + MASK_LATER,
        "Keep the base above 0.",
        "x.clamp_min({tiny}) ** p",
        _CLAMP_ROOT,
    ),
    row(
        "norm distance",
        backward,
        "The norm has a kink at 0: for a vector that is exactly zero, or two equal points, its gradient is 0/0.",
        "Write the norm with a small number inside the root.",
        _NORM,
    ),
    row(
        "var",
        every(forward, lambda o: o.kind == "NaN"),
        "The unbiased estimate divides by n - 1, which is 0 for a single value (a batch or group of one): 0/0.",
        "Use the biased estimate, or leave out batches of one.",
        "x.var(dim=0, correction=0)",
        Edit(replaced="{x}.var({rest}correction=0)", drops=("unbiased", "correction")),
    ),
    row(
        "std var",
        every(forward, lambda o: o.kind == "NaN"),
        "The unbiased estimate divides by n - 1, which is 0 for a single value (a batch or group of one): 0/0.",
        "Use the biased estimate, with a small number inside the root.",
        "x.var(dim=0, correction=0).add({tiny}).sqrt()",
        _STD,
    ),
    row(
        "std var",
        backward,
        "The standard deviation of equal values is 0, and the derivative of the root in it is infinite there.",
        "Put a small number inside the root.",
        "x.var(dim=0, correction=0).add({tiny}).sqrt()",
        _STD,
    ),
)

DIVISIONS: tuple[Form, ...] = (
    row(
        "div",
        every(_two_tensors, made_by("sqrt"), _line_known),
        "The root it divides by is 0 for some sample, and a clamp after the root would leave its gradient 0 times Inf.",
        "Keep the argument of the root above 0.",
        "x / y.clamp_min({tiny}).sqrt()",
        Edit(0, "{x}.clamp_min({tiny})", of="sqrt"),
    ),
    row(
        "div",
        every(_two_tensors, made_by("norm", "sqrt", "distance")),
        "The norm it divides by is 0 for some sample.",
        "F.normalize keeps the norm away from 0; or clamp the norm.",
        "F.normalize(x, dim=-1, eps={eps})",
        _CLAMP_DENOMINATOR,
    ),
    row(
        "div",
        every(_two_tensors, made_by("std", "var")),
        "The standard deviation it divides by is 0: something is constant over the batch.",
        "Add a small number to the standard deviation.",
        "(x - x.mean(dim=0)) / (x.std(dim=0, correction=0) + 1e-6)",
        Edit(1, "({x} + 1e-6)", once=True),
    ),
    row(
        "div",
        every(_two_tensors, made_by("sum", "count_nonzero"), zero(1)),
        "The sum or count it divides by is 0: nothing was selected for some row (an empty mask).",
        "Divide by at least a small number; by at least 1 where it is a count.",
        "total / count.clamp_min(1)",
        _CLAMP_DENOMINATOR,
    ),
    row(
        "div",
        every(_two_tensors, op.below(0.0, 1)),
        "Its denominator lies between {low2} and {high2} and holds values at or next to 0: x/0 is Inf, 0/0 is NaN.",
        "Replace denominators next to 0.",
        "x / torch.where(y.abs() < {eps}, {eps}, y)",
        Edit(1, "torch.where({x}.abs() < {eps}, {eps}, {x})", once=True),
    ),
    row(
        "div",
        every(_two_tensors, backward),
        "The derivative of x/y has y² below the line, which is 0 where y is 0 or tiny." + MASK_LATER,
        "Keep the denominator away from 0 before dividing.",
        "x / y.clamp_min({eps})",
        _CLAMP_DENOMINATOR,
    ),
    row(
        "div",
        every(_two_tensors, lambda o: not op.reaches(1e15)(o)),
        "Its denominator reaches down to {low2}: x/0 is Inf, 0/0 is NaN.",
        "Keep the denominator away from 0.",
        "x / y.clamp_min({eps})",
        _CLAMP_DENOMINATOR,
    ),
    row(
        "div",
        op.attribute("reflected", True),
        "A number is divided by a tensor that holds {zeros} zeros: n/0 is Inf, 0/0 is NaN.",
        "Divide by at least a small number; by at least 1 where it is a count.",
        "n / x.clamp_min({eps})",
        _CLAMP_DENOMINATOR,
    ),
    row(
        "div",
        lambda o: len(o.inputs) < 2,
        "It divides by 0: a count or a scale is 0, or 1/x meets an x that is 0.",
        "Divide by at least a small number; by at least 1 where it is a count.",
        "x / max(n, 1)",
    ),
    row(
        "reciprocal",
        always,
        "1/x is infinite at 0, and its input lies between {low} and {high}.",
        "Keep the argument away from 0.",
        "x.clamp_min({eps}).reciprocal()",
        CLAMP,
    ),
)
