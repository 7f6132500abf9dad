"""The figures of how weights and gradients are spread over time, and of the learning-rate range test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from netdoctor.finding import Finding
from netdoctor.recording import Array, Recording, Role, Stat, Track
from netdoctor.render import palette, ridges, wording
from netdoctor.render.palette import ALARM, GOOD, INK
from netdoctor.render.sheet import Drawing, blank, drawing_style, finish, in_bounds, scale, whole_steps

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST = 6  # parameters that are drawn: those that findings name first
RANGE_TEST = "lr-range-test"  # the arm, by its name


def of_interest(recording: Recording, findings: tuple[Finding, ...]) -> list[str]:
    """The parameters to draw: those of the layers that findings name, then weights spread evenly over the depth."""
    named = {name for f in findings for name in (f.location.module or "", *f.places)} - {""}
    counted = {histogram.parameter for histogram in recording.histograms}
    known = [n for n in recording.parameters if n in counted]
    known = known or [n for n in recording.parameters if _spread(recording, n, Role.WEIGHT) is not None]
    first = [name for name in known if name in named or recording.parameters[name].module in named]
    layers = [layer.weight for layer in recording.layers if layer.weight in known and layer.weight not in first]
    chosen = [*_evenly(first), *_evenly(layers)][:MOST]
    return sorted(dict.fromkeys(chosen), key=list(recording.parameters).index)


def _evenly(names: list[str]) -> list[str]:
    """At most `MOST` of them, from the first to the last."""
    return [names[at] for at in np.unique(np.linspace(0, len(names) - 1, min(MOST, len(names))).round().astype(int))]


def spread(
    recording: Recording, parameter: str, width: float, height: float = 2.6, name: str = "spread"
) -> Drawing | None:
    """Weight and gradient of one parameter over the steps: as histograms, or of a recording from before there were any as mean,
    one standard deviation and the extremes."""
    if ridges.of_parameter(recording, parameter):
        return ridges.ridges(recording, parameter, width, height, name)
    panels = [(title, _spread(recording, parameter, role)) for title, role in _PANELS]
    drawn = [(title, tracks) for title, tracks in panels if tracks is not None]
    if not drawn:
        return None
    owner = recording.parameters[parameter].module
    colour = palette.of_layers(recording).get(owner, palette.APART[0])
    with drawing_style():
        figure, axes = blank(width, height * len(drawn) / 2 + 0.2, (1,) * len(drawn))
        said = []
        for panel, (title, (mean, std, most)) in zip(axes, drawn, strict=True):
            _bands(panel, mean, std, most, colour)
            panel.set_title(title if np.any(most.values != 0) else f"{title}: 0 at every step")
            ends = " → ".join(wording.number(float(std.values[at])) for at in (0, -1))
            said.append(f"standard deviation of the {title} {ends}")
        whole_steps(axes[-1])
        return finish(figure, name, f"{wording.clean(parameter, 80)} over the steps: {', '.join(said)}")


_PANELS = (("weight", Role.WEIGHT), ("gradient", Role.WEIGHT_GRADIENT))


def _spread(recording: Recording, parameter: str, role: Role) -> tuple[Track, Track, Track] | None:
    """Mean, standard deviation and largest magnitude; None where they were not all taken at least twice."""
    tracks = [recording.of_parameter(parameter, stat, role) for stat in (Stat.MEAN, Stat.STD, Stat.ABSMAX)]
    mean, std, most = tracks
    if mean is None or std is None or most is None or not 1 < len(mean.steps) == len(std.steps) == len(most.steps):
        return None
    return mean, std, most


def _bands(axes: Axes, mean: Track, std: Track, most: Track, colour: str) -> None:
    """Extremes in the lightest shade, one deviation in a darker one, the mean as a line; NaN leaves a gap."""
    middle, wide, end = (_flat(track) for track in (mean, std, most))
    axes.fill_between(mean.steps, -end, end, color=colour, alpha=0.14, linewidth=0)
    axes.fill_between(mean.steps, middle - wide, middle + wide, color=colour, alpha=0.38, linewidth=0)
    axes.plot(mean.steps, middle, color=colour, linewidth=1.2)
    broken = mean.steps[~np.isfinite(np.asarray(mean.values, dtype=np.float64))]
    if broken.size:
        edge = axes.get_xaxis_transform()
        axes.plot(
            broken[:1], [0.94], "x", transform=edge, color=ALARM, markersize=6, markeredgewidth=1.8, clip_on=False
        )
    scale(axes, log=False)


def _flat(track: Track) -> Array:
    return in_bounds(track.values, log=False)


_MARKS = {
    "lr": ("the script's", INK),
    "suggested": ("suggested", GOOD),
    "steepest": ("falls fastest", palette.APART[0]),
    "divergence": ("diverges", ALARM),
}


def lr_range(recording: Recording, width: float, height: float = 2.4, name: str = "range") -> Drawing | None:
    """The loss while the rate of a copy grows step by step, with the script's own rate."""
    arm = recording.arms.get(RANGE_TEST)
    rates = None if arm is None else arm.curves.get("lr")
    if arm is None or rates is None or len(rates) < 2 or len(arm.losses) < 2:
        return None
    count = min(len(rates), len(arm.losses))
    rates, losses = rates[:count], arm.losses[:count]
    finite = losses[np.isfinite(losses)]
    with drawing_style():
        figure, (axes,) = blank(width, height)
        shown = np.where(losses > 4 * finite[0], np.nan, losses) if finite.size and finite[0] > 0 else losses
        axes.plot(rates, in_bounds(shown, log=False), color=palette.APART[0])
        _log_rates(axes)
        scale(axes, log=False)
        axes.set_xlabel("learning rate")
        axes.set_ylabel("loss")
        own = recording.optimizers[0].lr if recording.optimizers else float("nan")
        for at, (fact, (label, colour)) in enumerate(_MARKS.items()):
            rate = float(arm.facts.get(fact, own if fact == "lr" else float("nan")))
            _mark_rate(axes, rates, rate, label, colour, 0.98 - 0.11 * at)
        says = wording.clean(str(arm.facts.get("says", "")), 200)
        ends = f"from {wording.number(float(rates[0]))} to {wording.number(float(rates[-1]))}"
        return finish(figure, name, f"Loss while the learning rate grows {ends}. {says}".strip())


def _log_rates(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(numticks=6))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.number(value)))


def _mark_rate(axes: Axes, rates: Array, rate: float, label: str, colour: str, height: float) -> None:
    if not rates[0] <= rate <= rates[-1]:
        return
    axes.axvline(rate, color=colour, linewidth=1.2, linestyle=(0, (4, 2)))
    late = np.log(rate / rates[0]) > 0.6 * np.log(rates[-1] / rates[0])
    axes.annotate(
        f"{label} {wording.number(rate)}", (rate, height), (-4 if late else 4, 0), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", va="top", ha="right" if late else "left", color=colour, fontsize=8,
    )  # fmt: skip
