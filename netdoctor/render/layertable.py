"""The table of layers: what was measured of each at the first and the last step, and which findings concern it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from netdoctor.finding import Finding
from netdoctor.recording import Layer, Recording, Role, Stat, Track
from netdoctor.render import palette, wording


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer. Measured cells read "first → last", or are "" where nothing was measured; `findings` holds ranks."""

    number: int
    name: str
    type: str
    colour: str
    units: str
    activation: str
    gradient: str
    update: str
    source: str
    findings: tuple[int, ...]
    health: str  # "no finding", "not a number" or "not measured"; where `findings` name the layer, they are its health


def layer_rows(recording: Recording, findings: tuple[Finding, ...]) -> list[LayerRow]:
    """A row for every layer in order of execution; `findings` in the order in which the report ranks them."""
    colours = palette.of_layers(recording)
    named = [_names(finding) for finding in findings]
    with np.errstate(all="ignore"):  # ratios of infinities
        return [_row(recording, layer, colours, named, at) for at, layer in enumerate(recording.layers, 1)]


def _row(recording: Recording, layer: Layer, colours: dict[str, str], named: list[frozenset[str]], at: int) -> LayerRow:
    cells = (
        _cell(recording.of_layer(layer, Stat.RMS)),
        _cell(recording.of_layer(layer, Stat.RMS, Role.OUTPUT_GRADIENT)),
        _cell(recording.update_ratio(layer.weight)) if layer.weight else "",
    )
    own = {layer.path, layer.name, layer.weight, layer.bias} - {""}
    return LayerRow(
        at,
        wording.clean(layer.name, wording.NAME_LIMIT),
        wording.clean(layer.type, 60),
        colours[layer.path],
        str(layer.units or ""),
        *cells,
        f"{wording.shown_path(layer.source.file)}:{layer.source.line}" if layer.source else "",
        tuple(rank for rank, names in enumerate(named, 1) if own & names),
        _health(cells),
    )


def _health(cells: tuple[str, ...]) -> str:
    if not any(cells):
        return "not measured"
    broken = any(cell.endswith(("NaN", "∞")) for cell in cells)
    return "not a number" if broken else "no finding"


def _names(finding: Finding) -> frozenset[str]:
    """The modules and parameters that a finding, its evidence or one of its symptoms names."""
    sites = (name for e in finding.evidence if e.site for name in (e.site.module, e.site.parameter))
    below = (name for symptom in finding.symptoms for name in _names(symptom))
    return frozenset({finding.location.module or "", *finding.places, *sites, *below} - {""})


def _cell(track: Track | None) -> str:
    if track is None or not len(track.values):
        return ""
    first, last = (wording.number(float(np.mean(track.values[at]))) for at in (0, -1))
    return first if first == last else f"{first} → {last}"
