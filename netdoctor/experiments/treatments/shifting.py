"""Treatments of sequence models' tokens: each prediction is compared with the token that comes next, and is given none but earlier
ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from netdoctor.capture.step import Copies, Iteration, refuse_overwritten
from netdoctor.capture.tape import Backward
from netdoctor.checks.structure.copied_target import COPIES
from netdoctor.checks.structure.shifted_target import NEXT, OFFSET, ShiftedTarget
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.copying import Match, matches, time_axis
from netdoctor.experiments.offsets import FEWEST, Moved, aligned, next_loss, of_constant
from netdoctor.experiments.tokens import Given, class_terms, targets_of, tokens_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment


def next_token(case: Case) -> Treatment | None:
    """The targets moved by as many positions as they lie beside the next tokens."""
    arm = case.recording.arms.get(OFFSET)
    if arm is None or arm.facts.get("looped"):
        return None
    found = [one for one, _ in aligned(case.step) if one.moved == float(arm.facts["moved"])]
    if not found:
        return None
    ahead, one = int(float(arm.facts["offset"])), found[0]
    backwards = [iteration.backwards[0] for iteration in case.step.iterations]

    def apply(bench: Bench) -> None:
        bench.stack.enter_context(Moved(one, ahead - NEXT))

    def left(bench: Bench) -> float:
        return 100 * next_loss(bench.sandbox.copies, backwards, one, ahead)

    name = "loss on the next tokens, of the best constant prediction's"
    return Treatment(apply, measure=Measure(name, left, 100 * ShiftedTarget.learned, "%", witness=False))


# --- a model that is given its target --------------------------------------------------------------------------------


def shift_target(case: Case) -> Treatment | None:
    """The input that is the target moved one position on, a token for the beginning first.

    What tells is the loss with earlier tokens alone, all that a model has that goes on by itself, on captured batches that
    neither copy trains on.
    """
    iterations = case.step.iterations
    if len(iterations) < FEWEST or any(len(iteration.backwards) != 1 for iteration in iterations):
        raise CannotReplayError(f"fewer than {FEWEST} batches of one loss were captured")
    found, copies = matches(case.step), Copies(case.step.modules, case.step.leaves)
    pairs = [(match, time_axis(copies, iterations[0].backwards[0], match)) for match in found]
    match, axis = next(((match, axis) for match, axis in pairs if axis is not None), (None, 0))
    if match is None or axis is None:
        return None
    cut, begin = len(iterations) - len(iterations) // 3, _beginning(iterations, match)
    earlier = [_earlier(iteration, match, axis, begin) for iteration in iterations]

    def some(bench: Bench) -> None:
        bench.iterations = bench.iterations[:cut]

    def apply(bench: Bench) -> None:
        bench.iterations = earlier[:cut]

    def left(bench: Bench) -> float:
        return 100 * _loss(bench.sandbox.copies, [iteration.backwards[0] for iteration in earlier[cut:]])

    name = "loss on other batches with earlier tokens alone, of the best constant prediction's"
    measure = Measure(name, left, 100 * ShiftedTarget.learned, "%", witness=False)
    arm = case.recording.arms.get(COPIES)
    alone = arm is not None and not float(arm.facts.get("others", 1.0))  # the fix moves the targets back
    says = "its input moved on in place of the target back, which is the same" if alone else ""
    return Treatment(apply, both=some, measure=measure, says=says)


def _givens(iteration: Iteration, match: Match) -> Iterator[Given]:
    return (given for given in tokens_of(iteration.backwards[0]) if given.key == match.given.key)


def _beginning(iterations: list[Iteration], match: Match) -> int:
    """A token that the embeddings know and no captured batch has; 0 where there is none."""
    known = torch.cat([given.value.reshape(-1) for it in iterations for given in _givens(it, match)]).unique()
    module = match.given.entry.module
    inside = [] if module is None else [m.num_embeddings for m in module.modules() if isinstance(m, nn.Embedding)]
    rows = min((size for size in inside if size > int(known.max())), default=0)
    return next((token for token in reversed(range(rows)) if not bool((known == token).any())), 0)


def _earlier(iteration: Iteration, match: Match, axis: int, begin: int) -> Iteration:
    """The iteration with these tokens moved one position on."""
    actions = []
    for action in iteration.actions:
        backward = action.backward
        for given in _givens(iteration, match) if backward is not None else ():
            refuse_overwritten(iteration.backwards[0])
            moved = given.value.roll(1, axis)
            moved.narrow(axis, 0, 1).fill_(begin)
            backward = given.replaced(iteration.backwards[0], moved)
        actions.append(replace(action, backward=backward))
    return Iteration(actions, iteration.bytes)


def _loss(copies: Copies, backwards: list[Backward]) -> float:
    """The cross-entropy of the model's predictions, of that of the best constant prediction; NaN where that is 0."""
    parts: list[Tensor] = []
    wanted: list[Tensor] = []
    for backward in backwards:
        terms = class_terms(copies, backward)
        target, counted = targets_of(terms)
        scores = [term.prediction.detach().movedim(1, -1) for term in terms if term.prediction is not None]
        if target is not None and scores:
            whole = scores[0] if len(scores) == 1 else torch.stack(scores, 1)
            kept = counted.reshape(-1)
            parts.append(whole.reshape(-1, whole.shape[-1])[kept])
            wanted.append(target.reshape(-1)[kept].long())
    if not parts:
        return math.nan
    return of_constant(torch.cat(parts), torch.cat(wanted))


TREATMENTS: dict[str, Maker] = {"next-token": next_token, "shift-target": shift_target}
