"""Does the one player help the judge that it should deceive, and does it do better the other way round?

Of two optimizers that step in turns one trains a judge: at a common level of its scores, its loss pushes those of samples that
the other one's model made one way, and those of other samples the opposite way. In a game the maker pushes the scores of its
samples against the judge.
"""

from __future__ import annotations

import linecache
import re
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.source import source_line
from netdoctor.capture.step import Action, Iteration, TrainingStep
from netdoctor.capture.tape import Backward, Entry
from netdoctor.checks.loss.game import CLASSES, LABELS, PUSHES, SIGN
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.duel import trial
from netdoctor.experiments.games import (
    Game,
    Key,
    Levels,
    Pushes,
    Turn,
    compared,
    held,
    one_way,
    pushes,
    scores_of,
    turns,
)
from netdoctor.experiments.loss_terms import BINARY_LOSSES, CLASS_LOSSES, DIFFERENCES
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.recording import Arm, Recording

TURNS = 3  # of each player, in all of which it must be so
FOLLOWED = 24  # turns of both, over which the player's own steps show in its losses
BETWEEN = 0.48  # the labels 0 and 1
LABELLED = BINARY_LOSSES | DIFFERENCES
_TOUCHED = re.compile(r"\.grad\b(?!\s*\()|register_\w*hook")  # a gradient, but not by torch.autograd.grad
SMALL = 1e-3  # of the norm of the weights: a step in which a gradient tells what happens


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "game/pushes" and, where a player helps its judge, "game/as it is" and "game/turned"; none where nobody plays.

    Facts of the first: `helps` (of the turns looked at, those in which the player pushes its scores as the judge does, and such
    a step on a copy moves them so), `turns`, `levels`, and where: `file`, `line`, `text`, `shared` (both players use this line),
    `form` (of the loss: "labels" or "sign"), `up` (the judge pushes real samples up). Of the others: `distance` (Fréchet, of
    generated from other samples, in their standard deviations, diagonal), `start`, `ended`.
    """
    if len(step.optimizers) < 2 or step.lost or not step.iterations or not recording.facts.get("several_optimizers"):
        return {}
    began = time.perf_counter()
    try:
        with quiet():
            known = [turn for turn in turns(step.iterations) if turn.backwards]
            game = next(_helped(step, known, budget), None)
            if game is None:
                return {}
            seen = Arm(PUSHES, np.empty(0), time.perf_counter() - began, _facts(step, known, game))
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {PUSHES: Arm(PUSHES, np.empty(0), failure=why_it_failed(error))}
    if seen.facts["helps"] != seen.facts["turns"]:
        return {PUSHES: seen}
    return {PUSHES: seen} | trial(step, known, game, budget)


def _helped(step: TrainingStep, known: list[Turn], budget: Budget) -> Iterator[Game]:
    """The pairs in which, at every level where the judge tells generated samples from others, the player pushes as it does."""
    owned = [frozenset(map(id, held(step, n))) for n in range(len(step.optimizers))]
    for judge, judging in enumerate(owned):
        for player, own in enumerate(owned):
            mine, theirs = ([t for t in known if t.optimizer == n and t.alone][:TURNS] for n in (player, judge))
            if player == judge or own & judging or len(mine) < TURNS or len(theirs) < TURNS or budget.left <= 0:
                continue
            if not any(scores_of(b, judging) for turn in mine for b in turn.backwards):
                continue
            seen = [pushes(step, turn, own, judging) for turn in theirs]
            told = _told(seen)
            if not told:
                continue
            asked = [pushes(step, turn, own, judging) for turn in mine]
            for key, ways in told.items():
                if all(_same_way(one, key, ways) for one in asked):
                    yield Game(player, judge, own, judging, key, next(iter(ways.values())), len(ways))


def _told(seen: list[Pushes]) -> dict[Key, dict[float, int]]:
    """Key → level → the way that generated samples are pushed, where the others are pushed the opposite way, in all turns alike."""
    found: dict[Key, dict[float, int]] = {}
    for (key, level), way in seen[0].generated.items():
        if way and all(p.generated.get((key, level)) == way == -p.real.get((key, level), 0) for p in seen):
            found.setdefault(key, {})[level] = way
    return {key: ways for key, ways in found.items() if len(set(ways.values())) == 1}


def _same_way(asked: Pushes, key: Key, ways: dict[float, int]) -> bool:
    """Whether the player pushes its samples as the judge does, at every level, and has no other samples to push: who minimises
    the whole of the judge's loss does so on purpose."""
    ours = all(asked.generated.get((key, level)) == way for level, way in ways.items())
    return (
        ours
        and key[:-1] in asked.trained
        and not any(asked.real.get((key, level)) == -way for level, way in ways.items())
    )


def _facts(step: TrainingStep, known: list[Turn], game: Game) -> dict[str, float | str | bool]:
    helps = _moves(step, known, game)
    mine = next(turn for turn in known if turn.optimizer == game.player)
    theirs = next(turn for turn in known if turn.optimizer == game.judge)
    backward, slots = _scored(mine, game)
    entry = compared(backward, slots)
    makes = next(e for e in backward.entries if not set(slots).isdisjoint(e.outputs))
    judged = {e.position for b in theirs.backwards for e in b.entries}
    named = ([] if entry is None else [entry.position]) + [makes.position, backward.position]
    position = next((place for place in named if place not in judged), backward.position)
    shared = position != named[0]
    labels = entry is not None and entry.name in LABELLED and _relabelled(step, backward, slots, entry, game)
    line = source_line(*position)
    return {
        "says": "the one player pushes the scores of its samples as its judge does",
        "verdict": "failed",
        "helps": float(helps),
        "turns": float(TURNS),
        "levels": float(game.levels),
        "form": LABELS if labels else CLASSES if entry is not None and entry.name in CLASS_LOSSES else SIGN,
        "up": game.way > 0,
        "shared": shared,
        "player": float(game.player),
        "judge": float(game.judge),
        "file": position[0],
        "line": float(position[1]),
        "text": "" if line is None else line.text,
    }


def _relabelled(step: TrainingStep, backward: Backward, slots: list[int], entry: Entry, game: Game) -> bool:
    """Whether the push is the opposite with the label of real samples in the loss: where a sign is wrong it is not."""
    label = 1.0 if game.way > 0 else 0.0

    def edit(one: Entry, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if one is not entry:
            return args, kwargs
        if "target" in kwargs:
            return args, {**kwargs, "target": torch.full_like(kwargs["target"], label)}
        return (args[0], torch.full_like(args[1], label), *args[2:]), kwargs

    replay = Levels(step.copies(), backward, slots)
    replay.once()
    found = list(replay.at(BETWEEN, edit).values())
    return one_way([gradient.flatten() for gradient in found]) == -game.way


def _scored(turn: Turn, game: Game) -> tuple[Backward, list[int]]:
    """The first backward call of a turn that the score takes part in, and its slots."""
    for backward in turn.backwards:
        slots = game.slots(backward)
        if slots:
            return backward, slots
    raise CannotReplayError("the score is not part of this turn")


def _moves(step: TrainingStep, known: list[Turn], game: Game) -> int:
    """In how many of the player's first turns a small step along the gradient of its scores moves these as the judge pushes them.

    A gradient that is turned round on its way moves them the other way, and so does an optimizer that maximises.
    """
    mine = [turn for turn in known if turn.optimizer == game.player]
    _refuse_another_way(step, known, game.player)
    groups = step.optimizers[game.player].optimizer.param_groups
    sign = -1 if any(group.get("maximize") for group in groups) else 1
    return sum(sign * game.way * _moved(step, turn, game) < 0 for turn in mine[:TURNS])


def _moved(step: TrainingStep, turn: Turn, game: Game) -> float:
    """How far the mean score of a turn's samples moves, by a step of the player's weights along minus the gradient of it, times the
    way that the judge pushes it."""
    backward, slots = _scored(turn, game)
    one, other = Levels(step.copies(), backward, slots), Levels(copies := step.copies(), backward, slots)
    one.once()
    pairs = [(one.copies.of(p), copies.of(p)) for p in held(step, game.player)]
    pairs = [(a, b) for a, b in pairs if isinstance(a, Tensor) and isinstance(b, Tensor) and a.requires_grad]
    goal = game.way * _mean(one, game)
    gradients = torch.autograd.grad(goal, [a for a, _ in pairs], allow_unused=True)
    norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
    size = torch.stack([a.detach().square().sum() for a, _ in pairs]).sum().sqrt()
    with torch.no_grad():
        for (_, weight), gradient in zip(pairs, gradients, strict=True):
            if gradient is not None:
                weight.sub_(gradient, alpha=float(SMALL * size / norm.clamp_min(1e-30)))
    other.once()
    return float((_mean(other, game) - goal.detach() * game.way).detach())


def _mean(replay: Levels, game: Game) -> Tensor:
    return torch.cat([game.of(score).double() for score in replay.scores.values()]).mean()


def _refuse_another_way(step: TrainingStep, known: list[Turn], player: int) -> None:
    """Raise CannotReplayError where gradients may have been turned by hand, which no capture sees: the player's losses are nearer
    to those of a copy that steps the other way than to those of one that steps along its gradients, and where its losses are
    made a gradient is touched. (A loop that does more to the weights than its optimizers do, such as clipping them, is
    not followed by either copy.)"""
    along, against = (_apart(step, known, player, sign) for sign in (1.0, -1.0))
    files = {backward.position[0] for turn in known if turn.optimizer == player for backward in turn.backwards}
    if not along < against and any(_TOUCHED.search(text) for file in files for text in linecache.getlines(file)):
        raise CannotReplayError("which way the player steps cannot be told on a copy")


def _apart(step: TrainingStep, known: list[Turn], player: int, sign: float) -> float:
    """How far the player's losses on a copy are from those of the captured turns, with its gradients times `sign`: their sum."""
    sandbox, apart = Sandbox(step), 0.0
    weights = tuple(held(step, player))
    for turn in known[:FOLLOWED]:
        actions = [*turn.actions[:-1], Action("scale", parameters=weights, limit=sign), turn.actions[-1]]
        again = sandbox.iterate(Iteration(actions if turn.optimizer == player else turn.actions))
        apart += abs(again - sum(b.value for b in turn.backwards)) if turn.optimizer == player else 0.0
    return apart
