"""The figure of a parameter's histograms over time: one ridge per step, weight and gradient side by side."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from netdoctor.recording import Array, Histogram, Recording, Role
from netdoctor.render import palette, wording
from netdoctor.render.palette import ALARM
from netdoctor.render.sheet import Drawing, drawing_style, finish

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIDGES = 8  # in a panel: more overlap too much to be read
WIDEST = 6  # times the usual reach of a row: one wild step would leave nothing to be seen of the others
BEYOND = 20  # times the width of the axis: such a row would be a plain bar
_OVERLAP = 1.7  # a ridge's height, in distances between two of them
_TITLES = {Role.WEIGHT: "weight", Role.WEIGHT_GRADIENT: "gradient"}


def of_parameter(recording: Recording, parameter: str) -> list[Histogram]:
    """The histograms of a weight and of its gradient; none where fewer than two steps were taken."""
    found = {h.role: h for h in recording.histograms if h.parameter == parameter and len(h.steps) > 1}
    return [found[role] for role in _TITLES if role in found]


def ridges(
    recording: Recording, parameter: str, width: float, height: float = 2.6, name: str = "ridges"
) -> Drawing | None:
    """The histograms of one parameter and of its gradient, the first step at the bottom."""
    drawn = of_parameter(recording, parameter)
    if not drawn:
        return None
    owner = recording.parameters[parameter].module if parameter in recording.parameters else ""
    colour = palette.of_layers(recording).get(owner, palette.APART[0])
    with drawing_style():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        panels: list[Axes] = list(figure.subplots(1, len(drawn), squeeze=False)[0])
        for panel, histogram in zip(panels, drawn, strict=True):
            panel.patch.set_alpha(0)
            _panel(panel, histogram, colour)
        panels[0].set_ylabel("step")
        said = "; ".join(_in_words(histogram) for histogram in drawn)
        return finish(figure, name, f"Histograms of {wording.clean(parameter, 80)} over the steps: {said}")


def _in_words(histogram: Histogram) -> str:
    ends = [
        f"{wording.number(float(histogram.low[at]))} to {wording.number(float(histogram.high[at]))}" for at in (0, -1)
    ]
    steps = f"step {histogram.steps[0]} and {ends[1]} at step {histogram.steps[-1]}"
    return f"{_TITLES[histogram.role]} from {ends[0]} at {steps}"


def _panel(axes: Axes, histogram: Histogram, colour: str) -> None:
    count = len(histogram.steps)
    rows = np.unique(np.linspace(0, count - 1, min(RIDGES, count)).round().astype(int))
    left, right = _reach(histogram.low, histogram.high)
    for place, at in reversed(list(enumerate(rows))):  # nearer ridges lie over those behind
        low, high = float(histogram.low[at]), float(histogram.high[at])
        if not np.isfinite([low, high]).all():
            axes.plot([(left + right) / 2], [place + 0.3], "x", color=ALARM, markersize=6, markeredgewidth=1.8)
            continue
        if high - low > BEYOND * (right - left):
            axes.annotate("off the scale", ((left + right) / 2, place + 0.15), ha="center", color=ALARM, fontsize=8)
            continue
        values, heights = _outline(low, high, histogram.counts[at], (right - left) / 100)
        axes.fill_between(
            values, place, place + _OVERLAP * heights, color=colour, alpha=0.45, linewidth=0, zorder=3 - place / count
        )
        axes.plot(values, place + _OVERLAP * heights, color=colour, linewidth=1, zorder=3 - place / count)
    still = np.isfinite(histogram.low).all() and np.all(histogram.low == 0) and np.all(histogram.high == 0)
    axes.set_title(f"{_TITLES[histogram.role]}: all 0" if still else _TITLES[histogram.role])
    _scales(axes, (left, right), histogram.steps[rows])


def _outline(low: float, high: float, counts: NDArray[np.int64], thinnest: float) -> tuple[Array, Array]:
    """The upper edge of one ridge, at most 1 high; values that are all the same become a peak of the width of a line."""
    if high - low < thinnest:
        middle = (low + high) / 2
        return middle + thinnest * np.array([-0.5, 0.0, 0.5]), np.array([0.0, 1.0, 0.0])
    edges = np.linspace(low, high, len(counts) + 1)
    centres = (edges[1:] + edges[:-1]) / 2
    heights = counts / max(1, int(counts.max()))
    return np.r_[low, centres, high], np.r_[0.0, heights, 0.0]


def _reach(low: Array, high: Array) -> tuple[float, float]:
    """The ends of the horizontal axis: all rows, unless a few reach far beyond what is usual."""
    kept = np.isfinite(low) & np.isfinite(high)
    if not kept.any():
        return -1.0, 1.0
    left, right = float(low[kept].min()), float(high[kept].max())
    usual = float(np.median(np.maximum(np.abs(low[kept]), np.abs(high[kept]))))
    if usual > 0:
        left, right = max(left, -WIDEST * usual), min(right, WIDEST * usual)
    if right <= left:
        room = abs(left) or 1.0
        return left - room, left + room
    return left, right


def _scales(axes: Axes, ends: tuple[float, float], steps: NDArray[np.int64]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    room = 0.04 * (ends[1] - ends[0])
    axes.set_xlim(ends[0] - room, ends[1] + room)
    axes.set_ylim(-0.15, len(steps) - 1 + _OVERLAP + 0.1)
    axes.set_yticks(range(len(steps)), [str(int(step)) for step in steps])
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.number(value)))
    axes.spines["left"].set_visible(False)
