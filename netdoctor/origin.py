"""Where the first NaN or Inf was born: the operation, what went into it, and the user's line."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SourceLine:
    """A line of the user's own code. `text` is the stripped source, empty where it could not be read."""

    file: str
    line: int
    text: str = ""


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor that went into or out of an operation. Ranges are over finite values; NaN when there are none."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float
    nans: int = 0
    infs: int = 0
    zeros: int = 0


MAX_SKIPS = 20  # a scaler that starts at 2**16 and halves gets under 1 with 17 skips: more are a fault of the gradient
NORMALISED = "div by sum over "  # of `Origin.downstream`, with the dimension: what was made is divided by its sum


@dataclass(frozen=True, slots=True)
class Culprit:
    """Another operation of the faulty step that breaks by itself: on the same line, or the same operation elsewhere."""

    operation: str
    source: SourceLine | None = None
    inputs: tuple[Operand, ...] = ()
    upstream: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the first NaN or Inf was born.

    `phase` is "input" (it came with the batch), "parameter" (already in a weight or buffer), "forward", "backward" or
    "optimizer" (finite gradient, non-finite weight after the step). `kind` is "NaN" or "Inf" as first made.
    `source` is the user's line that ran the operation (for "backward": the forward line that recorded it).
    `samples` are the guilty indices along the batch dimension, at most 16. `reproduced` is False when the replay did not show
    it again, so that only the recorded statistics speak; `note` then says why.
    """

    phase: str
    kind: str
    step: int
    operation: str = ""
    module: str = ""
    call: int = 0
    model: str = ""
    parameter: str = ""
    inputs: tuple[Operand, ...] = ()
    output: Operand | None = None
    attributes: Mapping[str, float | str | bool] = field(default_factory=dict)
    samples: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    source: SourceLine | None = None
    upstream: str = ""  # the operation that made the guilty input, e.g. "softmax"
    upstream_source: SourceLine | None = None  # its line
    born: str = ""  # where the guilty input is 0: the operation that first made it 0, of values that were not
    born_source: SourceLine | None = None
    downstream: tuple[str, ...] = ()  # the operations that read what it made
    also: tuple[Culprit, ...] = ()  # what would break next, once this is mended
    constant: bool = False  # made of data alone, outside of what can be run again on a copy
    reproduced: bool = True
    note: str = ""
