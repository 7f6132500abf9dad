"""What the data looks like as the model and the loss see it: values of numbers and text, taken from sampled steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Columns:
    """Statistics per column (feature or channel) over sampled rows, each of shape (columns,); finite rows only.

    `spread` is the robust deviation 1.4826 median|x - median|. `extreme` is the end of the range, shared by 3 or more
    different rows, that lies furthest from the next value (NaN: there is none), `extreme_share` its share of different
    rows, `extreme_distance` the gap in robust deviations of the rest.
    """

    mean: Array
    std: Array
    low: Array
    high: Array
    median: Array
    spread: Array
    zeros: Array
    extreme: Array
    extreme_share: Array
    extreme_distance: Array


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A model input, or a loss's target, over the sampled steps. `shape` and `dtype` are those of the first step.

    `columns` are those of axis `axis` ("column": the last dimension, "channel": dimension 1; every `stride`-th where
    there are more than 512). `mean` and `std` are over all. `batches` holds (per sampled step) a hash of its numbers,
    `scales` its mean and standard deviation (steps, 2).
    Of targets, `name` is the loss function; for whole numbers `classes` counts each class per step (steps, classes),
    and `ordered` is the share of neighbours in the batch that do not descend. `value` is the index in the graph.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    steps: NDArray[np.int64]
    rows: int
    mean: float
    std: float
    integral: bool
    columns: Columns
    axis: str = "column"
    stride: int = 1
    batches: tuple[int, ...] = ()
    classes: Array | None = None
    ordered: Array | None = None
    within: Array | None = None  # of targets: standard deviation within the batch, per step (first column)
    value: int | None = None
    file: str = ""  # the line that gave it to the model, or to the loss
    line: int = 0
    text: str = ""
    nonfinite: int = 0  # sampled rows that hold NaN or Inf; they are in none of the figures
    scales: Array | None = None

    @property
    def rms(self) -> float:
        """Root mean square over everything that was sampled."""
        return float(np.hypot(self.mean, self.std))


@dataclass(frozen=True, slots=True)
class Override:
    """A class's own `train` ("Net.train") after which its modules are not in the mode that was asked for, and the line in it
    that calls the base class's."""

    name: str
    file: str
    line: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What the script does at one line between training steps: passes whose results it compares, and never trains on.

    `losses` holds the mean loss of each evaluation at `steps` optimizer steps, empty where it computes another one than
    the training does (or more batches than were watched). `train_mode` counts passes of a model in training mode, and
    `layers` its BatchNorm and Dropout layers that were in that mode. `repeated` counts passes given the batch of the
    pass before. The line is the one that calls for the evaluation, where that is a function of its own. `override` is
    what kept the model, or a part of it, in training mode though its `eval()` was called.
    """

    steps: NDArray[np.int64]
    losses: Array
    phases: int = 0
    passes: int = 0
    train_mode: int = 0
    layers: tuple[str, ...] = ()
    repeated: int = 0
    module: str = ""
    inputs: tuple[TensorFacts, ...] = ()
    file: str = ""
    line: int = 0
    text: str = ""
    override: Override | None = None
