"""Two optimizers that play: what the loss of each turn asks of the scores that the other one's model gives.

A turn is what happens up to one step of one optimizer. A judge's scores are the last tensors that its weights make on the way to a
loss; generated are those rows of them that change with the other player's weights, whatever the loop did to its samples in between
(detach, no_grad, cat with real ones).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.step import Action, Copies, Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Entry, Leaf, Slot
from netdoctor.capture.tree import tensors
from netdoctor.experiments.loss_terms import BINARY_LOSSES, CLASS_LOSSES, DIFFERENCES

Ids = frozenset[int]
Edit = Callable[[Entry, Any, Any], tuple[Any, Any]]
Key = tuple[
    int, ...
]  # of a score: which module or weights made it, which of their outputs it is and, at last, which column
# Common levels that scores are set to: between and beyond the usual targets (0 and 1, -1 and 1, smoothed ones) and margins,
# and never right on one, where a push may be 0.
LEVELS = (-2.05, -1.05, -0.85, -0.55, -0.25, -0.05, 0.03, 0.17, 0.33, 0.48, 0.62, 0.83, 0.97, 1.05, 2.05)
WHOLE, CLASSES = -1, 16
_NUDGE = 0.1  # of a weight, and as much again of the mean weight: what depends on it changes in some digit


@dataclass(slots=True)
class Turn:
    """The actions of a loop up to a step of one optimizer, and the backward calls among them."""

    optimizer: int
    actions: list[Action]
    backwards: list[Backward]
    alone: bool = True  # no other optimizer steps on the same backward calls

    def iteration(self) -> Iteration:
        """The turn by itself, to be run on a copy."""
        return Iteration(self.actions)


@dataclass(frozen=True, slots=True)
class Game:
    """Who plays: indices of optimizers, their weights, and the key of the score that both push."""

    player: int
    judge: int
    own: Ids
    judging: Ids
    key: Key
    way: int  # that the judge pushes the scores of generated samples: 1 down, -1 up
    levels: int  # at which it tells generated samples from others

    def slots(self, backward: Backward) -> list[int]:
        """The slots of the score in a backward call."""
        return [n for n, key in scores_of(backward, self.judging).items() if key == self.key[:-1]]

    def of(self, score: Tensor) -> Tensor:
        """The part of a score that both push."""
        return dict(columns(score))[self.key[-1]].flatten()


def turns(iterations: Iterable[Iteration]) -> list[Turn]:
    """The turns of the captured iterations, in order."""
    found: list[Turn] = []
    for iteration in iterations:
        actions: list[Action] = []
        for action in iteration.actions:
            actions.append(action)
            if action.kind != "step":
                continue
            backwards = [a.backward for a in actions if a.backward is not None]
            if not backwards and found:  # the one before had them
                found[-1].alone = False
            found.append(Turn(action.optimizer, actions, backwards, bool(backwards)))
            actions = []
    return found


def held(step: TrainingStep, optimizer: int) -> list[Tensor]:
    """What an optimizer trains: the originals."""
    return [parameter for group in step.optimizers[optimizer].parameters for parameter in group]


def uses(entry: Entry, owned: Ids) -> bool:
    """Whether a call reads some of these weights itself."""
    if entry.module is not None and any(id(p) in owned for p in entry.module.parameters()):
        return True
    return any(isinstance(item, Leaf) and id(item.tensor) in owned for item in entry.meanings())


def scores_of(backward: Backward, owned: Ids) -> dict[int, Key]:
    """Slot → key of the last tensors that these weights make: no later call that reads such weights depends on them."""
    feeding: set[int] = set()
    found: dict[int, Key] = {}
    for entry in reversed(backward.entries):
        own = uses(entry, owned)
        if own and feeding.isdisjoint(entry.outputs):
            made = (id(entry.module),) if entry.module is not None else tuple(_leaves(entry, owned))
            found.update({number: (*made, place) for place, number in enumerate(entry.outputs)})
        if own or not feeding.isdisjoint(entry.outputs):
            feeding.update(entry.inputs())
    return found


def _leaves(entry: Entry, owned: Ids) -> Iterator[int]:
    for item in entry.meanings():
        if isinstance(item, Leaf) and id(item.tensor) in owned:
            yield id(item.tensor)


def after(backward: Backward, slots: Iterable[int]) -> list[Entry]:
    """The calls that depend on these slots, in order."""
    reached = set(slots)
    found = []
    for entry in backward.entries:
        if not reached.isdisjoint(entry.inputs()):
            found.append(entry)
            reached.update(entry.outputs)
    return found


class Levels(Replay):
    """A replay whose scores can be set to a common level, with their graph: what is behind them still gets its gradient."""

    def __init__(self, copies: Copies, backward: Backward, slots: Iterable[int]) -> None:
        super().__init__(copies)
        self.copies = copies
        refuse_overwritten(backward)
        self._backward = backward
        self.scores = {number: torch.empty(0) for number in slots}
        self.watched: set[int] = set()  # ids of entries; `given` holds the tensors that each of them was given
        self.given: list[list[Tensor]] = []

    def once(self) -> Tensor:
        """The loss as it is; `scores` hold what it is made of from now on."""
        loss = self.loss(self._backward, self._note)
        self.scores = {number: self.value(number) for number in self.scores}
        return loss

    def _note(self, entry: Entry, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if id(entry) in self.watched:
            self.given.append([tensor.detach().clone() for tensor in tensors((args, kwargs))])
        return args, kwargs

    def at(self, level: float, edit: Edit | None = None) -> dict[int, Tensor]:
        """Slot → the gradient of the loss with respect to a score, where all scores are `level`; empty where no loss is defined.
        `edit` may change what the calls after them are given."""
        moved = {}
        for number, own in self.scores.items():
            if own.requires_grad and own.is_floating_point():
                moved[number] = self._values[number] = own - own.detach() + level
        try:
            for entry in after(self._backward, self.scores):
                self.run_entry(entry, edit)
            loss = self.loss(self._backward)
            if not moved or not bool(torch.isfinite(loss)):
                return {}
            found = torch.autograd.grad(loss, list(moved.values()), allow_unused=True, retain_graph=True)
        except (RuntimeError, ValueError):  # a probability outside [0, 1]
            return {}
        return {n: g for n, g in zip(moved, found, strict=True) if g is not None and bool(torch.isfinite(g).all())}


@dataclass(slots=True)
class Pushes:
    """Which way the loss of a turn pushes scores, by key and level: 1 down, -1 up, 0 not at all or both ways.

    `generated` and `real` are the rows that change with the player's weights, and those that do not. `trained` are the keys
    (without a column) whose generated rows lead back to these weights. `rows` are slot → mask of generated rows.
    """

    generated: dict[tuple[Key, float], int] = field(default_factory=dict)
    real: dict[tuple[Key, float], int] = field(default_factory=dict)
    trained: set[Key] = field(default_factory=set)
    rows: dict[int, Tensor] = field(default_factory=dict)


def pushes(step: TrainingStep, turn: Turn, player: Ids, judge: Ids) -> Pushes:
    """What one turn asks of the judge's scores, at each level."""
    found = Pushes()
    grads: dict[tuple[Key, float], tuple[list[Tensor], list[Tensor]]] = {}
    for backward in turn.backwards:
        keys = scores_of(backward, judge)
        if not keys:
            continue
        replay = Levels(step.copies(), backward, keys)
        replay.once()
        moved = nudge(step, player)
        nudged = Levels(moved, backward, keys)
        nudged.once()
        rows = {n: changed(replay.scores[n], nudged.scores[n]) for n in keys}
        found.rows.update(rows)
        weights = [copied for p in held_by(step, player) if isinstance(copied := moved.of(p), Tensor)]
        found.trained |= {key for n, key in keys.items() if bool(rows[n].any()) and _leads(nudged.scores[n], weights)}
        for level in LEVELS:
            for number, gradient in replay.at(level).items():
                mask = rows[number]
                for column, part in columns(gradient.reshape(len(mask), -1)):
                    pair = grads.setdefault(((*keys[number], column), level), ([], []))
                    pair[0].append(part[mask].flatten())
                    pair[1].append(part[~mask].flatten())
    for place, (generated, real) in grads.items():
        found.generated[place], found.real[place] = one_way(generated), one_way(real)
    return found


def columns(scores: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Number → column of scores (rows, ...), where they are few, as classes are; WHOLE → all of them, as of patches."""
    flat = scores.reshape(len(scores), -1) if scores.dim() else scores.reshape(1, 1)
    if 1 < flat.shape[1] <= CLASSES:
        yield from enumerate(flat.unbind(1))
    else:
        yield WHOLE, flat


def held_by(step: TrainingStep, owned: Ids) -> list[Tensor]:
    """The originals of these weights."""
    return [p for n in range(len(step.optimizers)) for p in held(step, n) if id(p) in owned]


def nudge(step: TrainingStep, owned: Ids) -> Copies:
    """Fresh copies with these weights moved a little."""
    copies = step.copies()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for original in held_by(step, owned):
            copied = copies.of(original)
            if isinstance(copied, Tensor) and copied.is_floating_point():
                noise = torch.randn(copied.shape, generator=draw).to(copied)
                copied.add_(_NUDGE * noise * (copied.abs() + copied.abs().mean() + 1e-3))
                copied.requires_grad_()
    return copies


def changed(one: Tensor, other: Tensor) -> Tensor:
    """Which rows of two tensors (batch, ...) differ: a mask (batch,); a number alone is one row."""
    if one.shape != other.shape:
        return torch.ones(1, dtype=torch.bool, device=one.device)
    count = len(one) if one.dim() else 1
    return (one.detach() != other.detach()).reshape(count, -1).any(1)


def one_way(gradients: list[Tensor]) -> int:
    """The sign that all of some gradients have, those that are 0 aside; 0 where there is none, or both."""
    signs = torch.cat([g.sign() for g in gradients]) if gradients else torch.empty(0)
    up, down = bool((signs < 0).any()), bool((signs > 0).any())
    return 0 if up == down else 1 if down else -1


def _leads(score: Tensor, weights: list[Tensor]) -> bool:
    """Whether a gradient of these scores reaches the weights."""
    wanted = [w for w in weights if w.requires_grad]
    if not score.requires_grad or not wanted:
        return False
    found = torch.autograd.grad(score.sum(), wanted, allow_unused=True, retain_graph=True)
    return any(g is not None and bool((g != 0).any()) for g in found)


def compared(backward: Backward, slots: Iterable[int]) -> Entry | None:
    """The call that makes a loss of these scores: a known loss function, else the first call that reads them."""
    tail = after(backward, slots)
    known = BINARY_LOSSES | CLASS_LOSSES | DIFFERENCES
    return next((entry for entry in tail if entry.name in known), tail[0] if tail else None)


def turned(backward: Backward, slots: Iterable[int], turn: Callable[..., Any]) -> list[Entry]:
    """The entries of a backward call with `turn` done to these slots as soon as they are made."""
    wanted, entries = set(slots), []
    for entry in backward.entries:
        entries.append(entry)
        for number in wanted.intersection(entry.outputs):
            entries.append(Entry(turn, None, (Slot(number),), {}, outputs=[number], name="turned"))
    return entries
