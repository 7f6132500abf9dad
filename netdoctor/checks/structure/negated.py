"""The user's line with a mask the other way round."""

from __future__ import annotations

import ast

from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of

_OPPOSITE: dict[type[ast.cmpop], str] = {
    ast.Eq: "!=",
    ast.NotEq: "==",
    ast.Lt: ">=",
    ast.LtE: ">",
    ast.Gt: "<=",
    ast.GtE: "<",
}
# Where each call holds its mask: by position (a method's receiver counts), and by these names.
_PLACES: dict[str, tuple[int, tuple[str, ...]]] = {"masked_fill": (1, ("mask",)), "where": (0, ("condition",))}
_ATTENTION = ("attn_mask", "src_mask", "tgt_mask", "mask")
_NAMES = {
    "key_padding_mask": ("key_padding_mask", "src_key_padding_mask", "memory_key_padding_mask", "tgt_key_padding_mask"),
    "attn_mask": _ATTENTION,
}


def negated_line(text: str, operation: str, argument: str) -> str:
    """The line with the mask that this argument of an operation holds negated; "" where that cannot be told from the line."""

    def edit(node: ast.expr, line: str) -> str | None:
        mask = _mask(node, operation, argument)
        if mask is None:
            return None
        whole, part, new = source_of(node, line), source_of(mask, line), _negated(mask, line)
        start, end = mask.col_offset - node.col_offset, (mask.end_col_offset or 0) - node.col_offset
        if not whole.isascii() or whole[start:end] != part:
            return None
        return f"{whole[:start]}{new}{whole[end:]}"

    return (_assigned(text) if operation == "setitem" else rewrite_where(text, edit)) or ""


def _assigned(text: str) -> str | None:
    """`scores[mask] = low` with the mask negated."""
    try:
        lines = ast.parse(text).body
    except SyntaxError:
        return None
    target = lines[0].targets[0] if lines and isinstance(lines[0], ast.Assign) else None
    if not isinstance(target, ast.Subscript) or isinstance(target.slice, ast.Tuple | ast.Slice) or not text.isascii():
        return None
    mask = target.slice
    return f"{text[: mask.col_offset]}{_negated(mask, text)}{text[mask.end_col_offset :]}"


def _mask(node: ast.expr, operation: str, argument: str) -> ast.expr | None:
    if not isinstance(node, ast.Call):
        return None
    called = call_of(node)
    at, names = _PLACES.get(operation, (None, _NAMES.get(argument, ())))
    if at is None:
        given = [keyword.value for keyword in node.keywords if keyword.arg in names]
        return given[0] if len(given) == 1 else None
    if called is None or called[0] != operation:
        return None
    given = [keyword.value for keyword in called[2] if keyword.arg in names]
    return given[0] if given else called[1][at] if len(called[1]) > at else None


def _negated(node: ast.expr, line: str) -> str:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _OPPOSITE:
        left, right = source_of(node.left, line), source_of(node.comparators[0], line)
        return f"{left} {_OPPOSITE[type(node.ops[0])]} {right}"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
        return source_of(node.operand, line)
    return f"~{source_of(node, line, atom=True)}"
