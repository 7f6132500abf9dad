"""Rows of the table of safe forms: exponentials and masks, bounded functions, losses, and plain arithmetic."""

from __future__ import annotations

from netdoctor.checks.numerics import operations as op
from netdoctor.checks.numerics.form import CLAMP, CLAMP_TOP, EVEN, FINITE_MASK, MASK_LATER, Form, always, row
from netdoctor.checks.numerics.operations import backward, either, every, forward, infinite
from netdoctor.checks.numerics.rewriting import Edit

_LOGS = "log log2 log10"
_CLAMP_ROOT = Edit(0, "{x}.clamp_min({tiny})")
_CLAMP_UNIT = Edit(0, "{x}.clamp(-1 + {edge}, 1 - {edge})")
_STD = Edit(replaced="{x}.var({rest}correction=0).add({tiny}).sqrt()", drops=("unbiased", "correction"))
_NORM = "x.square().sum(dim=-1).clamp_min({tiny}).sqrt()"
_CLAMP_DENOMINATOR = Edit(1, "{x}.clamp_min({eps})", once=True)

EXPONENTIALS: tuple[Form, ...] = (
    row(
        "exp",
        every(forward, op.normalised),
        "Its input reaches {high}; exp of more than {limit} is beyond the largest {dtype} number ({largest}). It is divided "
        "by its sum afterwards, where a common factor makes no difference.",
        "Subtract the largest entry first, as torch.softmax does.",
        "torch.exp(x - x.amax(dim={dim}, keepdim=True).detach())",
        Edit(0, "{x} - {x}.amax(dim={dim}, keepdim=True).detach()"),
    ),
    row(
        "exp expm1 exp2 sinh",
        always,
        "Its input reaches {high}; exp of more than {limit} is beyond the largest {dtype} number ({largest})."
        + MASK_LATER,
        "Bound the argument, or stay in logarithms (logsumexp, log_softmax, softplus).",
        "torch.{op}(x.clamp(max={top}))",
        CLAMP_TOP,
    ),
    row(
        "softmax log_softmax",
        infinite(0),
        "Every entry of a row is -Inf (the row is masked completely): softmax computes exp(-inf - (-inf)) = NaN there.",
        "Mask with the smallest finite number in place of -inf, and leave rows without any entry out of the loss.",
        EVEN,
        FINITE_MASK,
    ),
    row(
        "attention",
        always,
        "A query may attend to nothing (its row of the mask is empty): the softmax over that row is 0/0.",
        "Let rows that are masked completely attend to everything, and leave them out of the loss.",
        "mask = mask | ~mask.any(dim=-1, keepdim=True)  # True where a key may be attended to",
    ),
    row(
        "masked_fill where full",
        every(forward, lambda o: o.kind == "Inf"),
        "The -inf that it writes reaches the loss: the score of a class that is a target is masked.",
        "Mask with a large finite number, and never the class of the target.",
        "logits = logits.masked_fill(mask, -1e4)  # in place of -inf",
    ),
    row(
        "masked_fill",
        always,
        "The mask writes -inf; where a whole row is masked, the softmax after it is 0/0 = NaN.",
        "Mask with the smallest finite number in place of -inf.",
        EVEN,
    ),
)

BOUNDED_FUNCTIONS: tuple[Form, ...] = (
    row(
        "acos asin atanh erfinv",
        forward,
        "{op} is defined on [-1, 1] only, and its input lies between {low} and {high} (rounding is enough).",
        "Keep the argument inside of (-1, 1).",
        "torch.{op}(x.clamp(-1 + {edge}, 1 - {edge}))",
        _CLAMP_UNIT,
    ),
    row(
        "acos asin atanh erfinv",
        backward,
        "The derivative of {op}(x) is infinite at x = -1 and x = 1." + MASK_LATER,
        "Keep the argument inside of (-1, 1).",
        "torch.{op}(x.clamp(-1 + {edge}, 1 - {edge}))",
        _CLAMP_UNIT,
    ),
    row(
        "acosh",
        always,
        "acosh is defined from 1 on, with an infinite derivative at 1, and its input reaches down to {low}.",
        "Keep the argument above 1.",
        "torch.acosh(x.clamp_min(1 + {edge}))",
        Edit(0, "{x}.clamp_min(1 + {edge})"),
    ),
    row(
        "atan2",
        always,
        "The gradient of atan2(y, x) divides by x² + y², which is 0 where both are 0.",
        "Move x off 0 where both are 0; the angle stays the same.",
        "torch.atan2(y, torch.where((y == 0) & (x == 0), 1.0, x))",
        None,
    ),
    row(
        "lgamma",
        always,
        "The gamma function has poles at 0 and the negative integers, and its input reaches down to {low}.",
        "Keep the argument above 0.",
        "torch.lgamma(x.clamp_min({eps}))",
        CLAMP,
    ),
    row(
        "eigh",
        backward,
        "The gradient of eigenvectors and singular vectors divides by the differences of the values, and two are equal.",
        "Add a small diagonal that tells them apart, or use the values alone.",
        "a = a + torch.diag(torch.linspace(0, 1e-4, a.shape[-1], dtype=a.dtype, device=a.device))",
        Edit(0, "({x} + torch.diag(torch.linspace(0, 1e-4, {x}.shape[-1], dtype={x}.dtype, device={x}.device)))"),
    ),
    row(
        "logdet inv eigh",
        always,
        "The matrix is singular, or has equal eigenvalues: the operation, or its gradient, divides by 0.",
        "Add a small multiple of the identity.",
        "a = a + 1e-6 * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)",
    ),
)

LOSSES: tuple[Form, ...] = (
    row(
        "cross_entropy nll_loss",
        op.all_targets_ignored,
        "Every target of the batch is the index to ignore: the mean over no targets is 0/0.",
        "Divide the sum by the number of targets that count, but by at least 1.",
        'loss = F.{op}(logits, target, reduction="sum") / (target != {ignore}).sum().clamp_min(1)',
    ),
    row(
        "cross_entropy nll_loss",
        infinite(0),
        "The score of a target's own class is -Inf (masked out, or the log of 0), so its loss is infinite.",
        "Mask with a large finite number, and never the class of the target.",
        "logits = logits.clamp_min(-1e4)  # in place of -inf",
        Edit(0, "{x}.clamp_min(-1e4)"),
    ),
    row(
        "ctc_loss",
        always,
        "For some sample the target is longer than the input allows: no alignment exists, so the loss is infinite.",
        "Leave impossible alignments out.",
        "F.ctc_loss(log_probs, targets, input_lengths, target_lengths, zero_infinity=True)",
        Edit(keyword="zero_infinity=True"),
    ),
    row(
        "kl_div",
        infinite(0),
        "Its input must be log-probabilities, and some are -Inf: the log of a probability that rounded to 0.",
        "Make the log-probabilities in one function.",
        'F.kl_div(F.log_softmax(logits, dim=-1), target, reduction="batchmean")',
    ),
    row(
        "gaussian_nll_loss",
        lambda o: not op.reaches(1e15)(o),
        "The variance it divides by is 0 or tiny.",
        "Predict the log-variance, and bound it.",
        "var = log_var.clamp(-10.0, 10.0).exp()",
    ),
    row(
        "poisson_nll_loss",
        op.too_large_for_exp,
        "It takes exp of its input, which reaches {high}: more than {limit} is beyond the largest {dtype} number.",
        "Bound the predicted log-rate.",
        "F.poisson_nll_loss(log_rate.clamp(max={top}), target)",
        CLAMP_TOP,
    ),
)

ARITHMETIC: tuple[Form, ...] = (
    row(
        "apply",
        backward,
        "{op} is an autograd function of your own, and its backward makes it of finite values: it divides by 0, or leaves "
        "the range of {dtype}, where its forward does not.",
        "Have the backward of {op} bound what it divides by as its forward does.",
        "return grad / x.clamp_min({eps})  # in {op}.backward",
    ),
    row(
        "mul",
        every(forward, either(infinite(0), infinite(1))),
        "0 times infinity is NaN: a mask of zeros does not remove an infinite value.",
        "Select in place of multiplying by the mask.",
        "x = x.masked_fill(mask == 0, 0.0)  # in place of x * mask",
    ),
    row(
        "sub",
        every(forward, infinite(0), infinite(1)),
        "Infinity minus infinity is NaN: both hold -Inf in the same place (a mask made with -inf).",
        "Bound both before they are subtracted: what is masked in both gives 0.",
        "x.clamp_min(-1e4) - y.clamp_min(-1e4)",
        Edit(replaced="{x}.clamp_min(-1e4) - {y}.clamp_min(-1e4)"),
    ),
    row(
        "sub add sum mean",
        every(forward, either(infinite(0), infinite(1)), lambda o: o.kind == "NaN"),
        "Infinity minus infinity is NaN: two infinite values (masks made with -inf?) meet here.",
        "Mask with a large finite number in place of -inf.",
        "x = x.masked_fill(mask, -1e4)  # in place of -inf",
    ),
    row(
        "mean",
        op.empty(0),
        "The mean over no elements is 0/0: nothing was selected (an empty mask).",
        "Sum, and divide by at least 1.",
        "x.sum() / max(x.numel(), 1)",
        Edit(replaced="{x}.sum() / max({x}.numel(), 1)"),
    ),
    row(
        "where",
        backward,
        "torch.where sends a gradient of 0 into the branch that was not taken, and 0 times that branch's infinite "
        "derivative is NaN.",
        "Make the argument safe before the steep function, not its result after it.",
        "safe = torch.where(mask, x, 1.0)\ny = torch.where(mask, torch.log(safe), 0.0)",
    ),
    row(
        "to",
        always,
        "Its input reaches {high}, and the largest {dtype} number is {largest}.",
        "Keep this computation in float32, or rescale it first.",
        "with torch.autocast(device_type=x.device.type, enabled=False):\n    y = f(x.float())",
    ),
    row(
        "norm_layer",
        every(lambda o: not op.reaches(1e15)(o), either(op.attribute("eps", 0.0), lambda o: o.kind == "NaN")),
        "The variance it divides by is 0 and eps does not keep it off.",
        "Give the normalisation an eps.",
        "nn.BatchNorm1d(features, eps=1e-5)",
    ),
    row(
        "prod",
        always,
        "A product of many factors leaves the range of {dtype} (largest {largest}).",
        "Sum logarithms in place of multiplying.",
        "x.clamp_min({eps}).log().sum(dim=-1)",
    ),
    row(
        "matmul conv embedding relu leaky_relu gelu silu tanh sigmoid mul add sub mean sum norm_layer lstm gru",
        every(backward, lambda o: op.magnitude(o) <= 1e15),
        "Its forward values were ordinary (up to {high}), so the gradient that arrived there had grown beyond the "
        "largest {dtype} number ({largest}).",
        "Find what makes the gradient grow: initialisation, depth, recurrence, learning rate. Clipping bounds it.",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # between backward() and step()",
        ordinary=True,
    ),
    row(
        "",
        lambda o: op.magnitude(o) > 1e15 or o.kind == "Inf",
        "The operation is safe on ordinary values, but its inputs reach {high}, and its result is beyond the "
        "largest {dtype} number ({largest}).",
        "Find what made the values grow: initialisation, learning rate or input scale. Clipping bounds it.",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)  # between backward() and step()",
        ordinary=True,
    ),
    row(
        "",
        always,
        "Its inputs lay between {low} and {high}, where {op} has no finite result or gradient.",
        "Look at the operation in isolation, and keep its inputs in the range where it is defined.",
        "with torch.autograd.detect_anomaly():  # shows the trace of the forward call\n    loss.backward()",
    ),
)
