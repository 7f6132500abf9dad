"""A tensor that the user's code computed of data alone, out of sight, and that holds NaN or Inf: which operation made it.

The user's own assignment is computed again from the variables that still stand. It counts only where it gives the same tensor.
"""

from __future__ import annotations

import ast
import linecache
import math
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from netdoctor.capture.births import Maker
from netdoctor.capture.functions import function_name, mutates, plain, reflection
from netdoctor.capture.source import is_user_file, user_frame, variables_of
from netdoctor.capture.tree import tensors
from netdoctor.capture.watch import is_bad

_LARGE = 1 << 22  # elements: what is larger is not computed again
_PURE: dict[str, Any] = {"len": len, "float": float, "int": int, "abs": abs, "max": max, "min": min, "sum": sum}
_RANDOM = frozenset(
    ["rand", "randn", "randint", "randperm", "bernoulli", "multinomial", "normal", "rand_like", "randn_like", "dropout"]
)
_NODES = (ast.Name, ast.Attribute, ast.Constant, ast.BinOp, ast.UnaryOp, ast.Call, ast.Subscript, ast.Tuple, ast.List)
_REST = (ast.keyword, ast.operator, ast.unaryop, ast.expr_context, ast.Slice, ast.Compare, ast.cmpop)


def computed_again(tensor: Tensor) -> Maker | None:
    """The operation that made a tensor that a variable of the user's running code holds, if its assignment can be repeated."""
    frame = user_frame()
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            variables = variables_of(frame)
            name = next((key for key, value in variables.items() if value is tensor), None)
            if name is not None:
                return _repeated(frame, variables, name, tensor)
        frame = frame.f_back
    return None


def _repeated(frame: FrameType, variables: dict[str, Any], name: str, tensor: Tensor) -> Maker | None:
    value = _assignment(frame, name)
    if value is None or tensor.numel() > _LARGE:
        return None
    names = {**frame.f_globals, **variables}
    if not _is_pure(value, names, name):
        return None
    watch = _FirstBad()
    code = compile(ast.Expression(value), frame.f_code.co_filename, "eval")
    with torch.no_grad(), watch:
        again = eval(code, {"__builtins__": _PURE, **names})
    if not isinstance(again, Tensor) or not torch.equal(torch.nan_to_num(again), torch.nan_to_num(tensor)):
        return None
    if watch.found is None:
        return None
    name, inputs = watch.found
    return Maker(plain(name), (frame.f_code.co_filename, value.lineno), inputs, reflection(name))


class _FirstBad(TorchFunctionMode):
    """Remembers the first operation that makes NaN or Inf out of finite values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: tuple[str, tuple[Tensor, ...]] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.found is None and isinstance(result, Tensor) and any(is_bad(result)):
            inputs = tuple(t.detach() for t in tensors((args, kwargs)))
            if not any(any(is_bad(t)) for t in inputs):
                self.found = function_name(func), inputs
        return result


def _assignment(frame: FrameType, name: str) -> ast.expr | None:
    """The value that the nearest assignment above the running line gives a name."""
    try:
        tree = ast.parse("".join(linecache.getlines(frame.f_code.co_filename)))
    except (SyntaxError, ValueError):
        return None
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign)
        and frame.f_code.co_firstlineno <= node.lineno <= frame.f_lineno
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    return max(found, key=lambda node: node.lineno).value if found else None


def _is_pure(value: ast.expr, names: dict[str, Any], target: str) -> bool:
    """Whether the expression only computes: torch's functions of variables that were not set anew since."""
    for node in ast.walk(value):
        if not isinstance(node, _NODES + _REST) or (isinstance(node, ast.Name) and node.id == target):
            return False
        if isinstance(node, ast.Call) and not _is_function(node.func, names):
            return False
    return True


def _is_function(function: ast.expr, names: dict[str, Any]) -> bool:
    if isinstance(function, ast.Name):
        found = names.get(function.id, _PURE.get(function.id))
        return found is math.log or any(found is known for known in _PURE.values()) or _of_torch(found)
    if not isinstance(function, ast.Attribute) or mutates(function.attr, {}) or function.attr in _RANDOM:
        return False
    root: ast.expr = function
    while isinstance(root, ast.Attribute):
        root = root.value
    owner = names.get(root.id) if isinstance(root, ast.Name) else None
    module = getattr(owner, "__name__", "") if type(owner) is type(math) else ""
    if module:
        return module.partition(".")[0] == "torch" or module == "math"
    return hasattr(Tensor, function.attr) and not isinstance(owner, torch.nn.Module)


def _of_torch(found: Any) -> bool:
    return str(getattr(found, "__module__", "")).startswith("torch") and callable(found) and not isinstance(found, type)
