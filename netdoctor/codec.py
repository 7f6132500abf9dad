"""Values to and from plain JSON, led by the annotations of their dataclasses: what is read is of the kind that is written there.

Numbers that JSON lacks are the strings "NaN", "Infinity" and "-Infinity". An array of one dimension is a list, any other
{"shape": [...], "values": [...]}. A field that holds its own empty default (None, "", NaN, nothing) is left out, and a field
that is missing gets its default, so that a file from before the field was added still opens.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Callable, Mapping
from enum import Enum
from functools import cache
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

from netdoctor.errors import MisuseError

NAMED_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
LARGEST_ARRAY = 2**26  # entries; what is observed is thinned to far less
_SCALARS = (bool, int, float, str)
Build = Callable[[object, str], Any]


def plain(value: object) -> Any:
    """The value as dictionaries, lists, texts and numbers that strict JSON can hold."""
    if isinstance(value, Enum):
        return value.value
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int | float | np.generic):
        return _number(value)
    if isinstance(value, np.ndarray):
        return _array(value)
    if isinstance(value, Mapping):
        return {str(key): _entry(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if not dataclasses.is_dataclass(value):
        raise TypeError(f"{type(value).__name__} is no value that a recording holds")
    return {f.name: plain(own) for f in dataclasses.fields(value) if not _empty(own := getattr(value, f.name), f)}


def _entry(value: object) -> Any:
    """A value of a mapping, where a text that reads like a number must not become one."""
    return {"text": value} if isinstance(value, str) and value in NAMED_NUMBERS else plain(value)


def _number(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _array(values: np.ndarray[Any, Any]) -> Any:
    flat = values.ravel()
    if flat.dtype.kind == "f" and np.array_equal(flat, np.trunc(flat)) and not np.signbit(flat).any():
        # Zeros and ones, mostly: "1" is half of "1.0". Infinity is whole, but no integer has it.
        flat = flat.astype(np.int64) if flat.size and flat.max() < 2**53 else flat
    listed = flat.tolist()
    if flat.dtype.kind == "f" and not np.isfinite(flat).all():
        listed = [_number(value) for value in listed]
    return listed if values.ndim == 1 else {"shape": list(values.shape), "values": listed}


def _empty(value: object, field: dataclasses.Field[Any]) -> bool:
    """Whether a field holds nothing, and would get the same again when it is missing."""
    default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
    if isinstance(value, float) and math.isnan(value):
        return isinstance(default, float) and math.isnan(default)
    nothing = value is None or (isinstance(value, str | tuple | list | Mapping) and not value)
    return nothing and type(default) is type(value) and default == value


def built(kind: Any, data: object, path: str) -> Any:
    """The value of this kind that `plain` made the data of. Raises MisuseError with the path of the first entry that is not."""
    return builder(kind)(data, path)


@cache
def builder(kind: Any) -> Build:
    """What makes a value of this annotation, for one of: a dataclass, an Enum, a scalar, an array, a container, a union."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        return _union(inner)
    if origin is np.ndarray:
        return _array_of(np.dtype(get_args(inner[1])[0]))
    if origin is tuple and inner[-1] is not Ellipsis:
        return _fixed(tuple(builder(part) for part in inner))
    if origin in (list, tuple):
        return _several(origin, builder(inner[0]))
    if origin is not None and issubclass(origin, Mapping):
        return _mapping(builder(inner[1]))
    if dataclasses.is_dataclass(kind):
        return _record(kind)
    return _member(kind) if issubclass(kind, Enum) else _scalar((kind,))


def _wrong(path: str, wanted: str) -> MisuseError:
    return MisuseError(f"{path} must be {wanted}")


def _scalar(kinds: tuple[type, ...]) -> Build:
    """One of several scalar types; a whole number is a float where only floats are wanted."""
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
    wanted = " or ".join(names[kind] for kind in kinds)

    def build(data: object, path: str) -> object:
        if str in kinds and isinstance(data, dict) and isinstance(data.get("text"), str):
            return data["text"]
        if float in kinds and isinstance(data, str) and data in NAMED_NUMBERS:
            return NAMED_NUMBERS[data]
        if type(data) in kinds or (len(kinds) > 1 and float in kinds and type(data) is int):
            return data
        if float in kinds and type(data) is int and abs(data) < 2**1023:
            return float(data)
        raise _wrong(path, wanted)

    return build


def _union(kinds: tuple[Any, ...]) -> Build:
    if set(kinds) <= set(_SCALARS):
        return _scalar(kinds)
    others = [kind for kind in kinds if kind is not type(None)]
    one = _scalar(tuple(others)) if set(others) <= set(_SCALARS) else builder(others[0])
    return lambda data, path: None if data is None else one(data, path)


def _member(kind: type[Enum]) -> Build:
    def build(data: object, path: str) -> Enum:
        try:
            return kind(data)
        except ValueError:
            raise _wrong(path, f"one of {', '.join(str(member.value) for member in kind)}") from None

    return build


def _several(container: type, one: Build) -> Build:
    def build(data: object, path: str) -> object:
        if not isinstance(data, list):
            raise _wrong(path, "a list")
        return container(one(entry, f"{path}[{at}]") for at, entry in enumerate(data))

    return build


def _fixed(parts: tuple[Build, ...]) -> Build:
    def build(data: object, path: str) -> tuple[Any, ...]:
        if not isinstance(data, list) or len(data) != len(parts):
            raise _wrong(path, f"a list of {len(parts)}")
        return tuple(part(entry, f"{path}[{at}]") for at, (part, entry) in enumerate(zip(parts, data, strict=True)))

    return build


def _mapping(one: Build) -> Build:
    def build(data: object, path: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise _wrong(path, "an object")
        return {key: one(entry, f"{path}.{key[:80]}") for key, entry in data.items()}

    return build


def _record(kind: Any) -> Build:
    """A dataclass by its fields; keys that are not known belong to a later version and are passed over."""
    hints = get_type_hints(kind)
    fields = {field.name: builder(hints[field.name]) for field in dataclasses.fields(kind)}
    needed = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING]

    def build(data: object, path: str) -> object:
        if not isinstance(data, dict):
            raise _wrong(path, "an object")
        for name in needed:
            if name not in data:
                raise _wrong(f"{path}.{name}", "there")
        return kind(**{name: one(data[name], f"{path}.{name}") for name, one in fields.items() if name in data})

    return build


def _array_of(kind: np.dtype[Any]) -> Build:
    def build(data: object, path: str) -> np.ndarray[Any, Any]:
        shape, values = (None, data) if isinstance(data, list) else _shaped(data, path)
        wanted = {int} if kind.kind == "i" else {int, float}
        if len(values) > LARGEST_ARRAY:
            raise _wrong(path, f"of at most {LARGEST_ARRAY} numbers")
        if not {type(value) for value in values} <= wanted:
            number = _scalar((int,) if kind.kind == "i" else (float,))
            values = [number(value, path) for value in values]
        try:
            made = np.array(values, dtype=kind)
        except (OverflowError, ValueError):
            raise _wrong(path, "a list of numbers of 64 bits") from None
        return made if shape is None else made.reshape(shape)

    return build


def _shaped(data: object, path: str) -> tuple[list[int], list[Any]]:
    shape, values = (data.get("shape"), data.get("values")) if isinstance(data, dict) else (None, None)
    if not isinstance(shape, list) or not isinstance(values, list):
        raise _wrong(path, "a list of numbers, or an object of shape and values")
    if not all(type(size) is int and 0 <= size <= LARGEST_ARRAY for size in shape) or math.prod(shape) != len(values):
        raise _wrong(path, "as many numbers as its shape says")
    if len(shape) > 8:
        raise _wrong(path, "of at most 8 dimensions")
    return shape, values
