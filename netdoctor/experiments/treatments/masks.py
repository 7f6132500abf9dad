"""Masks of attention: what they keep, whether that is told by the data to be the wrong part, and the same the other way round."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from netdoctor.checks.structure.attention_masks import LOW

_ARGUMENTS: dict[str, tuple[str, ...]] = {
    "multi_head_attention_forward": tuple(inspect.signature(F.multi_head_attention_forward).parameters),
    "scaled_dot_product_attention": ("query", "key", "value", "attn_mask"),
    "masked_fill": ("input", "mask", "value"),
    "setitem": ("input", "mask", "value"),
    "where": ("condition", "input", "other"),
    "add": ("input", "other"),
    "sub": ("input", "other"),
}
_OF_METHOD = ("input", "condition", "other")  # scores.where(mask, -inf)


@dataclass(frozen=True, slots=True)
class Mask:
    """One mask of one call. `keep` is True where a key takes part, (samples or 1, [queries,] keys); `keys` (samples, keys,
    features) is what is attended to, None where that is not known."""

    argument: str
    keep: Tensor
    keys: Tensor | None


@dataclass(frozen=True, slots=True)
class Call:
    """A call that may hide keys: of which kind (a name of torch's), and its arguments."""

    kind: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """Of its positional arguments."""
        method = self.kind == "where" and isinstance(self.args[0], Tensor) and self.args[0].dtype != torch.bool
        return _OF_METHOD if method else _ARGUMENTS[self.kind]

    @property
    def given(self) -> dict[str, Any]:
        """Its arguments by name."""
        return dict(zip(self.names, self.args, strict=False)) | self.kwargs

    def with_argument(self, name: str, value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with one of them exchanged."""
        if name in self.kwargs:
            return self.args, self.kwargs | {name: value}
        at = self.names.index(name)
        return (*self.args[:at], value, *self.args[at + 1 :]), self.kwargs

    # --- what it hides -----------------------------------------------------------------------------------------------

    def masks(self) -> Iterator[Mask]:
        """The masks that it was given, as far as they can be read."""
        given = self.given
        for name in ("key_padding_mask", "attn_mask", "mask", "condition", "input", "other"):
            tensor = given.get(name)
            keep = self._kept(name, tensor) if isinstance(tensor, Tensor) else None
            if keep is None:
                continue
            whole = keep if name == "key_padding_mask" else _laid_out(keep, self._dimensions(given))
            if whole is not None:
                yield Mask(name, whole, _keys(self.kind, given))

    def _kept(self, name: str, tensor: Tensor) -> Tensor | None:
        """True where a key takes part, in the shape of the tensor; None for what is no mask."""
        sense = self._sense(name)
        if self.kind == "setitem" and (tensor.dtype != torch.bool or tensor.dim() != self.given["input"].dim()):
            return None
        if self.kind in ("masked_fill", "setitem", "where") or (sense is not None and tensor.dtype == torch.bool):
            return None if sense is None else tensor.bool() if sense else ~tensor.bool()
        if (
            tensor.requires_grad
            or not tensor.is_floating_point()
            or (sense is None and self.kind not in ("add", "sub"))
        ):
            return None
        values = -tensor if self.kind == "sub" else tensor
        return values > LOW if bool((values <= LOW).any()) and not bool((values > 0).any()) else None

    def _sense(self, name: str) -> bool | None:
        """Whether True keeps, in a boolean mask that is given under this name; None where that is no place for one."""
        given = self.given
        if self.kind in ("masked_fill", "setitem"):
            return False if name == "mask" and _is_low(given.get("value")) else None
        if self.kind == "where":
            lows = _is_low(given.get("other")), _is_low(given.get("input"))
            return lows[0] if name == "condition" and lows[0] != lows[1] else None
        if self.kind == "multi_head_attention_forward":
            return False if name in ("key_padding_mask", "attn_mask") else None
        return True if self.kind == "scaled_dot_product_attention" and name == "attn_mask" else None

    def _dimensions(self, given: dict[str, Any]) -> int:
        """How many dimensions the scores have."""
        if self.kind == "multi_head_attention_forward":
            return 3
        if self.kind == "scaled_dot_product_attention":
            return int(given["query"].dim())
        return max(value.dim() for value in given.values() if isinstance(value, Tensor))

    # --- the other way round -----------------------------------------------------------------------------------------

    def inverted(self, argument: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments with what this mask keeps and what it hides exchanged. Queries that would see nothing see everything."""
        tensor = self.given[argument]
        keep = self._kept(argument, tensor)
        if keep is None:
            return self.args, self.kwargs
        pairs = argument != "key_padding_mask" and self._dimensions(self.given) > 2
        new = _seeing(_exchanged(keep, pairs))
        if self._sense(argument) is None or tensor.dtype not in (torch.bool, torch.uint8):
            low = torch.full_like(tensor, float(tensor[~keep].flatten()[0]))
            made = torch.where(new, torch.zeros_like(tensor), low)
        else:
            made = (new if self._sense(argument) else ~new).to(tensor.dtype)
        args, kwargs = self.with_argument(argument, made)
        return args, kwargs | ({"is_causal": False} if argument == "attn_mask" and "is_causal" in kwargs else {})


def _is_low(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() > 0 and bool((value.detach() <= LOW).all())
    return isinstance(value, int | float) and value <= LOW


def _keys(kind: str, given: dict[str, Any]) -> Tensor | None:
    """(samples, keys, features) of torch's own attention."""
    key = given.get("key")
    if not isinstance(key, Tensor) or kind not in ("multi_head_attention_forward", "scaled_dot_product_attention"):
        return None
    if kind == "multi_head_attention_forward":
        return key.transpose(0, 1) if key.dim() == 3 else None
    return key.transpose(1, 2).flatten(2) if key.dim() == 4 else key if key.dim() == 3 else None


def _laid_out(keep: Tensor, dims: int) -> Tensor | None:
    """(samples or 1, keys), or (samples or 1, queries, keys) where it is not the same for all queries; None for what is neither."""
    full = keep.reshape((1,) * (dims - keep.dim()) + keep.shape)
    for axis in range(1, full.dim()):
        if full.shape[axis] > 1 and bool((full == full.narrow(axis, 0, 1)).all()):
            full = full.narrow(axis, 0, 1)
    axes = [axis for axis in range(1, full.dim()) if full.shape[axis] > 1]
    shape = (len(full), *(full.shape[axis] for axis in axes))
    return full.reshape(shape) if len(axes) in (1, 2) else None


def _exchanged(keep: Tensor, pairs: bool) -> Tensor:
    """The other part; where queries see no more than their past, the other part of the past."""
    if pairs and keep.dim() > 1 and keep.shape[-1] == keep.shape[-2]:
        past = torch.ones(keep.shape[-2:], dtype=torch.bool, device=keep.device).tril()
        if not bool((keep & ~past).any()):
            return past & ~keep.any(-2, keepdim=True)
    return ~keep


def _seeing(keep: Tensor) -> Tensor:
    """Queries that would see nothing see everything."""
    return keep | ~keep.any(-1, keepdim=True) if keep.shape[-1] > 1 else keep


# --- the wrong part ------------------------------------------------------------------------------------------------------

SAME = 1e-4  # of the spread of all: what is equal but for rounding
SHORT = 2  # positions that a model may put before or after those of its inputs


def only_padding(mask: Mask, contents: list[Tensor]) -> bool:
    """Whether what takes part is the same in all samples, and what is hidden is not: in what is attended to, or in an input.

    Of positions that are hidden in some samples, if there are any: the first is often kept free so that no row is empty.
    `contents` are tensors (samples, positions, ...) or (positions, samples, ...) that the step was given.
    """
    keep = mask.keep.any(1) if mask.keep.dim() == 3 else mask.keep
    seen = [] if mask.keys is None else [mask.keys]
    for content in [*seen, *contents, *(c.transpose(0, 1) for c in contents)]:
        for part in _parts(keep, content):
            told = part & (~part).any(0)  # positions that all samples may see say nothing of the sense of the mask
            seen_here = told if bool(told.any()) else part
            if _differ(content, ~part) and not _differ(content, seen_here, any_at_all=True):
                return True
    return False


def turned(mask: Mask) -> bool:
    """Whether queries see their future and not their past: what is hidden is all of a triangle below the diagonal."""
    if mask.keep.dim() != 3 or mask.keep.shape[1] != mask.keep.shape[2] or mask.keep.shape[1] < 3:
        return False
    hidden = ~mask.keep
    for below in (0, -1):
        past = torch.ones(hidden.shape[1:], dtype=torch.bool, device=hidden.device).tril(below)
        if bool(hidden.any()) and bool((hidden == (past & hidden.any(1, keepdim=True))).all()):
            return bool(hidden[:, 2:, 0].any())
    return False


def beside_causal(mask: Mask) -> bool:
    """Whether no query sees its future either: only the other part of the mask is to be turned round."""
    if mask.keep.dim() != 3 or mask.keep.shape[1] != mask.keep.shape[2]:
        return False
    return not bool(torch.triu(mask.keep, 1).any())


def _parts(keep: Tensor, content: Tensor) -> Iterator[Tensor]:
    """The mask of the positions of a tensor (samples, positions, ...): of all, or without a few at one of the ends."""
    if content.dim() < 2 or not len(content):
        return
    samples, positions = content.shape[:2]
    if len(keep) == 1:
        keep = keep.expand(samples, -1)
    elif len(keep) != samples and len(keep) % samples == 0:  # one for each head
        heads = keep.reshape(samples, -1, keep.shape[1])
        keep = heads[:, 0] if bool((heads == heads[:, :1]).all()) else keep[:samples]
    more = keep.shape[1] - positions
    if len(keep) != samples or not 0 <= more <= SHORT:
        return
    yield keep[:, more:]
    if more:
        yield keep[:, :positions]


def _differ(content: Tensor, where: Tensor, any_at_all: bool = False) -> bool:
    """Whether samples differ in most of the positions (in any one) in which several of them count. (samples, positions, ...)"""
    rows = content.detach().double().flatten(2) if content.dim() > 2 else content.detach().double()[..., None]
    counts = where[..., None].to(rows.device)
    high = rows.masked_fill(~counts, -torch.inf).amax(0).nan_to_num(0.0, 0.0, 0.0)
    low = rows.masked_fill(~counts, torch.inf).amin(0).nan_to_num(0.0, 0.0, 0.0)
    several = counts.sum(0)[:, 0] > 1
    apart = ((high - low).amax(1) > SAME * float(rows.std()))[several]
    return bool(apart.any()) if any_at_all else bool(len(apart)) and float(apart.double().mean()) > 0.5
