"""Observes small trainings for the tests of the capture room, and replays them on a copy against what really happened."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from netdoctor.capture.assembly import assemble
from netdoctor.capture.observer import Observer
from netdoctor.capture.origin import find_origin
from netdoctor.capture.step import TrainingStep
from netdoctor.capture.taps import Taps
from netdoctor.experiments.sandbox import Sandbox, quiet
from netdoctor.recording import Recording

Gradients = list["Tensor | None"]


class Observation:
    """A running observation, as a session makes it, without checks and experiments."""

    def __init__(self, every: int | None = None) -> None:
        self.observer = Observer(every=every)
        self.observer.find_origin = find_origin
        self.taps = Taps(self.observer)

    @property
    def recording(self) -> Recording:
        """What was observed so far."""
        self.observer.recorder.flush(self.observer.step)
        return assemble(self.observer, self.taps.training, "test", "0", "finished")

    @property
    def step(self) -> TrainingStep:
        """The captured iterations."""
        return self.observer.program.training_step()


@contextlib.contextmanager
def observing(every: int | None = None, faultless: bool = True) -> Iterator[Observation]:
    """Observe what runs inside the block; a contained exception of ours fails the test."""
    observation = Observation(every)
    observation.taps.install()
    try:
        yield observation
    finally:
        observation.taps.remove()
    assert not faultless or observation.observer.containment.faults == []


@dataclass
class Log:
    """What a training really did: every loss that it called backward on, the gradients at each optimizer step."""

    losses: list[float] = field(default_factory=list)
    gradients: list[Gradients] = field(default_factory=list)

    def watch(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """Keep the gradients that this optimizer steps with, from now on."""
        optimizer.register_step_pre_hook(lambda o, *_: self.keep(p for g in o.param_groups for p in g["params"]))
        return optimizer

    def keep(self, parameters: Iterable[Tensor]) -> None:
        """Keep the gradients of these tensors as one step's."""
        self.gradients.append([None if p.grad is None else p.grad.detach().clone() for p in parameters])

    def backward(self, loss: Tensor, **options: Any) -> None:
        """`loss.backward()`, noted."""
        self.losses.append(float(loss.detach().sum()))
        loss.backward(**options)


def seed(number: int = 0) -> None:
    """Set every random state that a training may draw from."""
    torch.manual_seed(number)
    np.random.seed(number)
    random.seed(number)


def trained(train: Callable[[Log], Any], every: int | None = None) -> tuple[Observation, Log]:
    """Observe `train(log)` from a fixed seed."""
    seed()
    log = Log()
    with observing(every) as observation:
        train(log)
    return observation, log


def replayed(step: TrainingStep, steps: int) -> tuple[list[float], Log]:
    """(the summed loss of each iteration, what happened) of a run on a copy."""
    log = Log()
    with quiet():
        sandbox = Sandbox(step)
        for optimizer in sandbox.optimizers:
            log.watch(optimizer)
        totals = [sandbox.iterate(iteration) for iteration in step.iterations[:steps]]
    return totals, log


def assert_replays(train: Callable[[Log], Any], steps: int = 1, exact_sum: bool = True) -> None:
    """The first `steps` iterations come back on a copy bit for bit: losses, and the gradients at every optimizer step.

    `exact_sum`: False where one backward call has several losses, whose sum is rounded in single precision on the copy.
    """
    observation, log = trained(train)
    step = observation.step
    assert step.lost == ""
    assert len(step.iterations) >= steps
    totals, copy = replayed(step, steps)
    values = [[b.value for b in iteration.backwards] for iteration in step.iterations[:steps]]
    flat = [value for one in values for value in one]
    assert flat == log.losses[: len(flat)]
    sums = [sum(one) for one in values]
    assert totals == (sums if exact_sum else pytest.approx(sums, rel=1e-6))
    assert copy.gradients
    assert_same_gradients(copy.gradients, log.gradients[: len(copy.gradients)])


def assert_same_gradients(left: list[Gradients], right: list[Gradients]) -> None:
    """Equal in every bit, None where None."""
    assert len(left) == len(right)
    for number, (ours, theirs) in enumerate(zip(left, right, strict=True)):
        assert [g is None for g in ours] == [g is None for g in theirs], f"step {number}"
        different = [
            n for n, (a, b) in enumerate(zip(ours, theirs, strict=True)) if a is not None and not torch.equal(a, b)
        ]
        assert different == [], f"step {number}"
