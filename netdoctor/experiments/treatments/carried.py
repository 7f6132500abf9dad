"""Treatment of what goes from one step to the next with its graph: it goes on detached."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from netdoctor.capture.step import Iteration, TrainingStep
from netdoctor.capture.tape import Backward, Carried, Entry, Slot
from netdoctor.checks.structure.carried_graph import MESSAGE
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment

PAIRS = 20  # of steps: the last whole one of the script, and the one that it failed in


def detach_carried(case: Case) -> Treatment | None:
    """What the step that failed is given of the one before it is detached.

    The copies take these two steps, one after the other, again and again; the control fails where the script did. A step
    that trains only a part of what the first one does counts as failed: what was made once, and is used in all steps, would
    never be trained again.
    """
    step = case.step
    if step.begins or step.unfinished is None:
        return None
    as_it_is, detached = (_pair(step, step.unfinished, apart) for apart in (False, True))

    def give(pair: Iteration) -> Callable[[Bench], None]:
        def apply(bench: Bench) -> None:
            bench.iterations = [pair]

        return apply

    less = bool(_trained(step.iterations[-1]) - _trained(step.unfinished))

    def failed(bench: Bench) -> float:
        taken = _taken(bench)
        return float(2 * PAIRS - (taken - taken // 2 if less else taken))

    measure = Measure(f"steps of {2 * PAIRS} that fail, or train less than the first one", failed, 0.0)
    return Treatment(give(detached), both=give(as_it_is), measure=measure, steps=0)


def _taken(bench: Bench) -> int:
    """How many steps the copy takes until backward comes to a graph that is gone, or the loss is no number any more."""
    for number in range(PAIRS):
        try:
            loss = bench.sandbox.iterate(bench.iterations[0], number == 0)
        except RuntimeError as error:
            if MESSAGE not in str(error):
                raise
            return 2 * number + 1
        if loss != loss or abs(loss) == float("inf"):
            return 2 * number
    return 2 * PAIRS


def _trained(iteration: Iteration) -> set[int]:
    """The weights that the calls of a step use."""
    return {id(leaf) for backward in iteration.backwards for leaf in backward.leaves() if leaf.requires_grad}


def _pair(step: TrainingStep, unfinished: Iteration, apart: bool) -> Iteration:
    """The last whole step and the unfinished one as one iteration; `apart`: what the second has of the first is detached."""
    last = step.iterations[-1]
    made = {number for backward in last.backwards for entry in backward.entries for number in entry.outputs}
    ends = max(number for number, action in enumerate(last.actions) if action.backward is not None)
    after = last.actions[ends + 1 :]
    second = [
        a if a.backward is None else replace(a, backward=_joined(a.backward, made, apart)) for a in unfinished.actions
    ]
    return Iteration([*last.actions, *second, *after], last.bytes + unfinished.bytes)


def _joined(backward: Backward, made: set[int], apart: bool) -> Backward:
    """A backward call of the second step, given what the first one made."""
    entries: list[Entry] = []
    for entry in backward.entries:
        handed = [item.before for item in entry.meanings() if isinstance(item, Carried)]
        if not made.issuperset(handed):
            raise CannotReplayError("it depends on a tensor of an earlier step that was made out of sight")
        for number in handed if apart else ():
            entries.append(Entry(torch.Tensor.detach, None, (Slot(number),), {}, [_detached(number)], name="detach"))
        entries.append(replace(entry, args=_given(entry.args, apart), kwargs=_given(entry.kwargs, apart)))
        left = entries[-1].meanings()
        if any(isinstance(item, Carried) for item in left):
            raise CannotReplayError("the tensor of an earlier step lies in an object of the script's own")
    return replace(backward, entries=entries)


def _detached(number: int) -> int:
    """The slot of a detached copy: the tape counts from 0."""
    return -2 - number


def _given(thing: Any, apart: bool) -> Any:
    if isinstance(thing, Carried):
        return Slot(_detached(thing.before) if apart else thing.before)
    if isinstance(thing, list | tuple):
        items = [_given(item, apart) for item in thing]
        return type(thing)(*items) if hasattr(thing, "_fields") else type(thing)(items)
    if type(thing) is dict:
        return {key: _given(value, apart) for key, value in thing.items()}
    return thing


TREATMENTS: dict[str, Maker] = {"detach-carried": detach_carried}
