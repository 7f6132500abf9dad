"""Whether a small function of the user's only computes, so that it may be asked without changing anything."""

from __future__ import annotations

import builtins
import dis
import functools
import math
from types import CodeType, FunctionType, ModuleType
from typing import Any

_CHANGES = (
    "STORE_ATTR",
    "STORE_GLOBAL",
    "STORE_DEREF",
    "STORE_SUBSCR",
    "STORE_SLICE",
    "DELETE_",
    "IMPORT_",
    "MAKE_",
    "YIELD",
)
_CALLS = ("CALL", "CALL_FUNCTION", "CALL_FUNCTION_KW", "CALL_FUNCTION_EX", "CALL_METHOD", "CALL_KW")
_BUILTINS = frozenset({"abs", "bool", "float", "int", "len", "max", "min", "pow", "range", "round", "sum"})
_NUMERIC = frozenset(dir(math)) | {"clip", "interp", "maximum", "minimum"}  # functions of math and numpy
_DEEPEST = 4  # functions that call functions


def is_pure(function: Any, depth: int = 0) -> bool:
    """Whether a function, partial or bound method writes to nothing but its own variables, and calls nothing but arithmetic and
    functions of this kind. Judged by its bytecode: anything that is not known to be harmless is taken not to be."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if (
        not isinstance(function, FunctionType) or depth > _DEEPEST or function.__code__.co_flags & 0x2A0
    ):  # generators, async
        return False
    calls, callees = 0, 0
    for instruction in dis.get_instructions(function.__code__):
        name = instruction.opname
        if name.startswith(_CHANGES):
            return False
        calls += name in _CALLS
        if name in ("LOAD_ATTR", "LOAD_METHOD"):
            callees += instruction.argval in _NUMERIC
        elif name in ("LOAD_GLOBAL", "LOAD_DEREF"):
            known = _known(_named(function, str(instruction.argval)), depth)
            if known is None:
                return False
            callees += known
    return calls <= callees


def _named(function: FunctionType, name: str) -> Any:
    """What a global or an enclosing variable holds."""
    code: CodeType = function.__code__
    if name in code.co_freevars and function.__closure__ is not None:
        return function.__closure__[code.co_freevars.index(name)].cell_contents
    return function.__globals__.get(name, getattr(builtins, name, None))


def _known(thing: Any, depth: int) -> bool | None:
    """True for a function that may be called, False for what is only read, None for what may do anything."""
    if isinstance(thing, ModuleType) or not callable(thing):
        return False
    if any(thing is getattr(builtins, name) for name in _BUILTINS) or thing in vars(math).values():
        return True
    return True if is_pure(thing, depth + 1) else None
