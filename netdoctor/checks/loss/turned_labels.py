"""The user's line with the labels of pairs turned round, or a triplet's two others exchanged."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from netdoctor.checks.loss.pair_labels import DIFFERENCE, SIGN, TRIPLET
from netdoctor.checks.numerics.rewriting import call_of, is_number, rewrite_where, source_of

# Where each of torch's losses holds its label: by position (a method's receiver does not count), and by name.
_PLACES: dict[str, int] = {
    "cosine_embedding_loss": 2,
    "hinge_embedding_loss": 1,
    "margin_ranking_loss": 2,
    "binary_cross_entropy": 1,
    "binary_cross_entropy_with_logits": 1,
    "soft_margin_loss": 1,
    "mse_loss": 1,
}
_GENERAL = {
    TRIPLET: "triplet_loss(anchor, positive, negative)  # in this order: the second is like the first",
    DIFFERENCE: "loss = F.relu(d_positive - d_negative + margin)  # of distances; of similarities the other way round",
    SIGN: "target = -target  # 1: the first of the two is to be the larger one",
}


def turned_code(facts: Mapping[str, float | str | bool]) -> str:
    """What to write in place of the line, or right before it; of the facts of the arm "pair labels/as they are"."""
    text, kind, operation = (str(facts[name]) for name in ("text", "kind", "operation"))
    low = float(facts["low"])
    if kind == TRIPLET:
        return _exchanged(text) or _GENERAL[kind]
    if kind == DIFFERENCE:
        return _difference(text) or _GENERAL[kind]
    whole = rewrite_where(text, lambda node, line: _with_label(node, line, operation, low if kind != SIGN else -1.0))
    if whole or kind == SIGN:
        return whole or _GENERAL[SIGN]
    name = _label(text)
    place = f"right before line {float(facts['line']):.0f}" if name else "before the loss gets it"
    name = name or "target"
    return f"{name} = {_turned(name, low)}  # {place}"


def _turned(text: str, low: float) -> str:
    return f"-{text}" if low < 0 else f"1 - {text}"


def _with_label(node: ast.expr, line: str, operation: str, low: float) -> str | None:
    """A call of one of torch's losses, or of a module that is one, with its label turned."""
    if operation not in _PLACES or not isinstance(node, ast.Call) or not _calls(node, operation):
        return None
    at = _PLACES[operation]
    named = [keyword.value for keyword in node.keywords if keyword.arg in ("target", "label", "labels", "y")]
    label = named[0] if named else node.args[at] if len(node.args) > at else None
    return None if label is None else _put(node, line, {label: _turned(source_of(label, line, atom=True), low)})


def _calls(node: ast.Call, operation: str) -> bool:
    """Whether a call may be that of the loss: of its function, or of something without a name of torch's."""
    called = call_of(node)
    plain = isinstance(node.func, ast.Name) or (
        isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Name) and node.func.value.id == "self"
    )
    return (called is not None and called[0] == operation) or (plain and len(node.args) + len(node.keywords) > 1)


def _exchanged(text: str) -> str | None:
    def edit(node: ast.expr, line: str) -> str | None:
        if not isinstance(node, ast.Call) or len(node.args) < 3:
            return None
        one, two = node.args[1:3]
        return _put(node, line, {one: source_of(two, line), two: source_of(one, line)})

    return rewrite_where(text, edit)


def _difference(text: str) -> str | None:
    """The two distances of the outermost difference exchanged; a margin stays where it is."""
    seen: list[str | None] = []

    def edit(node: ast.expr, line: str) -> str | None:
        if not isinstance(node, ast.BinOp) or not isinstance(node.op, ast.Sub) or is_number(node.right) or seen:
            return None
        one, two = _distance(node.left), _distance(node.right)
        simple = isinstance(one, ast.Name | ast.Call) and isinstance(two, ast.Name | ast.Call)
        seen.append(_put(node, line, {one: source_of(two, line), two: source_of(one, line)}) if simple else None)
        return seen[0]

    return rewrite_where(text, edit)


def _distance(node: ast.expr) -> ast.expr:
    """What a number is added to; else the expression itself."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add) and is_number(node.left) != is_number(node.right):
        return node.right if is_number(node.left) else node.left
    return node


def _put(node: ast.expr, line: str, new: dict[ast.expr, str]) -> str | None:
    """The text of an expression with some of its parts exchanged."""
    whole = source_of(node, line)
    if not line.isascii():
        return None
    for part in sorted(new, key=lambda part: -part.col_offset):
        start, end = part.col_offset - node.col_offset, (part.end_col_offset or 0) - node.col_offset
        if part.lineno != node.lineno or whole[start:end] != source_of(part, line):
            return None
        whole = f"{whole[:start]}{new[part]}{whole[end:]}"
    return whole


def _label(text: str) -> str | None:
    """The variable of a line that holds the label: what is taken from 1, compared with a number, or the first factor of a
    product, in this order."""
    found: dict[int, set[str]] = {0: set(), 1: set(), 2: set()}

    def look(node: ast.expr, _: str) -> None:
        at, name = _candidate(node)
        if isinstance(name, ast.Name):
            found[at].add(name.id)

    rewrite_where(text, look)
    return next((next(iter(names)) for names in found.values() if len(names) == 1), None)


def _candidate(node: ast.expr) -> tuple[int, ast.expr | None]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
        one = isinstance(node.left, ast.Constant) and node.left.value == 1
        return 0, node.right if one else None
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        return 1, node.left if is_number(node.comparators[0]) else None
    return 2, node.left if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) else None
