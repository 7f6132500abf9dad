"""Edits of the user's own line: an activation taken out, a layer replaced, an argument reshaped."""

from __future__ import annotations

import ast
import re

from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of
from netdoctor.recording import SourceLine

_MODULES = {
    "silu": "SiLU",
    "gelu": "GELU",
    "elu": "ELU",
    "celu": "CELU",
    "selu": "SELU",
    "softmax": "Softmax",
    "log_softmax": "LogSoftmax",
    "sigmoid": "Sigmoid",
    "relu": "ReLU",
    "tanh": "Tanh",
}


def without(source: SourceLine | None, operation: str) -> str:
    """The line with the activation taken out: its argument instead of a call, `nn.Identity()` instead of a module."""
    text = "" if source is None else source.text
    module = _MODULES.get(operation, operation.title())
    built = list(re.finditer(rf"\b(?:torch\.)?(?:nn\.)?{module}\([^()]*\)", text))
    if built:  # the last one: the others on the line stand between layers
        return f"{text[: built[-1].start()]}nn.Identity(){text[built[-1].end() :]}"
    return rewrite_where(text, lambda node, line: _argument(node, line, operation)) or ""


def renamed(source: SourceLine | None, names: dict[str, str]) -> str:
    """The line with some names (of functions or classes) replaced; "" where it holds none of them."""
    text = changed = "" if source is None else source.text
    for old, new in names.items():
        changed = re.sub(rf"\b{old}\b", new, changed)
    return changed if changed != text else ""


def told(source: SourceLine | None, name: str, value: str) -> str:
    """The line with an argument set in its only call, `name=value`; "" where the line cannot be read."""
    text = "" if source is None else source.text
    given = re.sub(rf"\b{name}\s*=\s*[^,()]+", f"{name}={value}", text)
    if given != text:
        return given
    call = re.search(r"\w*(?:Loss|_loss|kl_div)\((.*)\)$", text)
    if call is None or call[1].count("(") != call[1].count(")"):
        return ""
    return f"{text[: call.end(1)]}{', ' if call[1].strip() else ''}{name}={value})"


def _argument(node: ast.expr, line: str, operation: str) -> str | None:
    call = call_of(node)
    if call is None or call[0] != operation or not call[1]:
        return None
    return source_of(call[1][0], line, atom=True)


def squeezed(text: str, operation: str, first: bool) -> str:
    """The line with `.squeeze(-1)` on the first (or second) operand of the loss call or difference; "" if not found."""

    def edit(node: ast.expr, line: str) -> str | None:
        operands = _operands(node, operation)
        if operands is None:
            return None
        chosen = operands[0 if first else 1]
        whole, part = source_of(node, line), source_of(chosen, line)
        start, end = chosen.col_offset - node.col_offset, (chosen.end_col_offset or 0) - node.col_offset
        if not whole.isascii() or whole[start:end] != part:
            return None
        return f"{whole[:start]}{source_of(chosen, line, atom=True)}.squeeze(-1){whole[end:]}"

    return rewrite_where(text, edit) or ""


def _operands(node: ast.expr, operation: str) -> tuple[ast.expr, ast.expr] | None:
    """Both sides of a difference or product, or the first two arguments of a call that is no method of a tensor."""
    if operation in {"sub", "rsub", "mul"}:
        kind = ast.Mult if operation == "mul" else ast.Sub
        return (node.left, node.right) if isinstance(node, ast.BinOp) and isinstance(node.op, kind) else None
    if isinstance(node, ast.Call) and len(node.args) >= 2:
        return node.args[0], node.args[1]
    return None


def over_classes(text: str) -> str:
    """The line with `dim=-1` in its softmax; the general form where there is none in it."""
    changed = re.sub(r"(\bdim\s*=\s*)[01]\b", r"\g<1>-1", text)
    if changed == text:
        changed = re.sub(r"((?:softmax|Softmax)\([^()]*?(?:,\s*)?)\b[01]\)", r"\g<1>-1)", text)
    if changed == text:
        changed = re.sub(r"(?<=Softmax\()\)", "dim=-1)", text)
    return changed if changed != text else "softmax(scores, dim=-1)"


def averaged(source: SourceLine | None) -> str:
    """The line with a mean in place of its sum; "" where it holds none."""
    text = "" if source is None else source.text
    changed = re.sub(r"""(reduction\s*=\s*)(["'])sum\2""", r"\g<1>\2mean\2", text)
    changed = changed if changed != text else re.sub(r"\bsum\(", "mean(", text)
    return changed if changed != text else ""
