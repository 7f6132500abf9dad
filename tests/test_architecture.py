"""The layout of the README's picture, held: import order, rooms that are blind to others, lazy torch, sizes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "netdoctor"

# Low to high. A room imports from lower rows only; rooms of one row may not see one another.
ROWS = [
    ["__init__"],  # nothing but lazy names and the version
    ["errors", "graph", "data", "origin"],
    ["recording", "codec"],
    ["finding", "trend", "journal"],
    ["report"],
    ["check", "reportfile"],
    ["recordingfile", "excerpts", "comparison", "reportschema"],
    ["capture", "checks", "render"],
    ["catalogue"],
    ["ranking"],
    ["diagnosis"],
    ["judging"],
    ["experiments"],
    ["config"],
    ["session"],
    ["launch", "outputs", "factory", "writers"],
    ["wishes", "assertions", "watching"],
    ["saved"],
    ["cli", "pytest_plugin", "integrations"],
    ["__main__"],
]
RANK = {room: rank for rank, rooms in enumerate(ROWS) for room in rooms}
MAY_IMPORT_TORCH = {"capture", "experiments", "session", "integrations"}
KNOW_NO_DIAGNOSIS = {"launch": {"errors", "__init__"}}  # the one door that could do without the rest of the house
MAY_PRINT = {"cli", "__main__"}
LONGEST_FILE, LONGEST_CHECK, LONGEST_FUNCTION, MEDIAN_FUNCTION, MOST_PUBLIC_NAMES = 400, 100, 60, 10, 8

FILES = sorted(PACKAGE.rglob("*.py"))
Function = ast.FunctionDef | ast.AsyncFunctionDef


def module_of(file: Path) -> str:
    """netdoctor/capture/tape.py → capture.tape; a package's __init__ is the package; the root's is "__init__"."""
    parts = file.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


MODULES = {module_of(file): file for file in FILES}


def room_of(module: str) -> str:
    return module.partition(".")[0]


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def running(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those that only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not is_for_types_only(child):
            yield child
            yield from running(child)


def imported(file: Path) -> Iterator[str]:
    """Every dotted name that a file imports, anywhere in it; `from a import b` gives a.b."""
    for node in running(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def uses(module: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for name in imported(MODULES[module]):
        top, _, inner = name.partition(".")
        if top == "netdoctor":
            while inner and inner not in MODULES:
                inner = inner.rpartition(".")[0]
            found.add(inner or "__init__")
    return found - {module}


def functions(file: Path) -> Iterator[Function]:
    return (node for node in ast.walk(tree(file)) if isinstance(node, Function))


def length(function: Function) -> int:
    return (function.end_lineno or function.lineno) - function.lineno + 1


def holds_a_check(file: Path) -> bool:
    classes = (node for node in tree(file).body if isinstance(node, ast.ClassDef))
    return any(ast.unparse(base) == "Check" for node in classes for base in node.bases)


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in MODULES} - set(RANK) == set()


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_downward(module: str) -> None:
    room = room_of(module)
    upward = {used for used in uses(module) if room_of(used) != room and RANK[room_of(used)] >= RANK[room]}
    assert upward == set()


@pytest.mark.parametrize("module", KNOW_NO_DIAGNOSIS)
def test_some_doors_know_nothing_of_diagnosis(module: str) -> None:
    assert uses(module) <= KNOW_NO_DIAGNOSIS[module]


def test_no_cycle_at_any_depth() -> None:
    TopologicalSorter({module: uses(module) for module in MODULES}).prepare()


def test_torch_is_imported_only_where_it_may() -> None:
    importers = {module for module, file in MODULES.items() for name in imported(file) if name.split(".")[0] == "torch"}
    assert {room_of(module) for module in importers} <= MAY_IMPORT_TORCH


@pytest.mark.parametrize("module", MODULES)
def test_nothing_works_at_import(module: str) -> None:
    """A module's body defines and names; it runs no loops, no `with`, and calls nothing for its effect."""
    allowed = ast.Import | ast.ImportFrom | Function | ast.ClassDef | ast.Assign | ast.AnnAssign | ast.If | ast.Try
    for node in tree(MODULES[module]).body:
        is_docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        assert is_docstring or isinstance(node, allowed), ast.unparse(node)
        if isinstance(node, ast.If):
            assert re.search(r"TYPE_CHECKING|sys\.version_info|__name__ == '__main__'", ast.unparse(node.test))


@pytest.mark.parametrize("module", MODULES)
def test_sizes(module: str) -> None:
    file = MODULES[module]
    limit = LONGEST_CHECK if holds_a_check(file) else LONGEST_FILE
    assert len(file.read_text(encoding="utf-8").splitlines()) <= limit
    assert {f.name: length(f) for f in functions(file) if length(f) > LONGEST_FUNCTION} == {}


def test_functions_are_short_as_a_rule() -> None:
    assert median(length(function) for file in FILES for function in functions(file)) <= MEDIAN_FUNCTION


@pytest.mark.parametrize("module", MODULES)
def test_only_doors_print(module: str) -> None:
    if room_of(module) not in MAY_PRINT:
        calls = [node for node in ast.walk(tree(MODULES[module])) if isinstance(node, ast.Call)]
        assert [call.lineno for call in calls if ast.unparse(call.func) in {"print", "sys.stdout.write"}] == []


def test_no_file_without_a_subject() -> None:
    assert {"utils", "util", "common", "helpers", "misc"} & {file.stem for file in FILES} == set()


def test_few_public_names() -> None:
    import netdoctor

    assert len(netdoctor.__all__) <= MOST_PUBLIC_NAMES
