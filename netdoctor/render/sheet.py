"""A blank sheet to draw on with matplotlib's object API, and its way to an SVG that can stand inside of a page.

pyplot is never imported, and the user's own matplotlib settings are neither used nor changed.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import escape
from numpy.typing import NDArray

from netdoctor.recording import Array
from netdoctor.render import wording
from netdoctor.render.palette import ALARM, FAINT, INK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TINIEST, LARGEST = 1e-300, 1e300  # beyond, the ends of a logarithmic axis overflow
_GROUPS = (
    "figure|axes|matplotlib\\.axis|line2d|text|patch|legend|PathCollection|LineCollection|[xy]tick|FillBetween\\w*"
)
_STYLE: Any = {
    "svg.hashsalt": "netdoctor",  # the same input gives the same text
    "svg.fonttype": "none",  # text stays text: searchable, read aloud, small
    "text.parse_math": False,  # a layer may be called "a$b"
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.4,
    "legend.borderpad": 0,
    "axes.linewidth": 0.8,
    "xtick.major.size": 3,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "axes.edgecolor": FAINT,
    "grid.color": FAINT,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor", "axes.titlecolor"), INK),
}


@dataclass(frozen=True, slots=True)
class Drawing:
    """An SVG element without outside references, and what it shows in words."""

    svg: str
    alt: str


@contextlib.contextmanager
def drawing_style() -> Iterator[None]:
    """Within, matplotlib draws in our style and says nothing (missing glyphs, its font cache)."""
    import matplotlib

    log = logging.getLogger("matplotlib")
    level = log.level
    with matplotlib.rc_context(), warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        try:
            yield
        finally:
            log.setLevel(level)


def blank(width: float, height: float, ratios: Sequence[float] = (1,)) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches with panels under one another that share the horizontal axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.patch.set_alpha(0)
    panels = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": list(ratios)})
    axes: list[Axes] = list(panels[:, 0])
    for panel in axes:
        panel.patch.set_alpha(0)
    return figure, axes


def finish(figure: Figure, name: str, alt: str) -> Drawing:
    """The figure as SVG text; `name` (letters, digits, hyphens) must be unique within a page: all ids begin with it."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Drawing(_embeddable(file.getvalue(), name, alt), alt)


def _embeddable(svg: str, name: str, alt: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(rf' id="(?:{_GROUPS})_\d+"', "", svg)
    svg = re.sub(r'\b(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' (d|x|y|transform)="[^"]*"', lambda found: _rounded(found[0]), svg)
    svg = re.sub(r"\n\s*", "\n", svg)
    box = re.search(r'viewBox="[^"]*"', svg)
    body = svg[svg.index(">") + 1 :]
    names = 'xmlns:xlink="http://www.w3.org/1999/xlink" role="img"'
    return f'<svg {names} {box[0] if box else ""} aria-label="{escape(alt)}">{body.strip()}'


def _rounded(attribute: str) -> str:
    return re.sub(r"-?\d+\.\d{3,}", lambda found: f"{float(found[0]):.2f}", attribute)


def in_bounds(values: Array, log: bool) -> Array:
    """Values that can be drawn; all others become NaN, which leaves a gap."""
    values = np.asarray(values, dtype=np.float64)
    kept = np.isfinite(values) & (np.abs(values) < LARGEST)
    return np.where(kept & (values > TINIEST) if log else kept, values, np.nan)


def wants_log(*curves: Array) -> bool:
    """Whether the values are positive and span a factor above 30, so that a linear axis would hide the small ones."""
    values = np.concatenate([np.ravel(in_bounds(curve, log=False)) for curve in curves]) if curves else np.array([])
    values = values[np.isfinite(values)]
    return bool(values.size and values.min() > TINIEST and values.max() / values.min() > 30)


def curve(
    axes: Axes, steps: Array | NDArray[np.int64], values: Array, log: bool, colour: str, label: str = "", **style: Any
) -> None:
    """A line; where it is not a number, a cross at the upper edge. A single point is drawn as a dot."""
    steps, values = np.asarray(steps, dtype=np.float64), np.asarray(values, dtype=np.float64)
    kept = in_bounds(values, log)
    dot = "o" if np.isfinite(kept).sum() < 2 else None
    axes.plot(steps, kept, color=colour, label=label, marker=dot, **style)
    broken = steps[~np.isfinite(values)]
    if broken.size:
        first = broken[:1]
        edge = axes.get_xaxis_transform()
        axes.plot(first, [0.96], "x", transform=edge, color=ALARM, markersize=6, markeredgewidth=1.8, clip_on=False)


def scale(axes: Axes, log: bool) -> None:
    """A linear or logarithmic vertical axis with the report's own way to write numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator, ScalarFormatter

    if not log:
        axes.yaxis.set_major_locator(MaxNLocator(4))
        axes.yaxis.set_major_formatter(ScalarFormatter(useOffset=False))
        return
    axes.set_yscale("log")
    low, high = sorted(axes.get_ylim())
    if not 0 < low <= high < np.inf:  # nothing could be drawn
        axes.set_ylim(0.1, 10)
    elif high / low < 100:  # fewer than two ticks would be left
        middle = np.sqrt(low * high)
        axes.set_ylim(middle / 11, middle * 11)
    axes.yaxis.set_major_locator(LogLocator(numticks=5))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: wording.number(value)))


def whole_steps(axes: Axes, label: str = "step") -> None:
    """A horizontal axis of whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel(label)
