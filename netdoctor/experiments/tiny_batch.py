"""A handful of the user's own samples, cut out of the first captured iteration."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.step import Action, Copies, Iteration, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant, Entry, version, walk
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.loss_terms import Term, watched_terms

SAMPLES = 8  # Karpathy: as few as 2; CS231n: 20; TheDeepChecker: 16
FEW = 4  # batches smaller than this are pooled over several captured iterations
Rewrite = Callable[[Constant], Constant]
_SHAPES = frozenset({"view", "reshape", "expand", "repeat", "unflatten"})


@dataclass(frozen=True, slots=True)
class TinyBatch:
    """A few samples, as iterations that a `Sandbox` runs: one, unless the user's batches hold fewer than `FEW` samples.

    `size` samples of an iteration lie along `dimension` of its tensors, `samples` in all. `indices` are their positions
    in the user's first batch, empty when it is used whole; `conflicting` those with one input, but several targets.
    """

    iterations: list[Iteration]
    samples: int
    size: int
    dimension: int
    indices: tuple[int, ...] = ()
    conflicting: tuple[int, ...] = ()


def cut(step: TrainingStep, copies: Copies) -> TinyBatch:
    """The tiny batch of a captured training; `copies` are scratch. Raises CannotReplayError where there is none."""
    refuse_opposed(step)
    first = step.iterations[0]
    for backward in first.backwards:
        refuse_overwritten(backward)
    single = _single(first, step)
    value, terms = watched_terms(copies, single.backwards[0])
    whole = _whole(step, single)
    if whole.size <= SAMPLES:
        return replace(whole, conflicting=_conflicts(single, terms, whole.size, range(min(whole.size, SAMPLES))))
    for dimension in (0, 1):
        size = batch_size(single, dimension)
        for indices in _choices(single, terms, size):
            found = _try(single, copies, value, terms, size, dimension, indices)
            if found is not None:
                return replace(found, conflicting=_conflicts(single, terms, size, indices))
    return whole


def refuse_opposed(step: TrainingStep) -> None:
    """Raise CannotReplayError for losses that pull against each other, each with an optimizer of its own."""
    early = step.iterations[:4]
    positions = {backward.position for iteration in early for backward in iteration.backwards}
    stepping = {action.optimizer for iteration in early for action in iteration.actions if action.kind == "step"}
    if len(positions) > 1 and len(stepping) > 1:
        raise CannotReplayError("the training has several losses that work against each other")


def _single(iteration: Iteration, step: TrainingStep) -> Iteration:
    """The iteration with one micro-batch (of those that are accumulated) and the largest captured learning rates.

    A warm-up starts near zero; what is asked here is whether the script's own settings, once in force, can fit.
    """
    seen: set[tuple[str, int]] = set()
    actions = []
    for action in iteration.actions:
        if action.backward is not None:
            if action.backward.position in seen:
                continue
            seen.add(action.backward.position)
        if action.kind == "step":
            action = replace(action, lrs=_largest(step, action))
        actions.append(action)
    return Iteration(actions)


def _largest(step: TrainingStep, wanted: Action) -> tuple[float, ...]:
    steps = [
        action.lrs
        for iteration in step.iterations
        for action in iteration.actions
        if action.kind == "step" and action.optimizer == wanted.optimizer and len(action.lrs) == len(wanted.lrs)
    ]
    return tuple(max(lrs) for lrs in zip(*steps, strict=True))


def _constants(iteration: Iteration) -> Iterator[tuple[Entry, Constant]]:
    for backward in iteration.backwards:
        for entry in backward.entries:
            found = entry.meanings()
            yield from ((entry, constant) for constant in found if isinstance(constant, Constant))


def _first_input(iteration: Iteration) -> Tensor | None:
    """The first tensor that the model is given: what says how large the batch is."""
    return next((c.tensor for _, c in _constants(iteration) if c.tensor.dim() > 0 and c.tensor.numel() > 1), None)


def batch_size(iteration: Iteration, dimension: int) -> int:
    """The size along a dimension of the first tensor that the model is given; 0 where it has no such dimension."""
    first = _first_input(iteration)
    return 0 if first is None or first.dim() <= dimension else int(first.shape[dimension])


def _whole(step: TrainingStep, single: Iteration) -> TinyBatch:
    size = batch_size(single, 0)
    if 0 < size < FEW and len(step.iterations) > 1:
        several = step.iterations[: SAMPLES // size]
        for iteration in several:
            for backward in iteration.backwards:
                refuse_overwritten(backward)
        return TinyBatch([_single(iteration, step) for iteration in several], size * len(several), size, 0)
    return TinyBatch([single], max(1, size), size, 0)


def input_rows(iteration: Iteration, size: int) -> Tensor | None:
    """The model's inputs with one flattened row per sample."""
    parts = [c.tensor.reshape(size, -1).double() for _, c in _of_first_entry(iteration) if _is_batch(c.tensor, size)]
    return torch.cat(parts, 1) if parts else None


def _of_first_entry(iteration: Iteration) -> list[tuple[Entry, Constant]]:
    found = list(_constants(iteration))
    return [pair for pair in found if pair[0] is found[0][0]]


def _is_batch(tensor: Tensor, size: int) -> bool:
    return tensor.dim() > 0 and tensor.shape[0] == size and not tensor.is_complex() and tensor.layout is torch.strided


def _targets(terms: list[Term], size: int) -> Tensor | None:
    """The targets of the first term that has them, one flattened row per sample."""
    target = next((term.target for term in terms if term.target is not None), None)
    return target.reshape(size, -1).double() if target is not None and size and target.numel() % size == 0 else None


def _choices(iteration: Iteration, terms: list[Term], size: int) -> Iterator[tuple[int, ...]]:
    """Which samples to try, best first: some whose targets differ, and the first ones."""
    if size <= SAMPLES:
        return
    plain = tuple(range(SAMPLES))
    targets = _targets(terms, size)
    if targets is not None:
        candidates = _without_conflicts(input_rows(iteration, size), targets, size)
        chosen = candidates[:SAMPLES]
        if bool((targets[chosen] == targets[chosen[0]]).all()):
            others = [i for i in candidates if not torch.equal(targets[i], targets[chosen[0]])]
            chosen = sorted(chosen[: max(SAMPLES // 2, SAMPLES - len(others))] + others[: SAMPLES // 2])
        yield tuple(chosen)
        if tuple(chosen) == plain:
            return
    yield plain


def _without_conflicts(rows: Tensor | None, targets: Tensor, size: int) -> list[int]:
    """The samples whose input did not occur before; all of them when hardly any are left."""
    if rows is None:
        return list(range(size))
    seen: set[bytes] = set()
    kept = []
    for index, row in enumerate(rows):
        key = row.cpu().numpy().tobytes()
        if key not in seen:
            seen.add(key)
            kept.append(index)
    return kept if len(kept) >= SAMPLES else list(range(size))


def _conflicts(iteration: Iteration, terms: list[Term], size: int, indices: Any) -> tuple[int, ...]:
    """The chosen samples with the same input as another one, and another target."""
    targets, rows = _targets(terms, size), input_rows(iteration, size) if size else None
    if targets is None or rows is None:
        return ()

    def differ(one: int, other: int) -> bool:
        return torch.equal(rows[one], rows[other]) and not torch.equal(targets[one], targets[other])

    return tuple(index for index in indices if any(differ(index, other) for other in indices))


def _try(
    iteration: Iteration,
    copies: Copies,
    value: float,
    terms: list[Term],
    size: int,
    dimension: int,
    indices: tuple[int, ...],
) -> TinyBatch | None:
    """The iteration with only these samples, when it runs and the loss's targets shrank with it."""
    sliced = sample(iteration, size, dimension, indices)
    try:
        new_value, new_terms = watched_terms(copies, sliced.backwards[0])
    except Exception:  # some tensor had this size by chance, or the loop computes with the batch size
        return None
    finite = new_value == new_value and abs(new_value) != float("inf")
    sound = finite or not (value == value and abs(value) != float("inf"))
    same = [term.kind for term in new_terms] == [term.kind for term in terms]
    if not sound or not same or not all(_shrank(a, b, size) for a, b in zip(terms, new_terms, strict=True)):
        return None
    return TinyBatch([sliced], len(indices), len(indices), dimension, indices)


def _shrank(before: Term, after: Term, size: int) -> bool:
    if before.target is None or after.target is None or before.prediction is None or after.prediction is None:
        return before.target is after.target
    if before.target.numel() < size:
        return True
    return after.target.numel() < before.target.numel() and after.prediction.numel() < before.prediction.numel()


def sample(
    iteration: Iteration, size: int, dimension: int, indices: tuple[int, ...], only: Sequence[Entry] | None = None
) -> Iteration:
    """The iteration with every constant of this batch size cut to the samples at `indices` (only in some entries, if given)."""

    def pick(constant: Constant) -> Constant:
        tensor = constant.tensor
        if tensor.layout is not torch.strided:
            return constant
        chosen = torch.tensor(indices, device=tensor.device)
        dims = [d for d in (dimension, 0, 1) if d < tensor.dim() and tensor.shape[d] == size]
        if dims:
            return _constant(tensor.detach().index_select(dims[0], chosen))
        if dimension == 0 and tensor.dim() and tensor.shape[0] > size and tensor.shape[0] % size == 0:
            # Flattened over samples and positions, as targets of language models are: `y.view(-1)`.
            parts = tensor.detach().reshape(size, -1, *tensor.shape[1:])
            return _constant(parts.index_select(0, chosen).flatten(0, 1))
        return constant

    kept = None if only is None else {id(entry) for entry in only}
    made: dict[int, Entry] = {}  # losses that share entries go on sharing them

    def entry_of(entry: Entry) -> Entry:
        if id(entry) not in made:
            changed = entry if kept is not None and id(entry) not in kept else resized(entry, pick, size, len(indices))
            made[id(entry)] = changed
        return made[id(entry)]

    def backward_of(backward: Backward) -> Backward:
        return replace(backward, entries=[entry_of(entry) for entry in backward.entries])

    return Iteration([replace(a, backward=a.backward and backward_of(a.backward)) for a in iteration.actions])


def _constant(tensor: Tensor) -> Constant:
    return Constant(tensor, version(tensor))


def resized(entry: Entry, pick: Rewrite, size: int, new: int) -> Entry:
    """The entry with every constant changed, and with shapes that count `size` samples counting `new` ones."""
    args = rewrite(entry.args, pick)
    if entry.name in _SHAPES and len(args) > 1:  # `logits.view(64 * 30, -1)` in the loop counts samples by itself
        if isinstance(args[1], int):
            args = (args[0], _scaled(args[1], size, new), *args[2:])
        elif isinstance(args[1], tuple | list) and args[1] and isinstance(args[1][0], int):
            args = (args[0], (_scaled(args[1][0], size, new), *args[1][1:]), *args[2:])
    return replace(entry, args=args, kwargs=rewrite(entry.kwargs, pick))


def _scaled(number: int, size: int, new: int) -> int:
    return number // size * new if number > 0 and number % size == 0 else number


def rewrite(thing: Any, change: Rewrite) -> Any:
    """Rewritten arguments with every constant changed; slots and leaves stay."""
    if isinstance(thing, Constant):
        return change(thing)
    if isinstance(thing, list | tuple):
        items = [rewrite(item, change) for item in thing]
        return type(thing)(*items) if hasattr(thing, "_fields") else type(thing)(items)
    if type(thing) is dict:
        return {key: rewrite(value, change) for key, value in thing.items()}
    found: list[Any] = []
    walk(thing, found.append)
    return _rewrite_object(thing, change) if any(isinstance(item, Constant) for item in found) else thing


def _rewrite_object(thing: Any, change: Rewrite) -> Any:
    copied = copy.copy(thing)
    if hasattr(thing, "keys"):
        for key in list(thing.keys()):
            copied[key] = rewrite(thing[key], change)
    else:
        for name in thing.__dataclass_fields__:
            object.__setattr__(copied, name, rewrite(getattr(thing, name, None), change))
    return copied
