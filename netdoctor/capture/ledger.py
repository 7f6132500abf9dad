"""What plain steps gave, kept as it came, and brought to where it belongs many steps at a time.

Between two calls of a loop the model's numbers empty the processor's caches, so that every line of ours that runs there costs many
times what it costs in a row. A plain step makes the calls of the pattern, each once: what is to be counted follows from the number
of steps, and only its losses and the moves of its learning rates have to be kept.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.optim import Optimizer

from netdoctor.capture.optimizers import Optimizers
from netdoctor.capture.recorder import Recorder, SeriesRecorder
from netdoctor.capture.tripwire import Gradients, Groups

_RATES = 4  # parameter groups of an optimizer whose learning rates are kept
_UNKNOWN = object()
_COUNTED = {"zero": "zero_grad", "backward": "backward", "step": "step"}


@dataclass(slots=True)
class Place:
    """What is known of one call of the pattern, looked up once: where its numbers go."""

    series: SeriesRecorder | None  # of the losses; of an optimizer's gradient norm
    lasti: int = -1  # the instruction that makes the backward call
    index: int = 0  # of the optimizer
    size: int = 0  # how many parameters its first group had then
    groups: int = 0  # how many groups
    rates: tuple[SeriesRecorder, ...] = ()
    look: Gradients | None = None  # at its gradients; None where they are not all on the CPU
    value: float = 0.0  # the loss that it was given last
    lrs: tuple[Any, ...] = ()  # the learning rates that it had then
    lr: Any = _UNKNOWN  # the only one, when it is known and is no tensor
    values: list[float] = field(
        default_factory=list
    )  # losses of the steps that are to be written down; NaN: comes later
    runs: list[tuple[int, tuple[Any, ...]]] = field(default_factory=list)  # (step, the learning rates until there)

    def grew(self, groups: Groups) -> bool:
        """Whether one of several groups has more parameters than it had."""
        return self.look is not None and not self.look.of(groups)

    def add_rates(self, step: int) -> None:
        """Write down the learning rates of a step."""
        while self.runs and self.runs[0][0] <= step:
            self.runs.pop(0)
        for rate, series in zip(self.runs[0][1] if self.runs else self.lrs, self.rates, strict=False):
            series.add(step, math.nan if rate is None else float(rate))


def stepping_place(recorder: Recorder, optimizer: Optimizer, index: int, products: dict[int, int | None]) -> Place:
    """What is known of an optimizer's step. `products`: see products.py."""
    groups = optimizer.param_groups
    rates = [recorder.scalar_series(named("lr", index, number)) for number in range(min(_RATES, len(groups)))]
    on_cpu = all(parameter.is_cpu for group in groups for parameter in group["params"])
    look = Gradients(groups, products) if on_cpu else None
    return Place(None, -1, index, len(groups[0]["params"]), len(groups), tuple(rates), look)


def named(name: str, index: int, number: int = 0) -> str:
    """The name of an optimizer's series."""
    if name == "gradient norm":
        return name if index == 0 else f"{name} ({index})"
    return name if index == number == 0 else f"{name} ({index}.{number})"


def kinds_of(events: Sequence[tuple[Any, ...]]) -> list[str | None]:
    """Under which kind each event of a pattern is counted. A step after another optimizer's is one on the same backward."""
    calls = [event[0] for event in events if event[0] != "end"]
    more = [kind == "step" == calls[number - 1] for number, kind in enumerate(calls)]
    return [*("step without backward" if m else _COUNTED.get(k) for k, m in zip(calls, more, strict=True)), None]


def write_down(
    recorder: Recorder,
    optimizers: Optimizers | None,
    kinds: list[str | None],
    places: list[Place | None],
    steps: tuple[int, int],
    cursor: int,
    stepping: bool,
) -> None:
    """Bring what the steps from the first up to the second of `steps` gave to where it belongs, in the order in which it came; of
    the last one, which is running, the calls before `cursor`. `stepping`: the last of these is an optimizer that is at its step."""
    first, last = steps
    counts = recorder.counts
    try:
        for step in range(first, last + 1):
            for number in range(cursor if step == last else len(places)):
                kind, place = kinds[number], places[number]
                if kind is None:
                    continue
                if place is not None and kind == "backward" and place.series is not None:
                    if not math.isnan(value := place.values[step - first]):
                        place.series.add(step, value)
                elif place is not None and kind.startswith("step"):
                    place.add_rates(step)
                    if stepping and step == last and number == cursor - 1:
                        continue
                    if optimizers is not None:
                        optimizers.count(place.index, step)
                counts[kind] = counts.get(kind, 0) + 1
    finally:
        for place in places:
            if place is not None:
                place.values.clear()
                place.runs.clear()
