"""The tokens that models are given, and the classes that they are to predict: whole numbers on both sides of a captured step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.step import Copies
from netdoctor.capture.tape import Backward, Constant, Entry
from netdoctor.experiments.final import switched
from netdoctor.experiments.loss_terms import CLASS_LOSSES, CLASSES, Term, watched_terms
from netdoctor.experiments.tiny_batch import rewrite

LONG = 4  # positions, and different tokens, under which being the same may be chance


@dataclass(frozen=True, slots=True)
class Given:
    """Tokens that a model or an embedding is given: a matrix in one call, or a row per call of a loop over positions.

    `key` tells the place in the code: which batches' tokens belong together. `value` is (samples, positions), or (positions,
    samples) as the script has it; rows of a loop are laid side by side.
    """

    key: tuple[Any, ...]
    constants: tuple[Constant, ...]
    entry: Entry

    @property
    def value(self) -> Tensor:
        parts = [c.tensor.detach() for c in self.constants]
        return parts[0] if len(parts) == 1 else torch.stack([part.reshape(-1) for part in parts], 1)

    def replaced(self, backward: Backward, new: Tensor) -> Backward:
        """The backward with other tokens in these calls, and nowhere else."""
        parts = [new] if len(self.constants) == 1 else list(new.unbind(1))
        made = {
            id(c): Constant(p.reshape(c.tensor.shape), p._version) for c, p in zip(self.constants, parts, strict=True)
        }
        return rewritten(backward, lambda item: made.get(id(item), item))


def class_terms(copies: Copies, backward: Backward) -> list[Term]:
    """The cross-entropies of a loss, with what they are given, in evaluation mode."""
    _, terms = watched_terms(copies, switched(backward, False))
    return [term for term in terms if term.kind == CLASSES and term.name in CLASS_LOSSES]


def targets_of(terms: list[Term]) -> tuple[Tensor | None, Tensor]:
    """(targets, which of them count): those of one cross-entropy, or of one per position side by side."""
    targets = [term.target for term in terms if term.target is not None and not term.target.is_floating_point()]
    if not targets or len({target.shape for target in targets}) > 1 or len(targets) != len(terms):
        return None, torch.empty(0)
    whole = targets[0] if len(targets) == 1 else torch.stack([target.reshape(-1) for target in targets], 1)
    ignored = (terms[0].attributes or {}).get("ignore_index", -100)
    return whole.detach(), (whole != ignored) & (whole >= 0)


def tokens_of(backward: Backward) -> Iterator[Given]:
    """The whole-number inputs of models and embeddings, those of a loop over positions together."""
    places: dict[tuple[Any, ...], list[tuple[Constant, Entry]]] = {}
    for entry in backward.entries:
        if entry.module is None and entry.name != "embedding":
            continue
        for place, constant in enumerate(constants_of(entry)):
            if constant.tensor.dtype in (torch.int64, torch.int32) and constant.tensor.dim() in (1, 2):
                key = (id(entry.module), entry.position, place, constant.tensor.dim())
                places.setdefault(key, []).append((constant, entry))
    for key, found in places.items():
        if key[-1] == 2 and found[0][0].tensor.shape[1] > 1:
            for nth, (constant, entry) in enumerate(found):
                yield Given((*key, nth), (constant,), entry)
        elif len(found) >= LONG and len({constant.tensor.shape for constant, _ in found}) == 1:
            yield Given(key, tuple(constant for constant, _ in found), found[0][1])


def constants_of(entry: Entry) -> list[Constant]:
    """The data that a call is given."""
    found = entry.meanings()
    return [item for item in found if isinstance(item, Constant) and item.tensor.layout is torch.strided]


def rewritten(backward: Backward, change: Callable[[Constant], Constant]) -> Backward:
    """The backward with other data in the calls of models and embeddings; what the loss is given stays."""

    def changed(entry: Entry) -> Entry:
        if entry.module is None and entry.name != "embedding":
            return entry
        return replace(entry, args=rewrite(entry.args, change), kwargs=rewrite(entry.kwargs, change))

    return replace(backward, entries=[changed(entry) for entry in backward.entries])
