"""Colours that read on white and on near-black; a layer and its parameters have one colour everywhere."""

from __future__ import annotations

from collections.abc import Sequence

from netdoctor.recording import Recording, Site

# Legible on both grounds where a figure stands alone; the page puts its own theme's colours in their place.
INK = "#7b7c7d"
FAINT = "#a8a9aa"
ALARM = "#d24b45"
GOOD = "#3a9a68"
THEME = {INK: "var(--figure-ink)", FAINT: "var(--figure-faint)", ALARM: "var(--error)", GOOD: "var(--good)"}

APART = ("#3d84c6", "#d5812c", "#8769c0", "#2ba0a8", "#c4629b", "#96933a", "#9a7456", "#5f8fa3")
RAMP = (
    "#5b6fd8",
    "#3d84c6",
    "#2ba0a8",
    "#5a9c54",
    "#b99a2b",
    "#d5812c",
    "#c2607f",
)  # for many layers: hue follows depth


def of_layers(recording: Recording) -> dict[str, str]:
    """Module path → "#rrggbb", in order of execution: colours far apart for few layers, a ramp along depth for many."""
    paths = list(dict.fromkeys(layer.path for layer in recording.layers))
    if len(paths) <= len(APART):
        return dict(zip(paths, APART, strict=False))
    return {path: _along(RAMP, at / (len(paths) - 1)) for at, path in enumerate(paths)}


def of_site(colours: dict[str, str], site: Site | None) -> str:
    """The colour of the layer that a site belongs to; the text's own where it is not known."""
    if site is None:
        return INK
    return colours.get(site.module) or colours.get(site.parameter.rpartition(".")[0]) or APART[0]


def apart(index: int) -> str:
    """Colours for a handful of curves that are no layers."""
    return APART[index % len(APART)]


def _along(stops: Sequence[str], share: float) -> str:
    at = share * (len(stops) - 1)
    left = min(int(at), len(stops) - 2)
    pairs = zip(_channels(stops[left]), _channels(stops[left + 1]), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * (at - left)):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[start : start + 2], 16) for start in (1, 3, 5))
