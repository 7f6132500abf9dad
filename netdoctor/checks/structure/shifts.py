"""Where in the user's code the targets of a cross-entropy are shifted along the sequence."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import CROSS_ENTROPY, NLL, comparisons
from netdoctor.checks.numerics.rewriting import rewrite_where, source_of
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Arm, Recording, SourceLine

_SLICES = frozenset({"getitem", "narrow", "slice"})
_FEW = 2  # positions: what drops more takes a window from a longer text


@dataclass(frozen=True, slots=True)
class Shift:
    """An operation on the way from the data to the loss that drops `by` positions, or rolls them (0)."""

    source: SourceLine
    by: int


def shifts_of(recording: Recording, arm: Arm) -> list[Shift]:
    """What shifts the targets, nearest to the data first; each line of the user's once. What leaves less than `length` positions
    of a sequence (a fact of the arm) is none."""
    length = int(float(arm.facts["length"]))
    found: dict[tuple[str, int], Shift] = {}
    for comparison in comparisons(recording):
        if comparison.operation.name in (CROSS_ENTROPY, NLL):
            for operation in sorted(comparison.graph.ancestors(comparison.target.index), key=lambda o: o.index):
                by = _dropped(comparison.graph, operation, length)
                if by is not None and operation.file:
                    source = SourceLine(operation.file, operation.line, operation.text)
                    found.setdefault((operation.file, operation.line), Shift(source, by))
    return list(found.values())


def _dropped(graph: StepGraph, operation: Operation, length: int) -> int | None:
    if operation.name == "roll":
        return 0
    if operation.name not in _SLICES or not operation.inputs or not operation.outputs:
        return None
    before, after = (graph.values[v].shape for v in (operation.inputs[0], operation.outputs[0]))
    if len(before) != len(after):
        return None
    cut = [(one - other, other) for one, other in zip(before, after, strict=True) if one != other]
    return cut[0][0] if len(cut) == 1 and 0 < cut[0][0] <= _FEW and cut[0][1] >= length else None


def given_line(arm: Arm) -> SourceLine | None:
    """The call that is given the tokens."""
    text = str(arm.facts.get("text", ""))
    return SourceLine(str(arm.facts["file"]), int(float(arm.facts["line"])), text) if text else None


def moved_back(text: str) -> str:
    """The line with its last slice from 1 on made one up to the last but one: `[:, 1:]` → `[:, :-1]`; "" where it holds none."""
    found: list[tuple[int, int]] = []

    def note(node: ast.expr, _: str) -> None:
        found.extend([(node.lineno, node.col_offset)] if _from_one(node) is not None else [])

    rewrite_where(text, note)
    last = found[-1:]
    return rewrite_where(text, lambda n, line: _edited(n, line) if [(n.lineno, n.col_offset)] == last else None) or ""


def _from_one(node: ast.expr) -> ast.Slice | None:
    """The slice `1:` of a subscript."""
    parts = _parts(node.slice) if isinstance(node, ast.Subscript) else iter(())
    for part in parts:
        lower = part.lower if isinstance(part, ast.Slice) and part.upper is None and part.step is None else None
        if isinstance(lower, ast.Constant) and lower.value == 1 and isinstance(part, ast.Slice):
            return part
    return None


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    yield from node.elts if isinstance(node, ast.Tuple) else (node,)


def _edited(node: ast.expr, line: str) -> str | None:
    part = _from_one(node)
    if part is None or not isinstance(node, ast.Subscript):
        return None
    parts = [":-1" if one is part else source_of(one, line) for one in _parts(node.slice)]
    return f"{source_of(node.value, line, atom=True)}[{', '.join(parts)}]"
