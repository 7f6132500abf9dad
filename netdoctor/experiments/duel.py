"""Two copies of a game, in one of them the player's part turned against its judge: whose samples come nearer to the others?"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Iteration, TrainingStep
from netdoctor.capture.tape import Backward
from netdoctor.checks.loss.game import AS_IT_IS, TURNED
from netdoctor.errors import why_it_failed
from netdoctor.experiments.games import Game, Ids, Levels, Turn, changed, nudge, turned, uses
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm

STEPS = 100  # of the player, as in other trials
BATCHES = 4  # turns of the judge whose samples are compared
Place = tuple[
    Backward, int, int, Tensor
]  # a backward call, which call of it, which of its tensors, mask of generated rows


@contextmanager
def kept_buffers(sandbox: Sandbox) -> Iterator[None]:
    """What a pass changes besides gradients (running statistics, norms' vectors) is put back."""
    buffers = [(buffer, buffer.clone()) for module in sandbox.modules() for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, was in buffers:
            buffer.copy_(was)


class _Turned(torch.autograd.Function):
    """The tensor itself; its gradient comes back with the other sign."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return -gradients[0]


def _turned(tensor: Tensor) -> Tensor:
    made = _Turned.apply(tensor)  # type: ignore[no-untyped-call]
    assert isinstance(made, Tensor)
    return made


def trial(step: TrainingStep, known: list[Turn], game: Game, budget: Budget) -> dict[str, Arm]:
    """The arms "game/as it is" and "game/turned": two copies from the start, on the same batches."""
    try:
        with quiet():
            plain = _arm(AS_IT_IS, step, known, game, lambda iteration: iteration, budget.share(budget.left / 2))
            other = _arm(TURNED, step, known, game, lambda iteration: _opposed(iteration, game), budget)
    except Exception as error:
        return {AS_IT_IS: Arm(AS_IT_IS, np.empty(0), failure=why_it_failed(error))}
    return {arm.name: arm for arm in (plain, other)}


def _opposed(iteration: Iteration, game: Game) -> Iteration:
    """The iteration with the gradient of the player's score turned in the turns of the player."""
    actions, mine = list(iteration.actions), False
    for number in reversed(range(len(actions))):
        action = actions[number]
        if action.kind == "step":
            mine = action.optimizer == game.player
        if action.backward is not None and mine:
            entries = turned(action.backward, game.slots(action.backward), _turned)
            backward = replace(action.backward, entries=entries)
            actions[number] = replace(action, backward=backward)
    return Iteration(actions, iteration.bytes)


def _arm(
    name: str,
    step: TrainingStep,
    known: list[Turn],
    game: Game,
    change: Callable[[Iteration], Iteration],
    budget: Budget,
) -> Arm:
    sandbox = Sandbox(step)
    places = _places(step, known, game)
    steps = (
        STEPS * len(known) // sum(turn.optimizer == game.player for turn in known)
    )  # of all; as many as that of its own
    start = _distance(sandbox, places, game.judging)
    run = sandbox.run([change(turn.iteration()) for turn in known], steps, budget)
    distance = _distance(sandbox, places, game.judging) if run.ended != "non-finite" else math.inf
    says = f"after {len(run.losses)} steps the samples are {distance:.3g} standard deviations from the others, {start:.3g} before"
    facts: dict[str, float | str | bool] = {"distance": distance, "start": start, "ended": run.ended, "says": says}
    return Arm(name, np.asarray(run.losses), run.seconds, facts)


def _places(step: TrainingStep, known: list[Turn], game: Game) -> list[Place]:
    """Where the judge is given samples: the first argument of its first calls in which some rows are the player's."""
    found: list[tuple[tuple[int, ...], Place]] = []
    first = [turn for turn in known if turn.optimizer == game.judge][:BATCHES]
    for backward in (backward for turn in first for backward in turn.backwards):
        one, other = (_given(copies, backward, game.judging) for copies in (step.copies(), nudge(step, game.own)))
        for call, pairs in enumerate(zip(one, other, strict=True)):
            for place, (a, b) in enumerate(zip(*pairs, strict=True)):
                if a.is_floating_point() and a.dim() > 1:
                    found.append(((place, *a.shape[1:]), (backward, call, place, changed(a, b))))
    kind = next((key for key, place in found if bool(place[3].any())), None)
    return [place for key, place in found if key == kind]


def _given(copies: Copies, backward: Backward, judging: Ids) -> list[list[Tensor]]:
    """What each of the judge's calls in a backward call is given, as far as no call of its own came before: its tensors."""
    derived: set[int] = set()
    first: set[int] = set()
    for entry in backward.entries:
        own, later = uses(entry, judging), not derived.isdisjoint(entry.inputs())
        if own and not later:
            first.add(id(entry))
        if own or later:
            derived.update(entry.outputs)
    replay = Levels(copies, backward, ())
    replay.watched = first
    replay.once()
    return replay.given


def _distance(sandbox: Sandbox, places: list[Place], judging: Ids) -> float:
    """Fréchet distance of generated from other samples, as if their features were independent and normal, in standard deviations
    of the others: sqrt(mean((m1 - m2)² + (s1 - s2)²) / mean(s2²)). NaN where one kind is missing."""
    made: list[Tensor] = []
    real: list[Tensor] = []
    for backward, call, place, rows in places:
        with kept_buffers(sandbox):
            samples = _given(sandbox.copies, backward, judging)[call][place].double().flatten(1)
        made.append(samples[rows])
        real.append(samples[~rows])
    if not made or min(sum(map(len, made)), sum(map(len, real))) < 2:
        return math.nan
    one, other = torch.cat(made), torch.cat(real)
    apart = (one.mean(0) - other.mean(0)).square() + (one.std(0) - other.std(0)).square()
    return float((apart.mean() / other.var(0).mean().clamp_min(1e-30)).sqrt())
