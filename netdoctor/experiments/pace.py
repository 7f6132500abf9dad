"""How long a step of the captured training takes, and a lighter form of it where the time is short."""

from __future__ import annotations

import time
from dataclasses import replace

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.sandbox import quiet
from netdoctor.experiments.tiny_batch import SAMPLES, batch_size, cut, sample

_PASSES = 3.0  # a step is some three forward passes: the backward pass costs two
_NOTICED = 0.02  # seconds of a forward pass that could make a step slow
_LEAST = 4  # samples of the lightest form: with fewer, batch normalisation has next to nothing to normalise over
ARM = 30  # steps of an arm that can be judged on changing batches (trend.py: SURE_STEPS)
QUICK = 12  # steps of one that repeats a few samples, where no minibatch noise hides the course (trend.py: 8)


def seconds_per_step(step: TrainingStep) -> float:
    """An estimate in seconds, from the forward pass of a replay, made once; 0 where the step cannot be run.

    What seems slow is timed again: a first pass warms up, and other programs only ever make it slower.
    """
    if step.pace is None:
        try:
            first = _timed(step)
            step.pace = _PASSES * (min(first, _timed(step)) if first > _NOTICED else first)
        except Exception:  # whoever runs an experiment says so
            step.pace = 0.0
    return step.pace


def _timed(step: TrainingStep) -> float:
    began = time.perf_counter()
    with quiet():
        step.verified = False  # so that the first loss is made once more
        step.copies()
    return time.perf_counter() - began


def is_slow(pace: float, seconds: float, arms: int = 2) -> bool:
    """Whether this many arms of changing batches do not fit in these seconds."""
    return pace * ARM * arms > seconds


def tiny_pace(step: TrainingStep, pace: float) -> float:
    """The seconds that a step on a tiny batch should take."""
    return pace * min(1.0, SAMPLES / max(1, batch_size(step.iterations[0], 0))) if step.iterations else 0.0


def least_seconds(step: TrainingStep) -> float:
    """About the seconds of the shortest trial: two arms of a few steps on the lightest form of the step."""
    size = batch_size(step.iterations[0], 0) if step.iterations else 0
    return 2 * QUICK * seconds_per_step(step) * min(1.0, _LEAST / max(1, size))


def lighter(step: TrainingStep, pace: float, seconds: float, arms: int = 2) -> TrainingStep:
    """The same training on a handful of the samples of its first batch, repeated: as many as the time allows.

    The step itself where nothing can be cut out of it.
    """
    try:
        with quiet():
            batch = cut(step, step.copies())
            iterations, size = batch.iterations, batch.size
            cost = pace * size / max(size, batch_size(step.iterations[0], batch.dimension))
            if is_slow(cost * QUICK / ARM, seconds, arms) and size > _LEAST and len(iterations) == 1:
                chosen = tuple(range(0, size, max(1, size // _LEAST)))[:_LEAST]
                iterations = [sample(iterations[0], size, batch.dimension, chosen)]
    except Exception:  # no batch dimension was found, or the model wants the whole of it
        return step
    return replace(step, iterations=iterations, verified=True)


def all_lighter(step: TrainingStep, pace: float, seconds: float) -> TrainingStep:
    """`lighter` of every captured part of the training."""
    late = None if step.late is None else all_lighter(step.late, pace, seconds)
    return replace(lighter(step, pace, seconds), late=late)
