"""Rewrites the user's own source line into its numerically safe form, by editing the parsed expression.

Everything outside of the edited expression stays letter for letter. A line that cannot be parsed by itself, or that
does not hold the operation, gives None, and the caller shows the general form instead.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from netdoctor.checks.numerics.operations import canonical

_NAMESPACES = frozenset({"torch", "F", "nn", "th", "functional", "special", "linalg", "fft"})
_OTHERS = frozenset({"math", "np", "numpy"})  # their functions are no operations on tensors
_OPERATORS: dict[type[ast.operator], str] = {ast.Div: "div", ast.Pow: "pow", ast.Mult: "mul", ast.Sub: "sub"}


@dataclass(frozen=True, slots=True)
class Use:
    """One use of an operation in a line: its whole expression, its tensor arguments in order, its keywords."""

    node: ast.expr
    arguments: tuple[ast.expr, ...]
    keywords: tuple[ast.keyword, ...] = ()


@dataclass(frozen=True, slots=True)
class Edit:
    """How one use is made safe.

    One of three is given. `argument` is the index of the argument that `wrapped` replaces ("{x}" stands for it,
    "{eps}" for a small number). `replaced` is a text for the whole use ("{x}" its first argument, "{rest}" the others).
    `keyword` is added to the call, or takes the place of the keyword of that name.
    """

    argument: int = 0
    wrapped: str = ""
    replaced: str = ""
    keyword: str = ""
    drops: tuple[str, ...] = ()  # keywords that `replaced` leaves out
    of: str = ""  # the operation that is edited in place of the guilty one: the one that made the guilty operand
    once: bool = False  # only where the line holds a single use, as nothing tells which one is guilty


Span = tuple[int, int, str]  # start, end (in bytes of the encoded line), new text


def rewrite(line: str, operation: str, edit: Edit, **words: str) -> str | None:
    """The line with every use of `operation` (a canonical name) edited; None where that is not possible."""
    built = bool(edit.keyword)
    uses = list(_uses(line, operation, built))
    count = len(uses)
    if count == 0 or (edit.once and count > 1):
        return None
    if not built and any(len(use.arguments) <= edit.argument for use in uses):
        return None
    for index in reversed(range(count)):  # inner and later uses first: what starts before them keeps its place
        use = list(_uses(line, operation, built))[index]
        line = _apply(line, use, edit, words)
    return line if _parsed(line) is not None else None


def rewrite_where(line: str, edit: Callable[[ast.expr, str], str | None]) -> str | None:
    """The line with the first expression for which `edit(expression, line)` gives a text replaced by that text."""
    for node in _expressions(line):
        text = edit(node, line)
        if text is not None:
            return _splice(line, (*_span(node), text))
    return None


def source_of(node: ast.expr, line: str, atom: bool = False) -> str:
    """The text of an expression; in brackets where `atom` is asked for and it is not one."""
    start, end = _span(node)
    text = line.encode()[start:end].decode()
    simple = isinstance(node, ast.Name | ast.Attribute | ast.Call | ast.Subscript)
    return text if simple or not atom else f"({text})"


def call_of(node: ast.expr) -> tuple[str, tuple[ast.expr, ...], tuple[ast.keyword, ...]] | None:
    """Canonical name, arguments (a method's receiver first) and keywords of a call to a torch function or method."""
    if not isinstance(node, ast.Call):
        return None
    if isinstance(node.func, ast.Name):
        return canonical(node.func.id), tuple(node.args), tuple(node.keywords)
    if not isinstance(node.func, ast.Attribute) or _is_name(node.func.value, "self"):
        return None  # self.log(...) is the user's own method
    owner = node.func.value
    if _root(owner) in _OTHERS:
        return None
    receiver = () if _root(owner) in _NAMESPACES else (owner,)
    return canonical(node.func.attr), (*receiver, *node.args), tuple(node.keywords)


def is_number(node: ast.expr) -> bool:
    """Whether an expression is a plain number for certain: a literal, `len(x)`, `x.shape[0]`, `math.pi`."""
    if isinstance(node, ast.Constant):
        return True
    if isinstance(node, ast.UnaryOp):
        return is_number(node.operand)
    if isinstance(node, ast.BinOp):
        return is_number(node.left) and is_number(node.right)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Attribute) and node.value.attr == "shape"
    if isinstance(node, ast.Call):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        of_math = isinstance(node.func, ast.Attribute) and _root(node.func) in {"math", "np", "numpy"}
        return of_math or name in {"len", "numel", "size", "item", "int", "float"}
    return isinstance(node, ast.Attribute) and _root(node) == "math"


def _apply(line: str, use: Use, edit: Edit, words: dict[str, str]) -> str:
    if edit.keyword:
        return _splice(line, _keyword(line, use, edit.keyword.format_map(words)))
    if edit.replaced:
        known = {"x": source_of(use.arguments[0], line, True), "rest": _rest(line, use, edit)}
        known["y"] = source_of(use.arguments[1], line, True) if len(use.arguments) > 1 else ""
        text = edit.replaced.format_map(known | words)
        return _splice(line, (*_span(use.node), text))
    target = use.arguments[edit.argument]
    text = edit.wrapped.format_map({"x": source_of(target, line, True)} | words)
    return _splice(line, (*_span(target), text))


def _rest(line: str, use: Use, edit: Edit) -> str:
    kept = [source_of(argument, line) for argument in use.arguments[1:]]
    kept += [f"{k.arg}={source_of(k.value, line)}" for k in use.keywords if k.arg and k.arg not in edit.drops]
    return "".join(f"{text}, " for text in kept)


def _keyword(line: str, use: Use, keyword: str) -> Span:
    name = keyword.partition("=")[0]
    for present in use.keywords:
        if present.arg == name:
            start, end = _span(present.value)
            return start, end, keyword.partition("=")[2]
    end = _span(use.node)[1] - 1  # before the closing bracket
    lone = not use.keywords and isinstance(use.node, ast.Call) and not use.node.args
    return end, end, keyword if lone else f", {keyword}"


def denominator(line: str) -> str:
    """The canonical operation that makes the only denominator of a line; "" for a variable, or when there are more."""
    uses = list(_uses(line, "div"))
    made = call_of(uses[0].arguments[1]) if len(uses) == 1 and len(uses[0].arguments) > 1 else None
    return "" if made is None else made[0]


def _uses(line: str, operation: str, built: bool = False) -> Iterator[Use]:
    """The uses of an operation in a line, ordered by where they start, outer before inner; see `_use` for `built`."""
    found = [use for node in _expressions(line) if (use := _use(node, operation, built)) is not None]
    return iter(sorted(found, key=lambda use: (_span(use.node)[0], -_span(use.node)[1])))


def _use(node: ast.expr, operation: str, built: bool) -> Use | None:
    """A use of the operation; with `built`, where an object is made that will do it (`nn.CTCLoss()`, `Adam(...)`)."""
    if isinstance(node, ast.BinOp) and _OPERATORS.get(type(node.op)) == operation:
        numbers = is_number(node.right) if operation == "div" else is_number(node.left)
        return None if numbers else Use(node, (node.left, node.right))
    called = call_of(node)
    if called is None or called[0] != operation or (_is_class(node) and not built):
        return None
    if not built and (not called[1] or is_number(called[1][0])):
        return None
    return Use(node, called[1], called[2])


@functools.lru_cache(16)
def _expressions(line: str) -> tuple[ast.expr, ...]:  # read, never changed
    tree = _parsed(line)
    nodes = () if tree is None else ast.walk(tree)
    return tuple(node for node in nodes if isinstance(node, ast.expr) and node.lineno == 1)


def _parsed(line: str) -> ast.Module | None:
    """The line as a syntax tree: as it stands, as the head of a block, or with its open brackets closed."""
    missing = ")" * (line.count("(") - line.count(")"))
    for suffix in ("", "\n    pass", missing, "]" * (line.count("[") - line.count("]")) + missing):
        try:
            return ast.parse(line + suffix)
        except (SyntaxError, ValueError):  # ValueError: null bytes
            continue
    return None


def _span(node: ast.expr) -> tuple[int, int]:
    return node.col_offset, node.end_col_offset or node.col_offset


def _splice(line: str, span: Span) -> str:
    start, end, text = span
    encoded = line.encode()
    return (encoded[:start] + text.encode() + encoded[end:]).decode()


def _root(node: ast.expr) -> str:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _is_class(call: ast.expr) -> bool:
    function = call.func if isinstance(call, ast.Call) else None
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    return str(name)[:1].isupper()


def _is_name(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Name) and node.id == name
