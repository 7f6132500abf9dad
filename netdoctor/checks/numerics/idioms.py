"""Compositions that torch has in one safe function: log(softmax(x)), log(1 + exp(x)), exp(x) / sum(exp(x)), ...

The safe functions work on logarithms or subtract the largest entry first, so that neither end of the range is lost.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import TypeGuard

from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of

Idiom = Callable[[ast.expr, str], str | None]


def safer(line: str, operation: str) -> str | None:
    """The line with the first unsafe composition around `operation` (a canonical name) replaced; None without one."""
    for idiom in _IDIOMS.get(operation, ()):
        rewritten = rewrite_where(line, idiom)
        if rewritten is not None:
            return rewritten
    return None


def _log_of(inner: str, outer: str) -> Idiom:
    """log(inner(x, ...)) → outer(x, ...)."""

    def idiom(node: ast.expr, line: str) -> str | None:
        inside = _call(_argument(node, "log"), inner)
        return None if inside is None else f"{outer}({_arguments(inside, line)})"

    return idiom


def _softplus(node: ast.expr, line: str) -> str | None:
    """log(1 + exp(x)) and log1p(exp(x)) → F.softplus(x)."""
    inside = _argument(node, "log1p") or _plus_one(_argument(node, "log"))
    exponent = _argument(inside, "exp")
    return None if exponent is None else f"F.softplus({source_of(exponent, line)})"


def _logsumexp(node: ast.expr, line: str) -> str | None:
    """log(sum(exp(x), dim)) → torch.logsumexp(x, dim)."""
    total = _argument(node, "log")
    inside = None if total is None else call_of(total)
    exponent = None if inside is None or inside[0] != "sum" else _argument(inside[1][0], "exp")
    if inside is None or exponent is None:
        return None
    rest = _rest(inside[1][1:], inside[2], line) or ", dim=-1"
    return f"torch.logsumexp({source_of(exponent, line)}{rest})"


def _sigmoid(node: ast.expr, line: str) -> str | None:
    """1 / (1 + exp(-x)) → torch.sigmoid(x)."""
    if not _is_division(node) or not _is_one(node.left):
        return None
    exponent = _argument(_plus_one(node.right), "exp")
    if not isinstance(exponent, ast.UnaryOp) or not isinstance(exponent.op, ast.USub):
        return None
    return f"torch.sigmoid({source_of(exponent.operand, line)})"


def _softmax(node: ast.expr, line: str) -> str | None:
    """exp(x) / sum(exp(x), dim) → torch.softmax(x, dim)."""
    if not _is_division(node):
        return None
    above, total = _argument(node.left, "exp"), call_of(node.right)
    below = None if total is None or total[0] != "sum" else _argument(total[1][0], "exp")
    if above is None or below is None or total is None or ast.dump(above) != ast.dump(below):
        return None
    rest = _rest(total[1][1:], [k for k in total[2] if k.arg == "dim"], line) or ", dim=-1"
    return f"torch.softmax({source_of(above, line)}{rest})"


_IDIOMS: dict[str, tuple[Idiom, ...]] = {
    "log": (_log_of("softmax", "F.log_softmax"), _log_of("sigmoid", "F.logsigmoid"), _softplus, _logsumexp),
    "exp": (_softplus, _logsumexp, _sigmoid, _softmax),
    "log1p": (_softplus,),
    "div": (_softmax, _sigmoid),
    "sum": (_logsumexp, _softmax),
}


def _call(node: ast.expr | None, name: str) -> tuple[tuple[ast.expr, ...], tuple[ast.keyword, ...]] | None:
    """Arguments and keywords where the node calls this operation on something."""
    called = None if node is None else call_of(node)
    return called[1:] if called is not None and called[0] == name and called[1] else None


def _argument(node: ast.expr | None, name: str) -> ast.expr | None:
    """The first argument where the node calls this operation."""
    called = _call(node, name)
    return None if called is None else called[0][0]


def _arguments(call: tuple[tuple[ast.expr, ...], tuple[ast.keyword, ...]], line: str) -> str:
    return source_of(call[0][0], line) + _rest(call[0][1:], call[1], line)


def _rest(arguments: tuple[ast.expr, ...], keywords: tuple[ast.keyword, ...] | list[ast.keyword], line: str) -> str:
    texts = [source_of(argument, line) for argument in arguments]
    texts += [f"{keyword.arg}={source_of(keyword.value, line)}" for keyword in keywords if keyword.arg]
    return "".join(f", {text}" for text in texts)


def _plus_one(node: ast.expr | None) -> ast.expr | None:
    """The other summand of 1 + x or x + 1."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Add):
        return None
    if _is_one(node.left):
        return node.right
    return node.left if _is_one(node.right) else None


def _is_one(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value == 1


def _is_division(node: ast.expr) -> TypeGuard[ast.BinOp]:
    return isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
