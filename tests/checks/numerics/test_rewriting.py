"""The user's line, rewritten: the edit sits where it belongs, and all else stays letter for letter."""

from __future__ import annotations

import ast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdoctor.checks.numerics.idioms import safer
from netdoctor.checks.numerics.operations import canonical
from netdoctor.checks.numerics.rewriting import Edit, denominator, rewrite

CLAMP = Edit(0, "{x}.clamp_min({eps})")
DENOMINATOR = Edit(1, "{x}.clamp_min({eps})", once=True)


@pytest.mark.parametrize(
    ("line", "operation", "expected"),
    [
        ("y = torch.log(p)", "log", "y = torch.log(p.clamp_min(1e-8))"),
        ("return torch.log(p + q).mean()", "log", "return torch.log((p + q).clamp_min(1e-8)).mean()"),
        ("loss = -p.log().sum()", "log", "loss = -p.clamp_min(1e-8).log().sum()"),
        (
            "a = torch.log(p) + torch.log(1 - p)",
            "log",
            "a = torch.log(p.clamp_min(1e-8)) + torch.log((1 - p).clamp_min(1e-8))",
        ),
        ("a = torch.log(torch.log(p))", "log", "a = torch.log(torch.log(p.clamp_min(1e-8)).clamp_min(1e-8))"),
        ("if torch.log(p).sum() > 0:", "log", "if torch.log(p.clamp_min(1e-8)).sum() > 0:"),
        ("x = f(torch.log(p),", "log", "x = f(torch.log(p.clamp_min(1e-8)),"),
        ("größe = torch.log(größe)  # Größe", "log", "größe = torch.log(größe.clamp_min(1e-8))  # Größe"),
        ("s = v.add(1).sqrt_()", "sqrt", "s = v.add(1).clamp_min(1e-8).sqrt_()"),
        ("r = x ** 0.5", "pow", "r = x.clamp_min(1e-8) ** 0.5"),
    ],
)
def test_argument_is_wrapped(line: str, operation: str, expected: str) -> None:
    assert rewrite(line, operation, CLAMP, eps="1e-8") == expected


@pytest.mark.parametrize(
    ("line", "operation"),
    [
        ("self.log('loss', loss)", "log"),  # the user's own method
        ("loss = criterion(model(x), y)", "log"),
        ("x = torch.log(", "log"),
        ("c = torch.log(2.0)", "log"),
        ("", "log"),
        ("self.p = nn.Log(x)", "log"),  # a class is built here, not applied
        ("for x in (", "log"),
    ],
)
def test_lines_without_the_operation_are_left_alone(line: str, operation: str) -> None:
    assert rewrite(line, operation, CLAMP, eps="1e-8") is None


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("z = (x - x.mean(0)) / x.std(0)", "z = (x - x.mean(0)) / x.std(0).clamp_min(1e-8)"),
        ("z = torch.div(a, b + c)", "z = torch.div(a, (b + c).clamp_min(1e-8))"),
        ("z = a / b / 2", "z = a / b.clamp_min(1e-8) / 2"),
        ("z = a / len(a)", None),  # plain numbers cannot be clamped
        ("z = a / x.shape[0]", None),
        ("z = a / math.sqrt(d)", None),
        ("z = a / b / c", None),  # nothing tells which denominator is guilty
    ],
)
def test_denominator(line: str, expected: str | None) -> None:
    assert rewrite(line, "div", DENOMINATOR, eps="1e-8") == expected


def test_keyword_is_added_or_replaced() -> None:
    edit = Edit(keyword="eps=1e-8")
    assert rewrite("o = Adam(p, lr=1e-3)", "adam", edit) == "o = Adam(p, lr=1e-3, eps=1e-8)"
    assert rewrite("o = Adam(p, eps=args.eps, lr=2)", "adam", edit) == "o = Adam(p, eps=1e-8, lr=2)"


def test_keyword_where_the_module_is_built() -> None:
    edit = Edit(keyword="zero_infinity=True")
    assert rewrite("loss_fn = nn.CTCLoss()", "ctc_loss", edit) == "loss_fn = nn.CTCLoss(zero_infinity=True)"
    assert (
        rewrite("loss_fn = nn.CTCLoss(blank=0)", "ctc_loss", edit)
        == "loss_fn = nn.CTCLoss(blank=0, zero_infinity=True)"
    )


@pytest.mark.parametrize(
    ("line", "operation"),
    [("z = (x - m) / x.std(0)", "std"), ("z = x / s", ""), ("z = x / a.sum() / b", ""), ("z = x * 2", "")],
)
def test_what_makes_the_denominator(line: str, operation: str) -> None:
    assert denominator(line) == operation


def test_whole_use_is_replaced_and_keywords_dropped() -> None:
    edit = Edit(replaced="{x}.var({rest}correction=0).add({tiny}).sqrt()", drops=("unbiased",))
    assert rewrite("s = x.std(dim=0, unbiased=True)", "std", edit, tiny="1e-12") == (
        "s = x.var(dim=0, correction=0).add(1e-12).sqrt()"
    )
    assert rewrite("s = torch.std(x)", "std", edit, tiny="1e-12") == "s = x.var(correction=0).add(1e-12).sqrt()"


@pytest.mark.parametrize(
    ("line", "operation", "expected"),
    [
        ("a = torch.log(torch.softmax(z, dim=1))", "log", "a = F.log_softmax(z, dim=1)"),
        ("a = F.softmax(z, 1).log()", "log", "a = F.log_softmax(z, 1)"),
        ("a = torch.log(torch.sigmoid(z))", "log", "a = F.logsigmoid(z)"),
        ("a = torch.log(1 + torch.exp(x)).mean()", "exp", "a = F.softplus(x).mean()"),
        ("a = torch.log1p(x.exp())", "exp", "a = F.softplus(x)"),
        ("a = x.exp().sum(dim=1).log()", "exp", "a = torch.logsumexp(x, dim=1)"),
        ("p = 1 / (1 + torch.exp(-x))", "exp", "p = torch.sigmoid(x)"),
        ("p = torch.exp(z) / torch.exp(z).sum(1)", "exp", "p = torch.softmax(z, 1)"),
        ("p = torch.exp(z) / torch.exp(q).sum(1)", "exp", None),
        ("a = torch.log2(torch.softmax(z, 1))", "log2", None),  # another base
        ("a = torch.log(p)", "log", None),
    ],
)
def test_idioms(line: str, operation: str, expected: str | None) -> None:
    assert safer(line, operation) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("torch.log_", "log"),
        ("LogBackward0", "log"),
        ("aten::log.default", "log"),
        ("LogSoftmaxBackward0", "log_softmax"),
        ("LinalgVectorNormBackward0", "norm"),
        ("__truediv__", "div"),
        ("true_divide", "div"),
        ("CrossEntropyLoss", "cross_entropy"),
        ("ScaledDotProductFlashAttentionForCpuBackward0", "attention"),
        ("conv2d", "conv"),
        ("BatchNorm1d", "batch_norm1d"),
        ("", ""),
    ],
)
def test_canonical(name: str, expected: str) -> None:
    assert canonical(name) == expected


@given(st.text(max_size=60))
def test_any_line_gives_a_line_that_parses_or_none(text: str) -> None:
    rewritten = rewrite(text, "log", CLAMP, eps="1e-8")
    assert rewritten is None or rewritten != text


@given(st.sampled_from(["a", "a + b", "f(a, b=2)", "a[0]", "-a", "a if b else c", "(a)", "a.b", "lambda x: x"]))
def test_rewritten_call_keeps_its_argument(argument: str) -> None:
    rewritten = rewrite(f"y = torch.log({argument})", "log", CLAMP, eps="1e-8")
    assert rewritten is not None
    call = ast.parse(rewritten).body[0].value  # type: ignore[attr-defined]
    clamped = call.args[0].func.value
    assert ast.dump(clamped) == ast.dump(ast.parse(f"({argument})", mode="eval").body)
