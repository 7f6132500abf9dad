"""The table: every row fits some origin, says why, and proposes code that compiles and stays finite."""

from __future__ import annotations

import ast
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from netdoctor.checks.numerics.safe_forms import TABLE, match, prescribe, why
from netdoctor.recording import NORMALISED, Culprit, Operand, Origin, SourceLine


def operand(
    low: float = -1.0, high: float = 1.0, shape: tuple[int, ...] = (8, 4), dtype: str = "float32", **counts: int
) -> Operand:
    return Operand("", shape, dtype, low, high, **counts)


def born(
    operation: str,
    *inputs: Operand,
    phase: str = "forward",
    kind: str = "NaN",
    text: str = "",
    upstream: str = "",
    **known: Any,
) -> Origin:
    source = SourceLine("train.py", 3, text) if text else None
    return Origin(phase, kind, 5, operation, inputs=inputs, source=source, upstream=upstream, **known)


# operation, phase, kind, inputs, a word of the reason, the user's line, the line that is proposed
CASES = [
    (
        born("log", operand(0, 1, zeros=2), kind="Inf", text="y = torch.log(p)"),
        "exactly 0",
        "y = torch.log(p.clamp_min(1e-8))",
    ),
    (born("log", operand(-2, 1), text="y = torch.log(p)"), "negative", "y = torch.log(p.clamp_min(1e-8))"),
    (
        born("log", operand(0, 1, zeros=1), kind="Inf", upstream="softmax", text="y = p.log()"),
        "softmax",
        "y = p.clamp_min(1e-8).log()",
    ),
    (
        born("log", operand(0, 1, zeros=1), kind="Inf", upstream="softmax", text="y = torch.log(torch.softmax(z, 1))"),
        "softmax",
        "y = F.log_softmax(z, 1)",
    ),
    (
        born("log", operand(0, 1, zeros=1), phase="backward", text="y = torch.log(p)"),
        "1/x",
        "y = torch.log(p.clamp_min(1e-8))",
    ),
    (born("log", operand(0, 1, zeros=1), kind="Inf", upstream="sigmoid", text="y = q.log()"), "sigmoid", None),
    (born("div", operand(), operand(0, 1), phase="backward", text="y = a / b"), "y²", "y = a / b.clamp_min(1e-8)"),
    (
        born("log1p", operand(-1, 1), kind="Inf", text="y = torch.log1p(p)"),
        "-1",
        "y = torch.log1p(p.clamp_min(-1 + 1e-6))",
    ),
    (born("logit", operand(0, 1), kind="Inf", text="y = torch.logit(p)"), "infinite", "y = torch.logit(p, eps=1e-6)"),
    (born("sqrt", operand(-1, 1), text="y = torch.sqrt(v)"), "negative", "y = torch.sqrt(v.clamp_min(1e-12))"),
    (
        born(
            "SqrtBackward0",
            operand(0, 1, zeros=3),
            phase="backward",
            text="return torch.sqrt((a - b).pow(2).sum(dim=1))",
        ),
        "infinite at x = 0",
        "return torch.sqrt((a - b).pow(2).sum(dim=1).clamp_min(1e-12))",
    ),
    (born("rsqrt", operand(0, 1), kind="Inf", text="y = v.rsqrt()"), "0", "y = v.clamp_min(1e-8).rsqrt()"),
    (born("pow", operand(-1, 1), text="y = x ** 0.3"), "negative base", "y = x.clamp_min(1e-12) ** 0.3"),
    (
        born("pow", operand(0, 1, zeros=1), phase="backward", text="y = x ** 0.3"),
        "p < 1",
        "y = x.clamp_min(1e-12) ** 0.3",
    ),
    (
        born("pow", operand(0, 1, zeros=1), kind="Inf", text="y = x ** -1.0"),
        "negative power",
        "y = x.clamp_min(1e-8) ** -1.0",
    ),
    (born("div", operand(), operand(0, 1, zeros=1), text="y = a / b"), "0/0", "y = a / b.clamp_min(1e-8)"),
    (
        born("div", operand(), operand(-1, 1, zeros=1), text="y = a / b"),
        "0/0",
        "y = a / torch.where(b.abs() < 1e-8, 1e-8, b)",
    ),
    (
        born("div", operand(), operand(0, 1, zeros=1), upstream="norm", text="y = a / a.norm(dim=1)"),
        "norm",
        "y = a / a.norm(dim=1).clamp_min(1e-8)",
    ),
    (
        born("div", operand(), operand(0, 1, zeros=1), upstream="std", text="y = a / x.std(0)"),
        "constant",
        "y = a / (x.std(0) + 1e-6)",
    ),
    (
        born("div", operand(), operand(0, 3, zeros=1), upstream="sum", text="y = a / m.sum()"),
        "count",
        "y = a / m.sum().clamp_min(1e-8)",
    ),
    (born("div", operand(1, 5), text="y = a / n"), "count", "x / max(n, 1)"),
    (
        born("reciprocal", operand(0, 1), kind="Inf", text="y = x.reciprocal()"),
        "1/x",
        "y = x.clamp_min(1e-8).reciprocal()",
    ),
    (born("exp", operand(0, 120), kind="Inf", text="y = torch.exp(x)"), "88.7", "y = torch.exp(x.clamp(max=20.0))"),
    (
        born("exp", operand(0, 20, dtype="torch.float16"), kind="Inf", text="y = x.exp()"),
        "float16",
        "y = x.clamp(max=10.0).exp()",
    ),
    (born("exp", operand(0, 120), kind="Inf", text="y = torch.log(1 + torch.exp(x))"), "88.7", "y = F.softplus(x)"),
    (
        born("softmax", operand(-1, 1, infs=4), text="p = scores.softmax(-1)"),
        "masked",
        "p = scores.clamp_min(torch.finfo(torch.float32).min).softmax(-1)",
    ),
    (born("scaled_dot_product_attention", operand()), "attend", None),
    (born("masked_fill", operand(), kind="Inf"), "class", None),
    (born("masked_fill", operand()), "-inf", None),
    (
        born("acos", operand(-1, 1.0000001), text="y = torch.acos(c)"),
        "[-1, 1]",
        "y = torch.acos(c.clamp(-1 + 1e-6, 1 - 1e-6))",
    ),
    (
        born("asin", operand(-1, 1), phase="backward", text="y = c.asin()"),
        "infinite",
        "y = c.clamp(-1 + 1e-6, 1 - 1e-6).asin()",
    ),
    (born("acosh", operand(0.5, 2), text="y = torch.acosh(c)"), "from 1", "y = torch.acosh(c.clamp_min(1 + 1e-6))"),
    (born("atan2", operand(0, 1, zeros=1), operand(0, 1, zeros=1), phase="backward"), "x² + y²", None),
    (born("std", operand(shape=(1, 4)), text="s = x.std(0)"), "n - 1", "s = x.var(0, correction=0).add(1e-12).sqrt()"),
    (
        born("std", operand(1, 1), phase="backward", text="s = x.std(0)"),
        "root",
        "s = x.var(0, correction=0).add(1e-12).sqrt()",
    ),
    (born("norm", operand(0, 1), phase="backward", text="d = (a - b).norm(dim=1)"), "kink", None),
    (
        born("cross_entropy", operand(), operand(-100, -100, (8,), "int64")),
        "index to ignore",
        'loss = F.cross_entropy(logits, target, reduction="sum") / (target != -100).sum().clamp_min(1)',
    ),
    (born("cross_entropy", operand(infs=3), operand(0, 3, (8,), "int64"), kind="Inf"), "own class", None),
    (
        born("ctc_loss", operand(), kind="Inf", text="loss = F.ctc_loss(a, b, c, d)"),
        "alignment",
        "loss = F.ctc_loss(a, b, c, d, zero_infinity=True)",
    ),
    (born("kl_div", operand(infs=1), kind="Inf"), "log-probabilities", None),
    (born("mul", operand(0, 1), operand(infs=1)), "0 times infinity", None),
    (born("sub", operand(infs=1), operand(infs=1)), "minus infinity", None),
    (born("mean", operand(math.nan, math.nan, (0,)), text="l = losses[mask].mean()"), "no elements", None),
    (born("where", operand(), phase="backward"), "not taken", None),
    (born("half", operand(0, 1e5, dtype="float16"), kind="Inf"), "6.55e+04", None),
    (born("linear", operand(0, 1e30), kind="Inf"), "safe on ordinary values", None),
    (born("conv2d", operand(), phase="backward", kind="Inf"), "gradient that arrived", None),
    (born("my_function", operand()), "my_function", None),
    (born("prod", operand(0, 1e9), kind="Inf", text="y = x.prod(-1)"), "product", None),
    (born("logdet", operand()), "singular", None),
    (born("logsumexp", operand(infs=4), kind="Inf"), "masked", None),
    (
        born("var", operand(), text="s = z.var(dim=0)"),
        "n - 1",
        "s = z.var(dim=0, correction=0)",
    ),
    (
        born(
            "div",
            operand(),
            operand(0, 1, zeros=1),
            text="return h / size",
            upstream="sqrt",
            upstream_source=SourceLine("train.py", 2, "size = h.pow(2).sum(-1).sqrt()"),
        ),
        "clamp after the root",
        "size = h.pow(2).sum(-1).clamp_min(1e-12).sqrt()",
    ),
    (
        born("exp", operand(0, 200), kind="Inf", text="e = torch.exp(z)", downstream=("sum", f"{NORMALISED}1")),
        "divided by its sum",
        "e = torch.exp(z - z.amax(dim=1, keepdim=True).detach())",
    ),
    (
        born("sub", operand(infs=2), operand(infs=2), text="ratio = torch.exp(new - old)"),
        "same place",
        "ratio = torch.exp(new.clamp_min(-1e4) - old.clamp_min(-1e4))",
    ),
    (
        born("div", operand(0, 5, zeros=1), kind="Inf", text="w = len(y) / counts", attributes={"reflected": True}),
        "1 zeros",
        "w = len(y) / counts.clamp_min(1e-8)",
    ),
    (born("log", operand(0, 1, zeros=4), kind="Inf", text="y = p.log()", born="prod"), "product of many", None),
    (born("linalg_eigh", operand(), phase="backward"), "differences", None),
    (born("Twice.apply", operand(0, 1, zeros=1), phase="backward", kind="Inf"), "Twice", None),
    (born("add", operand(infs=1), operand(infs=1)), "minus infinity", None),
    (born("xlogy", operand(), operand(0, 1), kind="Inf"), "log(0)", None),
    (born("lgamma", operand(0, 1), kind="Inf"), "poles", None),
    (born("gaussian_nll_loss", operand(), operand(0, 1)), "variance", None),
    (born("poisson_nll_loss", operand(0, 100), kind="Inf"), "log-rate", None),
    (born("batch_norm", operand(2, 2)), "variance", None),
]


@pytest.mark.parametrize(("origin", "word", "line"), CASES, ids=lambda x: x.operation if isinstance(x, Origin) else "")
def test_reason_and_code(origin: Origin, word: str, line: str | None) -> None:
    fix = prescribe(origin)
    assert line is None or fix.code == line
    assert word in why(origin) or word in fix.says
    assert "{" not in why(origin) + fix.says
    ast.parse(fix.code if "\n" in fix.code or not fix.code.startswith("return") else f"def f():\n    {fix.code}")


def test_every_row_fits_one_of_the_cases() -> None:
    fitted = {id(match(origin)) for origin, _, _ in CASES}
    assert [form.why for form in TABLE if id(form) not in fitted] == []


def test_what_breaks_beside_it_is_mended_with_it() -> None:
    """On the same line one below the other, elsewhere on a line of its own; numbers of `math` are left alone."""
    line, sigma = "nll = ((a - mu) / s) ** 2 + s.log() + math.log(2)", operand(0, 1, zeros=1)
    also = (Culprit("log", SourceLine("train.py", 3, line), (sigma,)),)
    fix = prescribe(born("div", operand(), sigma, text=line, also=also))
    assert fix.code == "nll = ((a - mu) / s.clamp_min(1e-8)) ** 2 + s.clamp_min(1e-8).log() + math.log(2)"
    elsewhere = SourceLine("train.py", 9, "p = b.log()")
    first = born("log", sigma, kind="Inf", text="q = a.log()", also=(Culprit("log", elsewhere, (sigma,)),))
    assert prescribe(first).code == "q = a.clamp_min(1e-8).log()\np = b.clamp_min(1e-8).log()"
    assert prescribe(first, 1e-4).code == "q = a.clamp_min(0.0001).log()\np = b.clamp_min(0.0001).log()"


def test_at_least_twenty_operations() -> None:
    assert len({name for form in TABLE for name in form.operations}) >= 20


@pytest.mark.parametrize(
    ("unsafe", "operation", "phase", "x"),
    [
        ("torch.log(x)", "log", "forward", [0.0, 0.5]),
        ("x.log2()", "log2", "forward", [-1.0, 0.5]),
        ("torch.sqrt(x)", "sqrt", "backward", [0.0, 4.0]),
        ("x ** 0.5", "pow", "backward", [0.0, 4.0]),
        ("torch.rsqrt(x)", "rsqrt", "forward", [0.0, 4.0]),
        ("1.0 * x / x.abs()", "div", "forward", [0.0, 4.0]),
        ("torch.exp(x)", "exp", "forward", [1.0, 100.0]),
        ("torch.acos(x)", "acos", "backward", [-1.0, 1.0]),
        ("x.asin()", "asin", "forward", [1.5, -2.0]),
        ("torch.atanh(x)", "atanh", "forward", [1.0, -1.0]),
        ("torch.logit(x)", "logit", "forward", [0.0, 1.0]),
        ("x.reciprocal()", "reciprocal", "forward", [0.0, 2.0]),
        ("torch.log(torch.softmax(x, 0))", "log", "forward", [-500.0, 500.0]),
        ("torch.log(1 + torch.exp(x))", "exp", "forward", [-500.0, 500.0]),
        ("x.std(0)", "std", "forward", [2.0]),
        ("torch.softmax(x, 0)", "softmax", "forward", [-math.inf, -math.inf]),
    ],
)
def test_proposed_line_is_finite_where_the_users_is_not(
    unsafe: str, operation: str, phase: str, x: list[float]
) -> None:
    """The rewritten line, run by torch: finite value and finite gradient, on the very input that broke the line."""
    given = operand(min(x), max(x), zeros=x.count(0.0), infs=x.count(-math.inf))
    inputs = (given, operand(0, 4, zeros=1)) if operation == "div" else (given,)
    code = prescribe(born(operation, *inputs, phase=phase, text=unsafe)).code
    assert code != unsafe
    assert not _finite(unsafe, x)
    assert _finite(code, x)


def _finite(expression: str, x: list[float]) -> bool:
    values = torch.tensor(x, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of a std over one element
        result = eval(expression, {"torch": torch, "F": F, "x": values})
    (gradient,) = torch.autograd.grad(result.sum(), values)
    return bool(result.isfinite().all() and gradient.isfinite().all())
