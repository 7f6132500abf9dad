"""Treatments of the data: what the model is given, and what the loss compares with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from netdoctor.capture.functions import plain
from netdoctor.capture.step import Iteration
from netdoctor.capture.tape import Constant, Entry
from netdoctor.experiments.loss_terms import DIFFERENCES
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment, with_constants

_CODED = re.compile(r"==\s*([-+.\deE]+)")
_SMALL = 1e-12  # a feature whose standard deviation is less does not vary
Columns = tuple[Tensor, Tensor]  # mean and standard deviation per column


def _is_data(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.layout is torch.strided and tensor.dim() > 0 and tensor.numel() > 1


def _constants(entry: Entry) -> list[Tensor]:
    found = entry.meanings()
    return [item.tensor for item in found if isinstance(item, Constant) and _is_data(item.tensor)]


def _entries(iterations: list[Iteration]) -> Iterator[Entry]:
    seen: set[int] = set()
    for iteration in iterations:
        for backward in iteration.backwards:
            for entry in backward.entries:
                if id(entry) not in seen:
                    seen.add(id(entry))
                    yield entry


def _is_given(entry: Entry) -> bool:
    """Whether the entry takes the model's inputs: a module's call, or the first operation of a model of loose weights."""
    return entry.module is not None


def axis_of(tensor: Tensor) -> int:
    """The dimension of the features: channels of images, the last one of everything else."""
    return 1 if tensor.dim() > 3 else tensor.dim() - 1


# --- NaN -------------------------------------------------------------------------------------------------------------


def fill_in(_: Case) -> Treatment:
    """Mean of the column in place of each NaN and Inf of the batches, as the fix's code does."""
    return Treatment(lambda bench: bench.rewrite(lambda entry: with_constants(entry, _filled)))


def _filled(tensor: Tensor) -> Tensor:
    finite = torch.isfinite(tensor) if _is_data(tensor) else None
    if finite is None or bool(finite.all()):
        return tensor
    kept = torch.where(finite, tensor, 0)
    mean = kept.sum(0, keepdim=True) / finite.sum(0, keepdim=True).clamp_min(1)
    return torch.where(finite, tensor, mean)


def impute(case: Case) -> Treatment | None:
    """Median of the column in place of the code for missing values that the fix's code names."""
    found = _CODED.search(case.fix.code)
    if found is None:
        return None
    code = float(found[1])

    def change(tensor: Tensor) -> Tensor:
        missing = tensor == code
        if not _is_data(tensor) or not bool(missing.any()):
            return tensor
        known = torch.where(missing, torch.nan, tensor).nanmedian(0, keepdim=True).values.nan_to_num(0.0)
        return torch.where(missing, known, tensor)

    return Treatment(lambda bench: bench.rewrite(lambda entry: with_constants(entry, change)))


# --- scale -----------------------------------------------------------------------------------------------------------


def standardise_inputs(_: Case) -> Treatment:
    """Mean 0 and standard deviation 1 per feature, from all captured batches, of what the models are given."""
    return Treatment(lambda bench: _standardise(bench, _is_given, axis_of))


def standardise_targets(case: Case) -> Treatment | None:
    """Mean 0 and standard deviation 1 of the targets of a regression; losses are told in the script's own unit."""
    targets = [t for entry in _entries(case.step.iterations) if _is_difference(entry) for t in _constants(entry)]
    if not targets:
        return None
    std = float(torch.cat([t.reshape(-1).double() for t in targets]).std())
    absolute = case.recording.facts.get("loss_family") in ("l1", "huber")
    unit = std if absolute else std * std
    return Treatment(lambda bench: _standardise(bench, _is_difference, lambda _: None), unit=unit)


def _is_difference(entry: Entry) -> bool:
    return entry.module is None and plain(entry.name) in DIFFERENCES | {"sub", "rsub"}


def _standardise(bench: Bench, concerned: Callable[[Entry], bool], axis: Callable[[Tensor], int | None]) -> None:
    """Columns are told apart by their number: the n-th tensor of an entry is the same thing in each iteration."""
    seen: dict[tuple[int, int | None], list[Tensor]] = {}
    for entry in _entries(bench.iterations):
        for tensor in _constants(entry) if concerned(entry) else ():
            along = axis(tensor)
            seen.setdefault(kind_of(tensor, along), []).append(rows_of(tensor, along))
    if not seen:
        raise LookupError("no floating-point data was seen")
    scales = {kind: scale_of(torch.cat(rows)) for kind, rows in seen.items()}

    def change(tensor: Tensor) -> Tensor:
        along = axis(tensor)
        if not _is_data(tensor) or kind_of(tensor, along) not in scales:
            return tensor
        mean, std = scales[kind_of(tensor, along)]
        shape = [1] * tensor.dim()
        if along is not None:
            shape[along] = -1
        return ((tensor.double() - mean.view(shape)) / std.view(shape)).to(tensor.dtype)

    bench.rewrite(lambda entry: with_constants(entry, change) if concerned(entry) else entry)


def kind_of(tensor: Tensor, along: int | None) -> tuple[int, int | None]:
    """What tensors of the same meaning have in common: their number of dimensions, and of features."""
    return tensor.dim(), None if along is None else int(tensor.shape[along])


def rows_of(tensor: Tensor, along: int | None) -> Tensor:
    """(rows, features) in double precision; one column where the features are not told apart."""
    values = tensor.detach().double()
    return values.reshape(-1, 1) if along is None else values.movedim(along, -1).reshape(-1, values.shape[along])


def scale_of(rows: Tensor) -> Columns:
    """Mean and standard deviation per column; a deviation of 1 where a column does not vary."""
    mean, std = rows.mean(0), rows.std(0)
    return mean, torch.where(std > _SMALL * (1 + mean.abs()), std, 1.0)


# --- order -----------------------------------------------------------------------------------------------------------


def shuffle(_: Case) -> Treatment:
    """The samples of the captured batches, dealt out anew to as many batches."""
    return Treatment(_shuffle)


def _shuffle(bench: Bench) -> None:
    """Every tensor of the first batch's size is taken for samples; iterations of another size are left out."""
    held = [list(_tensors(iteration)) for iteration in bench.iterations]
    size = next((tensor.shape[0] for tensor in held[0] if tensor.dim() > 0), 0)
    same = [(it, ts) for it, ts in zip(bench.iterations, held, strict=True) if _shapes(ts) == _shapes(held[0])]
    if size < 1 or len(same) < 2:
        raise LookupError("the batches differ in their shapes")
    order = torch.randperm(size * len(same), generator=torch.Generator().manual_seed(0))
    dealt: dict[int, Tensor] = {}
    for column in zip(*(tensors for _, tensors in same), strict=True):
        if column[0].dim() > 0 and column[0].shape[0] == size and not _same_each_time(column):
            dealt.update({id(old): new for old, new in zip(column, torch.cat(column)[order].split(size), strict=True)})
    bench.iterations = [iteration for iteration, _ in same]
    bench.rewrite(lambda entry: with_constants(entry, lambda tensor: dealt.get(id(tensor), tensor)))


def _tensors(iteration: Iteration) -> Iterator[Tensor]:
    for entry in _entries([iteration]):
        found = entry.meanings()
        yield from (item.tensor for item in found if isinstance(item, Constant))


def _shapes(tensors: list[Tensor]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors]


def _same_each_time(column: tuple[Tensor, ...]) -> bool:
    return len({id(tensor) for tensor in column}) == 1


TREATMENTS: dict[str, Maker] = {
    "shuffle": shuffle,
    "clean-input": fill_in,
    "impute": impute,
    "standardise-input": standardise_inputs,
    "normalise-input": standardise_inputs,
    "standardise-target": standardise_targets,
}
