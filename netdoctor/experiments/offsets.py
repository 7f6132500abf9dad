"""Which token of its input does each position of a language model learn: the next one, or one further on, or back?"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import function_name
from netdoctor.capture.source import source_line
from netdoctor.capture.step import Copies, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward
from netdoctor.checks.structure.shifted_target import BACK, COPIED, NEXT, OFFSET, TWICE, ShiftedTarget
from netdoctor.errors import why_it_failed
from netdoctor.experiments.loss_terms import Term
from netdoctor.experiments.passes import ROUNDING
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.tokens import LONG, Given, class_terms, constants_of, targets_of, tokens_of
from netdoctor.recording import Arm, Recording

BATCHES = 3  # captured ones, all backward calls of which must say the same
BACKWARDS = 4  # of one step: those of accumulated gradients are alike, those of several heads are not
REACH = 4  # positions to either side; what lies further is a task of its own
SAME = 0.99  # of the tokens: a loader may change a few (masks, noise)
OTHERS = 0.9  # of the tokens: where two offsets agree with so many the text repeats itself, and neither is told
STEPS, FEWEST = 120, 6  # of the copy that learns the next tokens; batches, a third of which it does not see
_LOSSES = frozenset({"cross_entropy", "nll_loss"})
_IGNORED = -100  # cross_entropy's default ignore_index
Facts = dict[str, float | str | bool]


@dataclass(frozen=True, slots=True)
class Aligned:
    """Tokens that a model is given, and predictions of tokens among them: prediction j of a sample is to be token j + `moved`.

    `axis` is that of the positions in the given tokens. There are `length` predictions per sample, and `by_sample` tells that the
    loss gets all of one sample in a row; else all of one position.
    """

    given: Given
    axis: int
    by_sample: bool
    moved: int
    length: int
    target: Tensor  # (samples, length), as the loss gets it
    counted: Tensor  # the same shape: what the loss does not ignore

    @property
    def key(self) -> tuple[Any, ...]:
        """What must be the same in all batches."""
        return *self.given.key, self.axis, self.by_sample, self.moved

    @property
    def tokens(self) -> Tensor:
        """(samples, positions)."""
        return self.given.value if self.axis else self.given.value.t()

    def replaced(self, backward: Backward, tokens: Tensor) -> Backward:
        """The backward with other tokens, (samples, positions)."""
        return self.given.replaced(backward, tokens if self.axis else tokens.t())

    def scores(self, copies: Copies, backward: Backward) -> Tensor:
        """(samples, length, classes): what the model predicts in evaluation mode."""
        return self.laid(class_terms(copies, backward))

    def laid(self, terms: list[Term]) -> Tensor:
        """(samples, length, classes): the predictions of these cross-entropies."""
        parts = [term.prediction.detach().movedim(1, -1) for term in terms if term.prediction is not None]
        whole = parts[0] if len(parts) == 1 else torch.stack(parts, 1)
        return _rows(whole.reshape(-1, whole.shape[-1]), self.length, self.by_sample)


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "targets/offset"; none unless the targets of a cross-entropy are given tokens, a few positions on or back.

    Asked of the trained model in evaluation mode, which must see no later tokens. Facts: `offset` (1: each position learns the
    token after the last one that it sees), `moved` (the same beside the position's own), `agree` (share of the targets), `length`
    (predictions per sample), `twice` (targets that were the next tokens already were shifted once more on the way to the loss),
    `handed` (the model is given these), `looped` (a call per position) and, of the call that is given the tokens, `file`, `line`,
    `text`. Where it is `BACK` or `COPIED`: `learned`, the loss on the next tokens of a copy that learns these, of that of the
    best constant prediction, on batches that it did not see (NaN where it could not be tried).
    """
    if recording.origin is not None or step.lost or not step.iterations:
        return {}
    began = time.perf_counter()
    try:
        with quiet():
            found = aligned(step)
            facts = _facts(step, found, budget)
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {OFFSET: Arm(OFFSET, np.empty(0), failure=why_it_failed(error))}
    return {} if facts is None else {OFFSET: Arm(OFFSET, np.empty(0), time.perf_counter() - began, facts)}


# --- targets that are tokens -----------------------------------------------------------------------------------------


def aligned(step: TrainingStep) -> list[tuple[Aligned, Backward]]:
    """Tokens and targets of the first backward call that lie as far apart in all calls of the first batches."""
    calls = [b for iteration in step.iterations[:BATCHES] for b in iteration.backwards[:BACKWARDS]]
    if not calls or not all(any(True for _ in tokens_of(backward)) for backward in calls):
        return []
    for backward in calls:
        refuse_overwritten(backward)
    copies = Copies(step.modules, step.leaves)
    per_call = [list(_aligned(backward, class_terms(copies, backward))) for backward in calls]
    common = set.intersection(*({one.key for one in found} for found in per_call))
    return [(one, calls[0]) for one in per_call[0] if one.key in common]


def _aligned(backward: Backward, terms: list[Term]) -> Iterator[Aligned]:
    target, counted = targets_of(terms)
    if target is None or int(counted.sum()) < LONG or len(target[counted].unique()) < LONG:
        return
    for given in tokens_of(backward):
        for axis in (1, 0):
            yield from _along(given, axis, target.reshape(-1), counted.reshape(-1))


def _along(given: Given, axis: int, target: Tensor, counted: Tensor) -> Iterator[Aligned]:
    tokens = given.value if axis else given.value.t()
    samples, positions = tokens.shape
    length = target.numel() // samples
    if target.numel() % samples or min(length, positions) < LONG or abs(length - positions) > REACH:
        return
    for by_sample in (True, False)[: 1 + (samples > 1)]:
        rows, kept = (_rows(one, length, by_sample) for one in (target, counted))
        shares = {moved: _agreeing(tokens, rows, kept, moved) for moved in range(-REACH, REACH + 1)}
        best, *others = sorted(shares, key=lambda moved: -shares[moved])
        if shares[best] >= SAME and shares[others[0]] <= OTHERS:
            yield Aligned(given, axis, by_sample, best, length, rows, kept)


def _rows(flat: Tensor, length: int, by_sample: bool) -> Tensor:
    """(samples, length, ...) of what the loss gets one below the other."""
    if by_sample:
        return flat.reshape(-1, length, *flat.shape[1:])
    return flat.reshape(length, -1, *flat.shape[1:]).transpose(0, 1)


def _agreeing(tokens: Tensor, target: Tensor, counted: Tensor, moved: int) -> float:
    """The share of the targets that are the token so many positions on; 0 where few have one."""
    first, last = max(0, -moved), min(target.shape[1], tokens.shape[1] - moved)
    if last - first < LONG:
        return 0.0
    kept = counted[:, first:last]
    same = target[:, first:last] == tokens[:, first + moved : last + moved]
    return float(same[kept].float().mean()) if int(kept.sum()) >= LONG else 0.0


# --- what a position sees --------------------------------------------------------------------------------------------


def _facts(step: TrainingStep, found: list[tuple[Aligned, Backward]], budget: Budget) -> Facts | None:
    told = [(one, ahead) for one, backward in found if (ahead := _ahead(step, one, backward)) is not None]
    if not told:
        return None
    if any(ahead == NEXT for _, ahead in told):
        return {"offset": float(NEXT), "says": "each position learns the next token"}
    one, ahead = told[0]
    backward = found[0][1]
    agree = _agreeing(one.tokens, one.target, one.counted, one.moved)
    facts: Facts = {"offset": float(ahead), "moved": float(one.moved), "agree": agree, "length": float(one.length)}
    facts |= {"twice": ahead == TWICE and _twice(one, ahead, backward), "handed": _handed(one, backward, ahead)}
    facts["looped"] = len(one.given.constants) > 1
    if BACK <= ahead <= COPIED:
        facts["learned"] = _learned(step, one, ahead, budget)
    faulty = ahead == TWICE or float(facts.get("learned", math.inf)) <= ShiftedTarget.learned
    facts["verdict"] = "failed" if faulty else "passed"
    facts["says"] = f"each position learns the token {ahead} places on, where 1 is the next one"
    source = source_line(*one.given.entry.position)
    if source is not None:
        facts |= {"file": source.file, "line": float(source.line), "text": source.text}
    return facts


def _ahead(step: TrainingStep, one: Aligned, backward: Backward) -> int | None:
    """How many positions on from the last token that a prediction sees its target is; None where later ones are seen, or none.

    A token is exchanged in all samples, at two places: the first prediction that changes is the first one that sees it, and
    that must lie as far from both.
    """
    copies = Copies(step.modules, step.leaves)
    before = one.scores(copies, backward)
    seen = set()
    for place in (one.tokens.shape[1] // 3, 2 * one.tokens.shape[1] // 3):
        after = one.scores(copies, one.replaced(backward, _other(one.tokens, place)))
        changed = (after - before).abs().amax((0, 2)) > ROUNDING * before.abs().max()
        if not bool(changed.any()) or (one.moved == 0 and int(changed.sum()) == 1):
            return (
                None  # targets that are the tokens lie so along the samples as well, which know nothing of each other
            )
        seen.add(int(changed.nonzero()[0]) - place)
    return one.moved + seen.pop() if len(seen) == 1 else None


def _other(tokens: Tensor, place: int) -> Tensor:
    """The tokens with another one of the batch's in one place of each sample."""
    known = tokens.unique()
    changed = tokens.clone()
    changed[:, place] = known[(torch.searchsorted(known, tokens[:, place].contiguous()) + 1) % len(known)]
    return changed


def _twice(one: Aligned, ahead: int, backward: Backward) -> bool:
    """Whether there were two shifts by one: the model is handed targets that are the next tokens, and shifts them; or the loss
    leaves out the last prediction, as for tokens of the same sequence, and yet asks for one token that is not among them."""
    ends = int(one.counted.any(0).nonzero().max())
    return _handed(one, backward, ahead) or (one.moved == ahead and ends == one.tokens.shape[1] - 2)


def _handed(one: Aligned, backward: Backward, ahead: int) -> bool:
    """Whether the model is given its targets as well, by one position less than it learns: it makes its own loss, and shifts."""
    handed = [c.tensor for e in backward.entries if e.module is not None for c in constants_of(e)]
    same = [t if one.axis else t.t() for t in handed if t.shape == one.given.value.shape and not t.is_floating_point()]
    return any(_agreeing(one.tokens, t, t >= 0, ahead - 1) >= SAME for t in same)


# --- a copy that learns the next tokens ------------------------------------------------------------------------------


class Moved(TorchFunctionMode):
    """Gives cross-entropies the tokens so many positions further back as targets; those that are not known are ignored."""

    def __init__(self, one: Aligned, back: int) -> None:
        super().__init__()
        self._one, self._back = one, back

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function_name(func) not in _LOSSES:
            return func(*args, **kwargs)
        ignored = kwargs.setdefault("ignore_index", _IGNORED)
        if "target" in kwargs:
            kwargs["target"] = self._moved(kwargs["target"], ignored)
        else:
            args = (args[0], self._moved(args[1], ignored), *args[2:])
        return func(*args, **kwargs)

    def _moved(self, target: Tensor, ignored: int) -> Tensor:
        length = int(target.shape[-1]) if target.dim() > 1 and self._one.by_sample else self._one.length
        if target.is_floating_point() or target.numel() % length:
            return target
        axis, back = (1 if self._one.by_sample else 0), self._back
        rows = target.reshape((-1, length) if axis else (length, -1)).roll(back, axis)
        unknown = rows.narrow(axis, 0, back) if back > 0 else rows.narrow(axis, length + back, -back)
        unknown.fill_(ignored)
        return rows.reshape(target.shape)


def next_loss(copies: Copies, backwards: Sequence[Backward], one: Aligned, ahead: int) -> float:
    """The cross-entropy of the model's predictions with the tokens that come next, of that of the best constant prediction.

    NaN where the model has no class for some token, or all are the same.
    """
    parts: list[Tensor] = []
    wanted: list[Tensor] = []
    for backward in backwards[:BATCHES]:
        terms = class_terms(copies, backward)
        for found in (each for each in _aligned(backward, terms) if each.key == one.key):
            scores, tokens = found.laid(terms), found.tokens
            first = one.moved - ahead + 1  # token j + first comes after the last one that prediction j sees
            begin, end = max(0, -first), min(found.length, tokens.shape[1] - first)
            kept = found.counted[:, begin:end]
            parts.append(scores[:, begin:end][kept])
            wanted.append(tokens[:, begin + first : end + first][kept].long())
    if not parts or int(torch.cat(wanted).max()) >= parts[0].shape[-1]:
        return math.nan
    return of_constant(torch.cat(parts), torch.cat(wanted))


def of_constant(scores: Tensor, target: Tensor) -> float:
    """The cross-entropy of these scores, (predictions, classes), of that of the best constant prediction; NaN where that is 0."""
    shares = target.bincount().double() / len(target)
    constant = float(-(shares * shares.log()).nan_to_num().sum())
    lost = -scores.double().log_softmax(-1).gather(-1, target[:, None]).mean()  # no loss of torch's: see Moved
    return float(lost) / constant if constant > 0 else math.nan


def _learned(step: TrainingStep, one: Aligned, ahead: int, budget: Budget) -> float:
    cut = len(step.iterations) - len(step.iterations) // 3
    if len(step.iterations) < FEWEST or len(one.given.constants) > 1:
        return math.nan
    sandbox = Sandbox(step)
    with Moved(one, ahead - NEXT):
        sandbox.run(step.iterations[:cut], STEPS, budget.share(budget.left / 2))
    held = [iteration.backwards[0] for iteration in step.iterations[cut:]]
    return next_loss(sandbox.copies, held, one, ahead)
