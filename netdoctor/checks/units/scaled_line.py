"""The user's own line with scores of a fitting scale, in place of those that make a softmax one-hot."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of
from netdoctor.checks.units.score_scale import Factor, Scores, scores_of
from netdoctor.finding import Fix, Reach, Trial
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import SourceLine

_NUMBERS = re.compile(r"scale|temp|tau|sqrt|norm|factor|beta|gamma|\bd(im|_k|_head|_model|h)?\b")


def line_of(operation: Operation) -> SourceLine | None:
    """The user's line of an operation."""
    return SourceLine(operation.file, operation.line, operation.text) if operation.file else None


def fix(graph: StepGraph, softmaxes: list[tuple[Operation, float]], trial: Trial | None) -> Fix:
    """The lines of the scores with a scale that fits, each once; `softmaxes` with the standard deviation of their scores."""
    lines: dict[str, str] = {}
    for softmax, std in softmaxes:
        scores = scores_of(graph, softmax)
        lines.setdefault((scores.culprit or softmax).text, rewritten(scores, softmax, std))
    kinds = {scores_of(graph, softmax).kind for softmax, _ in softmaxes}
    says = "Scale the scores, so that their standard deviation starts at about 1"
    if kinds == {"large"}:
        says += "; or start with smaller weights behind them, or normalise queries and keys before their product"
    elif kinds & {"unscaled", "inverted"}:
        says += ": products of vectors of length d are divided by the square root of d"
    return Fix("scale-scores", f"{says}.", "\n".join(dict.fromkeys(lines.values())), Reach.MODEL, trial)


def rewritten(scores: Scores, softmax: Operation, std: float) -> str:
    """The user's own line with a scale that fits; the general form where it cannot be rewritten."""
    text = (scores.culprit or softmax).text
    if scores.kind == "unscaled":
        found = rewrite_where(text, lambda node, line: _divided(node, line, scores.width))
        return found or f"scores = q @ k.transpose(-2, -1) / math.sqrt({scores.width})"
    if scores.kind == "inverted":
        return _turned(text) or f"scores = q @ k.transpose(-2, -1) / math.sqrt({scores.width})"
    if scores.kind == "temperature":
        found = _other_factor(text, max(scores.factors, key=lambda factor: factor.size), std)
    else:
        found = rewrite_where(text, lambda node, line: _smaller(node, line, std))
    return found or f"scores = scores / {std:.2g}  # before the softmax"


def _divided(node: ast.expr, line: str, width: int) -> str | None:
    """A product of two tensors, divided by the root of the length of the vectors."""
    if any(_is_softmax(part) for part in ast.walk(node)):
        return None  # its product with the values
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
        first = node.left
    else:
        call = call_of(node)
        if call is None or call[0] != "matmul" or len(call[1]) < 2:
            return None
        first = call[1][1 if isinstance(call[1][0], ast.Constant) else 0]  # einsum begins with a text
    length = f"{source_of(first, line)}.shape[-1]" if isinstance(first, ast.Name) else str(width)
    divided = f"{source_of(node, line)} / math.sqrt({length})"
    goes_on = line.encode()[node.end_col_offset or 0 :][:1] in (b".", b"[")
    return f"({divided})" if goes_on else divided


def _turned(text: str) -> str | None:
    """The line with its only quotient as a product, or else its only product with a number as a quotient."""
    if len(list(_binary(text, ast.Div))) == 1:
        return rewrite_where(text, lambda node, line: _with_right(node, line, ast.Div, "*", None))
    products = list(_binary(text, ast.Mult))
    if len(products) == 1 and _is_number(products[0].right) and not _is_number(products[0].left):
        return rewrite_where(text, lambda node, line: _with_right(node, line, ast.Mult, "/", None))
    return None


def _other_factor(text: str, worst: Factor, std: float) -> str | None:
    """The line with another number in place of its only divisor, or of its only factor."""
    kind, sign = (ast.Div, "/") if worst.divides else (ast.Mult, "*")
    found = list(_binary(text, kind))
    if len(found) != 1 or not (worst.divides or _is_number(found[0].right)):
        return None
    number = std / worst.size if worst.divides else worst.size / std
    return rewrite_where(text, lambda node, line: _with_right(node, line, kind, sign, f"{number:.2g}"))


def _with_right(node: ast.expr, line: str, kind: type[ast.operator], sign: str, right: str | None) -> str | None:
    """An operation of this kind with another sign, and another right operand where one is given."""
    if not isinstance(node, ast.BinOp) or not isinstance(node.op, kind) or not line.isascii():
        return None
    whole, left = source_of(node, line), (node.left.end_col_offset or 0) - node.col_offset
    old = "/" if kind is ast.Div else "*"
    at = whole.index(old, left)
    return f"{whole[:at]}{sign}{whole[at + 1 :]}" if right is None else f"{whole[:at]}{sign} {right}"


def _smaller(node: ast.expr, line: str, std: float) -> str | None:
    """A softmax of its argument divided by the standard deviation."""
    call = call_of(node)
    if call is None or not _is_softmax(node) or not call[1] or not line.isascii():
        return None
    argument, whole = call[1][0], source_of(node, line)
    start, end = argument.col_offset - node.col_offset, (argument.end_col_offset or 0) - node.col_offset
    inner = f"{source_of(argument, line, atom=True)} / {std:.2g}"
    receiver = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.value is argument
    bare = receiver and not (start > 0 and whole[start - 1] == "(")
    return f"{whole[:start]}{f'({inner})' if bare else inner}{whole[end:]}"


def _is_softmax(node: ast.AST) -> bool:
    call = call_of(node) if isinstance(node, ast.expr) else None
    return call is not None and call[0] == "softmax"


def _is_number(node: ast.expr) -> bool:
    """Whether an expression is one number, by its form or by what it is called."""
    if isinstance(node, ast.Constant):
        return True
    plain = not any(isinstance(n, ast.BinOp) and isinstance(n.op, ast.MatMult) for n in ast.walk(node))
    return plain and _NUMBERS.search(ast.unparse(node).lower()) is not None


def _binary(text: str, kind: type[ast.operator]) -> Iterator[ast.BinOp]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    yield from (n for n in ast.walk(tree) if isinstance(n, ast.BinOp) and isinstance(n.op, kind))
