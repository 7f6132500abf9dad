"""What led to the operation that broke, and what reads it: the guilty operand, who made it, where its zeros are from."""

from __future__ import annotations

from torch import Tensor

from netdoctor.capture.source import source_line
from netdoctor.capture.watch import Watched, is_bad
from netdoctor.recording import NORMALISED, SourceLine

_DIVISIONS = frozenset({"div", "true_divide", "divide", "itruediv", "idiv", "xlogy", "remainder", "fmod", "floordiv"})
_SHAPES_NAMES = """
unsqueeze squeeze view reshape expand expand_as flatten unflatten transpose permute getitem T mT
select gather contiguous clone chunk split unbind narrow repeat stack cat movedim swapaxes view_as
diagonal index_select
"""
_SHAPES = frozenset(_SHAPES_NAMES.split())
_FAR = 64  # operations that a zero is followed back through


def guilty(operation: Watched) -> int:
    """The index of the operand that it cannot bear: the denominator of a division, else one that is infinite, else the first."""
    if operation.name in _DIVISIONS and len(operation.inputs) > 1:
        return 1
    return next((number for number, state in enumerate(operation.bad) if any(state)), 0)


def upstream(operations: list[Watched], operation: Watched) -> Watched | None:
    """The operation that made the guilty operand, seen through changes of its shape."""
    made = _maker(operations, operation, guilty(operation))
    while made is not None and made.name in _SHAPES:
        made = _maker(operations, made, 0)
    return made


def zero_maker(operations: list[Watched], operation: Watched) -> Watched | None:
    """The operation that first made the zeros of the guilty operand, out of values that were not 0; None without zeros."""
    if not operation.inputs or not _has_zeros(operation.inputs[min(guilty(operation), len(operation.inputs) - 1)]):
        return None
    made = _maker(operations, operation, guilty(operation))
    for _ in range(_FAR):
        if made is None or not any(_has_zeros(tensor) for tensor in made.outputs):
            return None
        holding = [n for n, tensor in enumerate(made.inputs) if tensor.is_floating_point() and _has_zeros(tensor)]
        if not holding:
            return made if made.name not in _SHAPES else None
        made = next((m for n in holding if (m := _maker(operations, made, n)) is not None), None)
    return None


def downstream(operations: list[Watched], operation: Watched) -> tuple[str, ...]:
    """The operations that read what this one made, by name; "div by sum over 1" where something is divided by its sum."""
    sums = {o.index: o for o in operations if o.name == "sum" and operation.index in o.makers}
    found = [o.name for o in operations if operation.index in o.makers]
    for other in operations:
        total = sums.get(other.makers[1] or -1) if other.name in _DIVISIONS and len(other.makers) > 1 else None
        dim = None if total is None else total.attributes.get("dim", total.attributes.get("1"))
        if isinstance(dim, int | float) and not isinstance(dim, bool):
            found.append(f"{NORMALISED}{dim:.0f}")
    return tuple(dict.fromkeys(found))


def line_of(operation: Watched | None) -> SourceLine | None:
    """The user's line that ran it."""
    return None if operation is None else source_line(*operation.position)


def breaks_by_itself(operation: Watched) -> bool:
    """Whether it makes NaN or Inf out of finite values."""
    return not any(map(any, operation.bad)) and any(any(is_bad(tensor)) for tensor in operation.outputs)


def _maker(operations: list[Watched], operation: Watched, number: int) -> Watched | None:
    maker = operation.makers[number] if number < len(operation.makers) else None
    return None if maker is None else operations[maker]


def _has_zeros(tensor: Tensor) -> bool:
    return tensor.numel() > 0 and bool((tensor == 0).any())
