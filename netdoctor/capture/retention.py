"""Whether the autograd graphs of past steps are still alive: some tensor of theirs is held from step to step."""

from __future__ import annotations

import ast
import linecache
import weakref
from collections import deque
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from netdoctor.capture.recorder import Recorder
from netdoctor.recording import SourceLine

KEY = "netdoctor graph"  # where a node of the graph keeps its mark; the mark dies with the node
_NODES = 48  # marked per step, from the loss backwards: as deep as outputs and hidden states usually lie
_LATER_NODES = 16  # of a step after the first ones, in which no graph was held
_MARKS = 512  # steps that are followed
_FIRST = 32  # steps that are all marked; later ones only when they are measured anyway
_MANY = 4  # graphs alive: then the line that holds them is looked for
_FREED = frozenset({"item", "detach", "tolist", "numpy"})


class _Mark:
    """Lies in the metadata of a graph's nodes, so that it lives as long as one of them does."""

    __slots__ = ("__weakref__",)


class Retention:
    """Marks the graph of each loss, and counts which marks are still alive later."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._marks: dict[int, weakref.ref[_Mark]] = {}
        self._made: list[int] = []  # the steps that were marked, dead or alive
        self._told = False

    def see(self, losses: list[Tensor], step: int, detailed: bool, position: tuple[str, int]) -> None:
        """A backward call is about to run: count the graphs of earlier steps that are alive, and mark this one.

        Scalars: "graphs alive" (the step just before left out, as its variables may still hold it), "graph age" (of the oldest
        one, in steps) and "graphs alive, share" (of those marked since the oldest).
        """
        if not (detailed or step < _FIRST) or not losses or losses[0].grad_fn is None or step in self._made[-1:]:
            return
        living = [at for at, ref in self._marks.items() if at < step - 1 and ref() is not None]
        since = [at for at in self._made if living and living[0] <= at < step - 1]
        self._recorder.scalar("graphs alive", step, len(living))
        self._recorder.scalar("graph age", step, step - living[0] if living else 0)
        self._recorder.scalar("graphs alive, share", step, len(living) / max(1, len(since)))
        if len(living) >= _MANY and not self._told:
            self._told = True
            self._recorder.count("graphs retained", step, source=holder(position))
        self._marks = {at: ref for at, ref in self._marks.items() if ref() is not None}
        if len(self._marks) < _MARKS:
            mark = _Mark()
            for node in _nodes(losses[0].grad_fn, _NODES if step < _FIRST or living else _LATER_NODES):
                node.metadata[KEY] = mark
            self._marks[step] = weakref.ref(mark)
            self._made.append(step)


def _nodes(root: Any, most: int) -> Iterator[Any]:
    """The nodes of a graph that carry no mark yet, nearest to the loss first; the leaves' own nodes live as long as they do."""
    queue, seen = deque([root]), 0
    while queue and seen < most:
        node = queue.popleft()
        following = node.next_functions
        if not following or KEY in node.metadata:  # a leaf's own node has nothing behind it
            continue
        seen += 1
        yield node
        queue.extend(behind for behind, _ in following if behind is not None)


def holder(position: tuple[str, int]) -> SourceLine | None:
    """The user's line that most likely holds the graphs: in the file of the backward call, a sum or a list of the very loss.

    Lines are read, not run: `total += loss`, `total = total + loss`, `losses.append(loss)`, where nothing of `.item()`,
    `.detach()` or `float()` stands around the name of what `.backward()` was called on, or of what that was made from.
    """
    file, line = position
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return None
    called = [node for node in ast.walk(tree) if _is_backward(node) and getattr(node, "lineno", 0) == line]
    names = {found.id for node in called for found in ast.walk(node) if isinstance(found, ast.Name)}
    statements = [node for node in ast.walk(tree) if isinstance(node, ast.stmt)]
    lines = [node.lineno for node in statements if _keeps(node, names)]
    lines = lines or [node.lineno for node in statements if _keeps(node, _parts(statements, names))]
    if not lines:  # a hidden state that is carried on, most likely: the call that needs the old graph is what is known
        retained = any(word.arg in ("retain_graph", "create_graph") for node in called for word in _keywords(node))
        return SourceLine(file, line, linecache.getline(file, line).strip()) if retained else None
    nearest = min(lines, key=lambda number: abs(number - line))
    return SourceLine(file, nearest, linecache.getline(file, nearest).strip())


def _parts(statements: list[ast.stmt], names: set[str]) -> set[str]:
    """The names that stand in what is assigned to one of these names: the outputs that a loss is made of."""
    made = [s for s in statements if isinstance(s, ast.Assign) and any(_named(t, names) for t in s.targets)]
    return {found.id for s in made for found in ast.walk(s.value) if isinstance(found, ast.Name)}


def _named(target: ast.expr, names: set[str]) -> bool:
    return any(isinstance(part, ast.Name) and part.id in names for part in ast.walk(target))


def _keywords(node: ast.AST) -> list[ast.keyword]:
    return node.keywords if isinstance(node, ast.Call) else []


def _is_backward(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "backward"


def _keeps(statement: ast.stmt, names: set[str]) -> bool:
    if isinstance(statement, ast.AugAssign):
        return _bare(statement.value, names)
    if isinstance(statement, ast.Assign):
        targets = {ast.unparse(target) for target in statement.targets}
        own = any(ast.unparse(part) in targets for part in ast.walk(statement.value) if isinstance(part, ast.expr))
        return own and not targets & names and _bare(statement.value, names)
    call = statement.value if isinstance(statement, ast.Expr) else None
    adds = isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr in ("append", "add")
    return adds and isinstance(call, ast.Call) and any(_bare(argument, names) for argument in call.args)


def _bare(expression: ast.expr, names: set[str]) -> bool:
    """Whether one of the names stands in an expression with its graph: nothing around it takes the number out."""
    if isinstance(expression, ast.Name):
        return expression.id in names
    if isinstance(expression, ast.Call):
        function = expression.func
        if isinstance(function, ast.Attribute) and function.attr in _FREED:
            return False
        if isinstance(function, ast.Name) and function.id in ("float", "int"):
            return False
    return any(_bare(part, names) for part in ast.iter_child_nodes(expression) if isinstance(part, ast.expr))
