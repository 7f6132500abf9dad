"""Tensors inside of arguments and results: lists, tuples, dictionaries, dataclasses and the like, at any depth."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

_PLAIN = (type(None), str, bytes, int, float)
# What most arguments are that hold no tensor, by their very type: asked first, as every operation of a step is looked into.
PLAIN = frozenset({*_PLAIN, bool, slice, type(...), torch.dtype, torch.device, torch.Size, torch.layout})
_DEPTH = 8  # deeper nesting than this is data, not arguments


def tensors(thing: Any, depth: int = 0) -> Iterator[torch.Tensor]:
    """The tensors in `thing`, in a fixed order."""
    found: list[torch.Tensor] = []
    _collect(thing, found, depth)
    return iter(found)


def _collect(thing: Any, found: list[torch.Tensor], depth: int) -> None:
    if type(thing) in PLAIN:
        return
    if isinstance(thing, torch.Tensor):
        found.append(thing)
    elif not isinstance(thing, _PLAIN) and depth <= _DEPTH:
        for child in thing if type(thing) in (tuple, list) else _children(thing):
            _collect(child, found, depth + 1)


def _children(thing: Any) -> Iterator[Any]:
    if isinstance(thing, (list, tuple, set, frozenset)):
        yield from thing
    elif isinstance(thing, Mapping):
        yield from thing.values()
    elif dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        yield from (getattr(thing, field.name, None) for field in dataclasses.fields(thing))
    elif isinstance(thing, torch.distributions.Distribution):
        yield from vars(thing).values()
    elif not isinstance(thing, torch.nn.Module | type):
        yield from (value for value in getattr(thing, "__dict__", {}).values() if isinstance(value, torch.Tensor))


def substitute(thing: Any, replace: Callable[[torch.Tensor], Any], depth: int = 0) -> Any:
    """`thing` with every tensor t replaced by `replace(t)`; containers are rebuilt only where something changed."""
    if type(thing) in PLAIN:
        return thing
    if isinstance(thing, torch.Tensor):
        return replace(thing)
    if isinstance(thing, _PLAIN) or depth > _DEPTH:
        return thing
    if isinstance(thing, (list, tuple)):
        items = [substitute(item, replace, depth + 1) for item in thing]
        if all(new is old for new, old in zip(items, thing, strict=True)):
            return thing
        return _like_sequence(thing, items)
    if isinstance(thing, Mapping):
        return _like_mapping(thing, {key: substitute(value, replace, depth + 1) for key, value in thing.items()})
    if dataclasses.is_dataclass(thing) and not isinstance(thing, type):
        return _like_dataclass(thing, replace, depth)
    return thing


def _like_sequence(model: Any, items: list[Any]) -> Any:
    if hasattr(model, "_make"):  # a named tuple, whose own constructor may look into its fields (PackedSequence)
        return type(model)._make(items)
    return type(model)(items)


def _like_mapping(model: Any, items: dict[Any, Any]) -> Any:
    if all(items[key] is value for key, value in model.items()):
        return model
    if type(model) is dict:
        return items
    copied = copy.copy(model)
    for key, value in items.items():
        copied[key] = value
    return copied


def _like_dataclass(model: Any, replace: Callable[[torch.Tensor], Any], depth: int) -> Any:
    new = {f.name: substitute(getattr(model, f.name, None), replace, depth + 1) for f in dataclasses.fields(model)}
    if all(value is getattr(model, name, None) for name, value in new.items()):
        return model
    copied = copy.copy(model)
    for name, value in new.items():
        object.__setattr__(copied, name, value)
    return copied
