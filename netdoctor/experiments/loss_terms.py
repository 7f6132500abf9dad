"""What a loss is made of: its terms, and the predictions and targets that they compare.

A replay is watched, and the operations are walked back from the loss through sums, means and weights to what makes
the numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Replay
from netdoctor.capture.tape import Backward
from netdoctor.capture.tree import tensors
from netdoctor.capture.watch import Watch, Watched
from netdoctor.graph import Scalar

CLASSES, REGRESSION, PENALTY, OTHER = "classes", "regression", "penalty", "other"
CLASS_LOSSES = frozenset({"cross_entropy", "nll_loss", "multi_margin_loss"})
BINARY_LOSSES = frozenset({"binary_cross_entropy", "binary_cross_entropy_with_logits"})
DIFFERENCES = frozenset({"mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"})
ABSOLUTE = frozenset({"l1_loss", "abs"})
_SQUARES = frozenset({"square", "abs", "norm", "linalg_norm", "linalg_vector_norm"})
_SIGNS = {"sub": (1.0, -1.0), "rsub": (-1.0, 1.0), "neg": (-1.0,)}
# What only weighs, averages or rearranges numbers that were made before.
_THROUGH_NAMES = (
    "add sub rsub neg mul div mean sum nanmean nansum stack cat squeeze unsqueeze reshape view flatten float double to"
    " clone contiguous where masked_fill masked_select getitem index_select type_as expand"
)
_THROUGH = frozenset(_THROUGH_NAMES.split())


class LossWatch(Watch):
    """A watch that also notes, per operation, which inputs want a gradient and which of those are leaves."""

    def __init__(self, replay: Replay) -> None:
        super().__init__(replay)
        self.wanted: list[list[bool]] = []
        self.leaves: list[list[bool]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = list(tensors((args, kwargs or {})))
        wanted = [tensor.requires_grad for tensor in given]
        leaves = [tensor.requires_grad and tensor.is_leaf for tensor in given]
        result = super().__torch_function__(func, types, args, kwargs)
        if len(self.operations) > len(self.wanted):
            self.wanted.append(wanted)
            self.leaves.append(leaves)
        return result


@dataclass(frozen=True, slots=True)
class Term:
    """One term of a loss. `prediction` and `target` are None where the term does not compare two tensors.

    For "classes" the prediction holds logits or log-probabilities (batch, classes, ...) or, for binary losses, one
    number per target; for "regression" any shape that the target broadcasts with.
    """

    kind: str
    name: str
    prediction: Tensor | None = None
    target: Tensor | None = None
    attributes: dict[str, Scalar] | None = None


def watched_terms(copies: Copies, backward: Backward) -> tuple[float, list[Term]]:
    """(value, terms) of the loss of one backward call, run once more on copies. Leaves no gradient behind."""
    replay = Replay(copies)
    watch = LossWatch(replay)
    with watch:
        loss = replay.loss(backward)
    start = watch.maker(loss)
    found = [] if start is None else list(_Walk(watch).terms(start, 1.0, set()))
    return float(loss.detach()), found


class _Walk:
    def __init__(self, watch: LossWatch) -> None:
        self._watch = watch

    def terms(self, index: int, sign: float, seen: set[int]) -> Iterator[Term]:
        if index in seen:
            return
        seen.add(index)
        operation = self._watch.operations[index]
        known = self._known(operation, sign)
        if known is not None:
            yield known
            return
        following = self._following(operation, sign)
        if following is None:
            yield Term(PENALTY if self._only_leaves(index) else OTHER, operation.name)
            return
        for maker, its_sign in following:
            if maker is None:
                yield Term(PENALTY, operation.name)
            else:
                yield from self.terms(maker, its_sign, seen)

    def _following(self, operation: Watched, sign: float) -> list[tuple[int | None, float]] | None:
        """The makers of what an operation combines, each with its sign; None when it does more than combine."""
        wanted = self._watch.wanted[operation.index]
        number = sum(wanted)
        if operation.name not in _THROUGH or (operation.name in ("mul", "div") and number != 1):
            return None
        signs = _SIGNS.get(operation.name, ())
        scalars = [v for k, v in operation.attributes.items() if k.isdigit() and isinstance(v, float | int)]
        if operation.name in ("mul", "div") and any(value < 0 for value in scalars):
            sign = -sign
        if operation.name in ("mul", "div"):
            others = [t for t, w in zip(operation.inputs, wanted, strict=False) if not w]
            if others and others[0].numel() == 1 and float(others[0]) < 0:
                sign = -sign
        found = []
        for place, (maker, want) in enumerate(zip(operation.makers, wanted, strict=False)):
            if want:
                found.append((maker, sign * (signs[place] if place < len(signs) else 1.0)))
        return found or None

    def _known(self, operation: Watched, sign: float) -> Term | None:
        if operation.name in CLASS_LOSSES | BINARY_LOSSES | DIFFERENCES:
            return self._compared(operation, operation, sign)
        difference = self._difference(operation)
        if difference is not None:
            return self._compared(operation, difference, sign)
        return self._picked(operation, sign)

    def _compared(self, operation: Watched, pair: Watched, sign: float) -> Term:
        """The term of an operation that compares the first two inputs of `pair`, one of which is learned."""
        wanted = self._watch.wanted[pair.index]
        if len(pair.inputs) < 2 or sum(wanted[:2]) != 1 or sign < 0:
            return Term(OTHER, operation.name)
        first, second = (0, 1) if wanted[0] else (1, 0)
        prediction, target = pair.inputs[first], pair.inputs[second]
        if self._moves(pair.makers[second]):
            return Term(OTHER, operation.name)
        if operation.name in BINARY_LOSSES:
            hard = bool(((target == 0) | (target == 1)).all())
            kind = CLASSES if hard else REGRESSION
        else:
            kind = CLASSES if operation.name in CLASS_LOSSES else REGRESSION
        return Term(kind, operation.name, prediction, target, operation.attributes)

    def _difference(self, operation: Watched) -> Watched | None:
        """The subtraction behind a squared or absolute difference that was written by hand."""
        square = operation.name in _SQUARES or (operation.name == "pow" and operation.attributes.get("1") == 2)
        square = square or (operation.name == "mul" and len(operation.inputs) == 2 and _same(*operation.inputs))
        maker = operation.makers[0] if operation.makers else None
        if not square or maker is None:
            return None
        before = self._watch.operations[maker]
        return before if before.name in ("sub", "rsub") and len(before.inputs) == 2 else None

    def _picked(self, operation: Watched, sign: float) -> Term | None:
        """The negative log-likelihood by hand: entries of a log-softmax picked by the targets."""
        maker = operation.makers[0] if operation.makers else None
        if maker is None or operation.name not in ("gather", "getitem") or sign > 0:
            return None
        before = self._watch.operations[maker]
        indices = [t for t in operation.inputs[1:] if not t.is_floating_point() and t.dtype != torch.bool]
        if before.name != "log_softmax" or not indices or before.outputs[0].dim() != 2:
            return None
        return Term(CLASSES, "nll_loss", before.outputs[0], indices[-1].reshape(-1), {})

    def _moves(self, maker: int | None) -> bool:
        """Whether a target is made from what is being trained, and only cut off from it (`detach`)."""
        if maker is None:
            return False
        return any(
            want and not leaf
            for number in self._behind(maker)
            for want, leaf in zip(self._watch.wanted[number], self._watch.leaves[number], strict=True)
        )

    def _only_leaves(self, index: int) -> bool:
        """Whether a value is made of parameters alone, as weight penalties are."""
        for number in self._behind(index):
            operation, leaves = self._watch.operations[number], self._watch.leaves[number]
            for tensor, maker, leaf in zip(operation.inputs, operation.makers, leaves, strict=False):
                if maker is None and not leaf and tensor.numel() > 1:
                    return False
        return True

    def _behind(self, index: int) -> Iterator[int]:
        """The operations that a value depends on, itself included."""
        queue, seen = [index], set()
        while queue:
            number = queue.pop()
            if number not in seen:
                seen.add(number)
                yield number
                queue.extend(maker for maker in self._watch.operations[number].makers if maker is not None)


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same values: `(a - b) * (a - b)` subtracts twice."""
    return one.shape == other.shape and bool(torch.equal(one, other))
