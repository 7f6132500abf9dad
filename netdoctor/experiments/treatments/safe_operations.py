"""The safe form of exactly the operation that made the first NaN or Inf: the prescription's own template, computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from netdoctor.capture.functions import function_name, is_library_leaf
from netdoctor.checks.numerics.birth import birth
from netdoctor.checks.numerics.operations import canonical
from netdoctor.checks.numerics.rewriting import Edit
from netdoctor.checks.numerics.safe_forms import culprits, match, place_of, words
from netdoctor.experiments.treatments.operations import Change, Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment
from netdoctor.recording import Origin

_NAMES = ("input", "other")  # torch's names of the first two arguments
_TINY = 1e-12  # inside of a root, as the table of safe forms says
_JITTER = 1e-6


def safe_form(case: Case, margin: float | None = None) -> Treatment | None:
    """The guilty operation of the recording's origin in its safe form, wherever the user's line runs it."""
    origin = birth(case.recording)
    if origin is None or not origin.operation or origin.constant:
        return None  # what is computed of data alone is in no captured step
    if match(origin).ordinary or _change(origin) is None:
        return None
    found = origin

    def apply(bench: Bench) -> None:
        exchange_operations(bench, [e for each in culprits(found) for e in _exchanges(case, bench, each, margin)])

    return Treatment(apply)


def _exchanges(case: Case, bench: Bench, origin: Origin, margin: float | None) -> list[Exchange]:
    """Wherever the user's line is run, in whichever module; a module of torch's own is told by itself, not by its line."""
    change, (operation, source) = _change(origin, margin), place_of(origin)
    if change is None:
        return []
    names, original = frozenset({operation}), case.places.module(origin.module) if origin.module else None
    module = None if original is None else bench.copy_of(original)
    if original is not None and is_library_leaf(original):
        return [] if module is None else [Exchange(module, names, change)]
    line = None if source is None else (source.file, source.line)
    if line is None:
        return [Exchange(module, names, change)]
    modules = [child for top in bench.sandbox.modules() for child in top.modules()]
    return [Exchange(each, names, change, line) for each in (None, *modules)]


def _change(origin: Origin, margin: float | None = None) -> Change | None:
    form, known = match(origin), words(origin, margin)
    if form.edit is not None:
        return _computed(form.edit, known)
    return _OTHERS.get(canonical(origin.operation))


def _computed(edit: Edit, known: dict[str, str]) -> Change:
    if edit.keyword:
        name, _, value = edit.keyword.format_map(known).partition("=")
        return lambda func, args, kwargs: func(*args, **{**kwargs, name: _evaluate(value)})
    if edit.replaced:
        text = edit.replaced.format_map({**known, "x": "x", "y": "rest[0]", "rest": "*rest, **named, "})
        return lambda _, args, kwargs: _replaced(text, edit.drops, args, kwargs)
    text = edit.wrapped.format_map({**known, "x": "x"})
    return lambda func, args, kwargs: _wrapped(func, text, edit.argument, args, kwargs)


def _evaluate(text: str, **names: Any) -> Any:
    """A template of netdoctor's own table, filled with numbers."""
    return eval(text, {"torch": torch, "F": F}, names)


def _replaced(text: str, drops: tuple[str, ...], args: Any, kwargs: Any) -> Any:
    named = {key: value for key, value in kwargs.items() if key not in (*drops, "input")}
    x = args[0] if args else kwargs["input"]
    return _evaluate(text, x=x, rest=args[1:], named=named)


def _wrapped(func: Callable[..., Any], text: str, index: int, args: Any, kwargs: Any) -> Any:
    """The call with one argument made safe; `a / x` may run as the reflected method of x, whose operands are turned."""
    if function_name(func).startswith("__r"):
        index = 1 - index
    name = _NAMES[min(index, 1)]
    if index < len(args) and isinstance(args[index], Tensor):
        args = (*args[:index], _evaluate(text, x=args[index]), *args[index + 1 :])
    elif isinstance(kwargs.get(name), Tensor):
        kwargs = {**kwargs, name: _evaluate(text, x=kwargs[name])}
    elif index < len(args) and args[index] == 0:  # a count that is a plain number
        args = (*args[:index], 1, *args[index + 1 :])
    return func(*args, **kwargs)


# --- operations whose safe form is no edit of one argument -----------------------------------------------------------


def _norm(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The Euclidean norm with a small number inside of the root; any other norm stays."""
    order = next((kwargs[key] for key in ("p", "ord") if key in kwargs), args[1] if len(args) > 1 else 2)
    if order not in (None, 2, 2.0, "fro"):
        return func(*args, **kwargs)
    x = args[0] if args else kwargs["input" if "input" in kwargs else "x"]
    dim, keep = kwargs.get("dim", args[2] if len(args) > 2 else None), kwargs.get("keepdim", False)
    square = x.square()
    total = square.sum() if dim is None else square.sum(dim, keepdim=bool(args[3] if len(args) > 3 else keep))
    return total.clamp_min(_TINY).sqrt()


def _distance(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Distances between all pairs, with a small number inside of the root."""
    if function_name(func) != "cdist" or len(args) < 2:
        return func(*args, **kwargs)
    return (args[0].unsqueeze(-2) - args[1].unsqueeze(-3)).square().sum(-1).clamp_min(_TINY).sqrt()


def _atan2(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    y, x = args[0], args[1]
    return func(y, torch.where((y == 0) & (x == 0), 1.0, x))


def _finite_mask(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    least = torch.finfo(args[0].dtype).min
    changed = tuple(least if isinstance(arg, float) and arg == float("-inf") else arg for arg in args)
    named = {key: least if isinstance(v, float) and v == float("-inf") else v for key, v in kwargs.items()}
    return func(*changed, **named)


def _mean_of_some(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A mean over the targets that count, of which there may be none."""
    target, ignored = args[1] if len(args) > 1 else kwargs["target"], kwargs.get("ignore_index", -100)
    return func(*args, **{**kwargs, "reduction": "sum"}) / (target != ignored).sum().clamp_min(1)


def _regular(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    matrix = args[0]
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    return func(matrix + _JITTER * eye, *args[1:], **kwargs)


def _at_least_one(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """A division by a plain number or, reflected, by a tensor that is 0 somewhere."""
    if function_name(func).startswith("__r"):
        x = args[0]
        return func(torch.where(x == 0, torch.finfo(x.dtype).eps, x), *args[1:], **kwargs)
    return func(args[0], args[1] if args[1] != 0 else 1, *args[2:], **kwargs)


_OTHERS: dict[str, Change] = {
    "norm": _norm,
    "distance": _distance,
    "atan2": _atan2,
    "masked_fill": _finite_mask,
    "cross_entropy": _mean_of_some,
    "nll_loss": _mean_of_some,
    "logdet": _regular,
    "inv": _regular,
    "eigh": _regular,
    "div": _at_least_one,
}

TREATMENTS: dict[str, Maker] = {"safe-form": safe_form}
