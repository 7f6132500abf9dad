"""Treatments of what a loop carries from step to step: decay, penalties, old gradients, histories."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from netdoctor.capture.step import Action, Iteration, OptimizerStart, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Entry
from netdoctor.checks.training.pull import weaker
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment, as_trained
from netdoctor.experiments.unblocking import unpenalised

LESS = 0.01  # of the penalty, as over-regularised says
ALIVE = 1.0  # graphs: the one that the running step made
STEPS = 16  # as memory-growth asks
_KEPT = "netdoctor kept"  # where a graph's node keeps its mark


# --- decay and penalties, from the trained weights on ----------------------------------------------------------------


def less_decay(_: Case) -> Treatment:
    """A hundredth of every weight decay, or what is usual; both arms go on from the trained weights."""

    def apply(bench: Bench) -> None:
        kinds = [type(optimizer).__name__ for optimizer in bench.sandbox.optimizers]
        for optimizer, kind in zip(bench.sandbox.optimizers, kinds, strict=True):
            for group in optimizer.param_groups:
                group.update(_weakened(group, kind))

        def weakened(action: Action) -> Action:
            kind = kinds[action.optimizer] if action.options else ""
            return replace(action, options=tuple(o | _weakened(o, kind) for o in action.options))

        bench.iterations = [Iteration([weakened(a) for a in it.actions], it.bytes) for it in bench.iterations]

    return Treatment(apply, as_trained, control=as_trained, says="the trained weights as the start")


def _weakened(options: dict[str, Any], optimizer: str) -> dict[str, Any]:
    decay = options.get("weight_decay")
    return {"weight_decay": weaker(float(decay), optimizer)} if decay else {}


def less_penalty(case: Case) -> Treatment:
    """A hundredth of what is added to the loss and made of weights alone; losses are told without it."""
    without = unpenalised(case.step.iterations)

    def weakened(bench: Bench, factor: float) -> None:
        def edit(entry: Entry, args: Any, kwargs: Any) -> tuple[Any, Any]:
            changed, kwargs = without(entry, args, kwargs)
            if changed is args:
                return args, kwargs
            bench.measured.append(float(sum(float(c.detach()) for c in changed if isinstance(c, Tensor))))
            return tuple(a if a is c else factor * a for a, c in zip(args, changed, strict=True)), kwargs

        bench.sandbox.edit = edit

    return Treatment(
        lambda bench: weakened(bench, LESS),
        as_trained,
        beside=lambda bench: weakened(bench, 1.0),
        control=as_trained,
        says="the trained weights as the start, and losses without the penalty",
    )


# --- gradients that stay ---------------------------------------------------------------------------------------------


def drop_frozen(case: Case) -> Treatment | None:
    """No gradient at frozen parameters, in place of the one that the training left there.

    Both arms go on from the trained weights with the optimizer's averages; in the control the old gradients stay.
    """
    held = [p for start in case.step.optimizers for group in start.optimizer.param_groups for p in group["params"]]
    frozen = [p for p in held if not p.requires_grad and p.grad is not None]
    if not frozen:
        return None
    ids = {id(p) for p in frozen}

    def keep(bench: Bench) -> None:
        for parameter in frozen:
            copied, old = bench.sandbox.copies.of(parameter), parameter.grad
            if isinstance(copied, Tensor) and old is not None:
                copied.grad = old.detach().clone()
        bench.iterations = [
            Iteration([_not_clearing(action, ids) for action in it.actions], it.bytes) for it in bench.iterations
        ]

    def drop(bench: Bench) -> None:
        for parameter in frozen:
            copied = bench.sandbox.copies.of(parameter)
            if isinstance(copied, Tensor):
                copied.grad = None

    return Treatment(drop, as_it_ended, both=keep, control=as_it_ended, measure=_moving(frozen))


def freeze_module(case: Case) -> Treatment | None:
    """No gradient for the parameters that the finding names; both arms go on from the trained weights."""
    meant = [p for name in case.finding.places if (p := case.places.parameter(name)) is not None and p.requires_grad]
    if not meant:
        return None

    def freeze(bench: Bench) -> None:
        for parameter in meant:
            copied = bench.sandbox.copies.of(parameter)
            if isinstance(copied, Tensor):
                copied.requires_grad_(False).grad = None

    measure = replace(_moving(meant), witness=False)  # what may train less can lower the loss less
    return Treatment(freeze, as_it_ended, control=as_it_ended, measure=measure)


def _moving(parameters: list[Tensor]) -> Measure:
    """How far a copy moves parameters that are to stay as the training left them."""

    def moved(bench: Bench) -> float:
        pairs = [(p.detach().double(), bench.sandbox.copies.of(p)) for p in parameters]
        shares = [(c.detach().double() - p).norm() / p.norm().clamp_min(1e-12) for p, c in pairs if c is not None]
        return 100 * float(max(shares)) if shares else float("nan")

    return Measure("frozen parameters moved, of their size, by", moved, 0.0, "%")


def as_it_ended(step: TrainingStep) -> Sandbox:
    """A copy of everything as the training left it, the optimizers' options and averages too."""
    ended = [
        OptimizerStart(
            start.optimizer,
            [{k: v for k, v in g.items() if k != "params"} for g in start.optimizer.param_groups],
            [list(g["params"]) for g in start.optimizer.param_groups],
            {id(p): state for p, state in start.optimizer.state.items()},
        )
        for start in step.optimizers
    ]
    return Sandbox(replace(step, starts={}, optimizers=ended, verified=True))


def _not_clearing(action: Action, ids: set[int]) -> Action:
    if action.kind != "zero":
        return action
    return replace(action, parameters=tuple(p for p in action.parameters if id(p) not in ids))


# --- histories -------------------------------------------------------------------------------------------------------


class _Mark:
    """Lies at the root of a graph, and lives as long as that."""

    __slots__ = ("__weakref__",)


def detach_history(_: Case) -> Treatment:
    """The losses of some steps kept without their graphs; the control keeps them with these, as the script keeps something."""

    def graphs(bench: Bench) -> float:
        bare = bool(bench.notes)
        kept, marks = [], []
        for loss, mark in _losses(bench):
            kept.append(loss.detach() if bare else loss)
            marks.append(mark)
            del loss
        return float(sum(mark() is not None for mark in marks))

    def apply(bench: Bench) -> None:
        bench.notes.append(f"the losses of {STEPS} steps kept, detached")

    measure = Measure(f"graphs alive after {STEPS} steps whose losses are kept", graphs, ALIVE)
    return Treatment(apply, measure=measure, steps=0)


def _losses(bench: Bench) -> Iterator[tuple[Tensor, weakref.ref[_Mark]]]:
    for number in range(STEPS):
        iteration, replay = bench.iterations[number % len(bench.iterations)], Replay(bench.sandbox.copies)
        for backward in iteration.backwards[:1]:
            refuse_overwritten(backward)
            loss, mark = replay.loss(backward), _Mark()
            node: Any = loss.grad_fn
            node.metadata[_KEPT] = mark
            torch.autograd.backward(loss)
            yield loss, weakref.ref(mark)


TREATMENTS: dict[str, Maker] = {
    "less-decay": less_decay,
    "less-penalty": less_penalty,
    "drop-frozen": drop_frozen,
    "freeze-module": freeze_module,
    "detach-history": detach_history,
}
