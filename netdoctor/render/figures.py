"""The figures of the HTML report. Each returns a Drawing, or None when there is nothing to draw.

`width` and `height` are in inches (72 SVG units each); `name` prefixes the ids and must be unique within a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from netdoctor.finding import Evidence, Trial
from netdoctor.recording import Arm, Array, Layer, Recording, Role, Series, Stat, Track
from netdoctor.render import palette, titles, wording
from netdoctor.render.palette import ALARM, FAINT, GOOD, INK
from netdoctor.render.sheet import (
    LARGEST,
    Drawing,
    blank,
    curve,
    drawing_style,
    finish,
    in_bounds,
    scale,
    wants_log,
    whole_steps,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

WIDE, HALF = 8.2, 3.9  # inches: the page's column, and half of it (also a phone)
MARKED = 4  # changes of the learning rate that are marked one by one; a schedule with more gets a panel
LABELS = 14  # layer names that fit under a wide figure
SPIKES = 5  # that are marked on one loss
APART = frozenset({"lr-range-test", "final"})  # arms whose losses are no training of their own, or are drawn elsewhere
CURVES = 8  # arms of one kind, or losses, in one panel


def loss_curve(recording: Recording, width: float = WIDE, height: float = 2.7, name: str = "loss") -> Drawing | None:
    """The losses over the steps, with the first NaN, changes of the learning rate, and evaluations."""
    losses = {label: s for label, s in list(recording.losses.items())[:CURVES] if len(s.values)}
    if not losses:
        return None
    rate = recording.scalars.get("lr")
    changes = _changes(rate)
    panel = rate is not None and len(changes) > MARKED
    with drawing_style():
        figure, axes = blank(width, height + 0.7 * panel, (3.4, 1) if panel else (1,))
        held_out = recording.scalars.get("evaluation loss")
        log = wants_log(*(s.values for s in losses.values()))
        for index, (label, series) in enumerate(losses.items()):
            curve(axes[0], series.steps, series.values, log, palette.apart(index), wording.clean(label, 40))
        if held_out is not None and len(held_out.values):
            curve(axes[0], held_out.steps, held_out.values, log, INK, "evaluation loss", linestyle="--", linewidth=1.2)
        scale(axes[0], log)
        broken = _mark_first_broken(axes[0], losses)
        _mark_spikes(axes[0], losses, log)
        _mark_evaluations(axes[0], recording)
        if panel and rate is not None:
            _rate_panel(axes[1], rate)
        else:
            _mark_changes(axes[0], changes)
        axes[0].set_ylabel("loss")
        whole_steps(axes[-1])
        named = {label: handle for handle, label in zip(*axes[0].get_legend_handles_labels(), strict=True)}
        if len(named) > 1:
            figure.legend(named.values(), named, loc="outside upper left", ncols=4 if width > 5 else 2)
        return finish(figure, name, _loss_in_words(losses, broken))


def _loss_in_words(losses: dict[str, Series], broken: int | None) -> str:
    said = [f"{wording.clean(label, 40)} {wording.course([float(v) for v in s.values])}" for label, s in losses.items()]
    until = "" if broken is None else f"; no longer a number from step {broken} on"
    return f"Loss over the steps: {', '.join(said)}{until}"


def _changes(rate: Series | None) -> list[tuple[int, float, float]]:
    """(step, before, after) wherever the learning rate changes."""
    if rate is None or len(rate.values) < 2:
        return []
    before, after = rate.values[:-1], rate.values[1:]
    at = np.flatnonzero((before != after) & ~(np.isnan(before) & np.isnan(after))) + 1
    return [(int(rate.steps[i]), float(rate.values[i - 1]), float(rate.values[i])) for i in at]


def _mark_changes(axes: Axes, changes: list[tuple[int, float, float]]) -> None:
    for step, before, after in changes:
        axes.axvline(step, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
        said = f"lr {wording.number(before)} → {wording.number(after)}"
        edge = axes.get_xaxis_transform()
        axes.annotate(said, (step, 0.98), (3, 0), xycoords=edge, textcoords="offset points", va="top", fontsize=8)


def _mark_first_broken(axes: Axes, losses: dict[str, Series]) -> int | None:
    broken = [int(s.steps[~np.isfinite(s.values)][0]) for s in losses.values() if not np.isfinite(s.values).all()]
    if not broken:
        return None
    step = min(broken)
    axes.axvline(step, color=ALARM, linewidth=1.2)
    late = step > 0.7 * max(1, max(int(s.steps[-1]) for s in losses.values()))
    axes.annotate(
        f"not a number at step {step}", (step, 0.96), (-7 if late else 7, 0), xycoords=axes.get_xaxis_transform(),
        textcoords="offset points", va="center", ha="right" if late else "left", color=ALARM, fontsize=8.5,
    )  # fmt: skip
    return step


def _mark_spikes(axes: Axes, losses: dict[str, Series], log: bool) -> None:
    """The largest sudden rises of each loss: far above the median of the steps before, and gone again."""
    for series in losses.values():
        found = sorted(spikes(series.values), key=lambda at: -series.values[at])[:SPIKES]
        shown = in_bounds(series.values[found], log)
        if found:
            axes.plot(series.steps[found], shown, "^", color=ALARM, markersize=5, linestyle="", label="spike")


def spikes(values: Array) -> list[int]:
    """Where a loss is more than three times the median of the 15 before it, above the step after, and the peak of its rise."""
    at, found = 15, []
    while at < len(values) - 1:
        before = values[at - 15 : at]
        usual = float(np.median(before))
        high = np.isfinite(before).all() and usual > 0 and 3 * usual < values[at] < LARGEST
        if high and values[at - 1] <= values[at] > values[at + 1]:
            found.append(at)
        at += 1
    return found


def _mark_evaluations(axes: Axes, recording: Recording) -> None:
    steps = [event.step for event in recording.events if event.kind == "evaluation"][:400]
    if steps:
        edge = axes.get_xaxis_transform()
        axes.plot(
            steps, np.zeros(len(steps)), "|", transform=edge, color=INK, markersize=7, label="evaluation", clip_on=False
        )


def _rate_panel(axes: Axes, rate: Series) -> None:
    log = wants_log(rate.values)
    curve(axes, rate.steps, rate.values, log, INK)
    axes.set_ylabel("lr")
    scale(axes, log)


def depth_profile(
    recording: Recording, width: float = WIDE, height: float = 5.2, name: str = "depth"
) -> Drawing | None:
    """Activation rms, gradient rms and update ratio of every layer in order of execution, at both ends."""
    layers = recording.layers
    rows = _profiles(recording)
    if not rows:
        return None
    colours = palette.of_layers(recording)
    shades = [colours[layer.path] for layer in layers]
    with drawing_style():
        figure, axes = blank(width, height * (len(rows) + 0.4) / 3.4, (1,) * len(rows))
        for panel, (title, tracks) in zip(axes, rows.items(), strict=True):
            _profile_panel(panel, tracks, shades)
            panel.set_title(title)
            if title == "update / weight":
                panel.axhline(1e-3, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
            scale(panel, log=True)
        _layer_ticks(axes[-1], layers, LABELS if width > 5 else LABELS // 2)
        handles = [_handle("o", "none"), _handle("o", INK)]
        zeros = any(t is not None and len(t.values) and _end(t, -1) == 0 for tracks in rows.values() for t in tracks)
        handles += [_handle("v", INK)] if zeros else []
        figure.legend(
            handles, ["first step", "last step", "last step: 0"][: len(handles)], loc="outside upper right", ncols=3
        )
        alt = f"{', '.join(rows)} of {wording.count(len(layers), 'layer')} in order of execution, on a logarithmic axis"
        return finish(figure, name, alt)


def _profiles(recording: Recording) -> dict[str, list[Track | None]]:
    """Title → one track per layer, without the titles for which nothing was measured."""
    layers = recording.layers
    with np.errstate(all="ignore"):  # ratios of infinities
        rows = {
            "activation rms": [recording.of_layer(layer, Stat.RMS) for layer in layers],
            "gradient rms": [recording.of_layer(layer, Stat.RMS, Role.OUTPUT_GRADIENT) for layer in layers],
            "update / weight": [recording.update_ratio(layer.weight) for layer in layers],
        }
    return {title: tracks for title, tracks in rows.items() if any(t is not None and len(t.values) for t in tracks)}


def _profile_panel(axes: Axes, tracks: Sequence[Track | None], shades: Sequence[str]) -> None:
    places = np.arange(len(tracks), dtype=np.float64)
    first = in_bounds(np.array([_end(track, 0) for track in tracks]), log=True)
    last = np.array([_end(track, -1) for track in tracks])
    drawn = in_bounds(last, log=True)
    size = 26 if len(tracks) <= 60 else 9
    joined = np.isfinite(drawn)
    axes.plot(places[joined], drawn[joined], color=FAINT, linewidth=0.8, zorder=1)
    axes.scatter(places, first, s=size, facecolors="none", edgecolors=list(shades), linewidths=1, zorder=2)
    axes.scatter(places, drawn, s=size, c=list(shades), zorder=3, linewidths=0)
    broken = np.array([t is not None and len(t.values) > 0 for t in tracks]) & ~np.isfinite(last)
    edge = axes.get_xaxis_transform()
    zero = last == 0  # which has no place on a logarithmic axis
    if zero.any():
        floor = np.full(zero.sum(), 0.05)
        axes.scatter(places[zero], floor, s=size, marker="v", c=np.array(shades)[zero], transform=edge, linewidths=0)
    if broken.any():
        axes.plot(
            places[broken], np.full(broken.sum(), 0.97), "x", color=ALARM, transform=edge, clip_on=False, markersize=5
        )
    axes.set_xlim(-0.6, len(tracks) - 0.4)


def _end(track: Track | None, at: int) -> float:
    """The value at one end of a track, NaN where there is none."""
    return float(np.mean(track.values[at])) if track is not None and len(track.values) else float("nan")


def _handle(marker: str, filling: str) -> Line2D:
    from matplotlib.lines import Line2D

    return Line2D([], [], marker=marker, linestyle="", color=INK, markerfacecolor=filling, markersize=5)


def _layer_ticks(axes: Axes, layers: Sequence[Layer], most: int) -> None:
    shown = np.unique(np.linspace(0, len(layers) - 1, min(most, len(layers))).round().astype(int))
    names = [wording.clean(layers[i].name, 200) for i in shown]
    names = [name if len(name) <= 22 else f"…{name[-21:]}" for name in names]
    axes.set_xticks(shown, names, rotation=40, ha="right", rotation_mode="anchor", fontsize=8)


def evidence(
    recording: Recording | None, evidence: Evidence, width: float = HALF, height: float = 2.2, name: str = "evidence"
) -> Drawing | None:
    """The track that an evidence comes from with its limit; without a fitting track, the number beside its limit."""
    said = wording.evidence_sentence(evidence)
    track = _track_of(recording, evidence)
    with drawing_style():
        figure, (axes,) = blank(width, height if track is not None else 0.95)
        if track is None or recording is None:
            if not np.isfinite([evidence.measured, evidence.limit]).all():
                return None
            _gauge(axes, evidence)
        else:
            colour = palette.of_site(palette.of_layers(recording), evidence.site)
            _track_with_limit(axes, track, evidence, colour)
        return finish(figure, name, said)


def _track_of(recording: Recording | None, evidence: Evidence) -> Track | None:
    """The evidence's track as one curve, if the measured number lies on it: else the limit would mean another thing."""
    if recording is None or evidence.site is None or evidence.stat is None:
        return None
    track = recording.track(evidence.site, evidence.stat)
    if track is None or not len(track.values):
        return None
    values = np.asarray(track.values, dtype=np.float64)
    flat = values.reshape(len(values), -1).mean(axis=1) if values.size else np.array([])
    curves = [flat]
    if evidence.stat is Stat.UNIT_ACTIVE and values.ndim == 2:  # what counts is the unit that never fired up to here
        curves.append(1 - np.maximum.accumulate(values, axis=0).mean(axis=1))
    elif evidence.stat.name.startswith("UNIT") or "SHARE" in evidence.stat.name:
        curves.append(1 - flat)
    return next((Track(track.steps, c) for c in curves if _on(c, evidence.measured)), None)


def _on(values: Array, measured: float) -> bool:
    """Whether a number lies within the range of a curve, give or take 2 %; NaN lies on a curve that holds one."""
    kept = values[np.isfinite(values)]
    if not np.isfinite(measured):
        return len(kept) < len(values)
    slack = 0.02 * abs(measured) + 1e-12
    return bool(kept.size and kept.min() - slack <= measured <= kept.max() + slack)


def _track_with_limit(axes: Axes, track: Track, evidence: Evidence, colour: str) -> None:
    limit = np.array([evidence.limit])
    log = wants_log(track.values, limit if evidence.limit > 0 else np.array([]))
    curve(axes, track.steps, track.values, log, colour)
    if np.isfinite(in_bounds(limit, log)).all():
        axes.axhline(evidence.limit, color=ALARM, linewidth=1.2, linestyle=(0, (4, 2)))
        axes.annotate(
            f"limit {wording.number(evidence.limit)}", (1, evidence.limit), (0, 2), xycoords=axes.get_yaxis_transform(),
            textcoords="offset points", ha="right", va="bottom", color=ALARM, fontsize=8.5,
        )  # fmt: skip
        axes.margins(y=0.16)
    scale(axes, log)
    whole_steps(axes)


def _gauge(axes: Axes, evidence: Evidence) -> None:
    """One horizontal axis: the limit as a line, the side that is an alarm shaded, the measured number as a dot."""
    from matplotlib.ticker import NullLocator

    ends = sorted([evidence.measured, evidence.limit])
    log = ends[0] > 0 and ends[1] / ends[0] > 10
    if log:
        axes.set_xscale("log")
        axes.xaxis.set_minor_locator(NullLocator())
        low, high = ends[0] / (ends[1] / ends[0]) ** 0.25, ends[1] * (ends[1] / ends[0]) ** 0.25
    else:
        room = 0.35 * ((ends[1] - ends[0]) or abs(ends[1]) or 1)
        low, high = ends[0] - room, ends[1] + room
    above = evidence.relation in {">", "≥"}
    axes.axvspan(*((evidence.limit, high) if above else (low, evidence.limit)), color=ALARM, alpha=0.12, linewidth=0)
    axes.axvline(evidence.limit, color=ALARM, linewidth=1.4)
    axes.plot([evidence.measured], [0], "o", color=INK, markersize=8)
    axes.set_xlim(low, high)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    unit = evidence.unit if len(evidence.unit) <= 2 else ""
    labels = [f"limit {wording.with_unit(evidence.limit, unit)}", wording.with_unit(evidence.measured, unit)]
    axes.set_xticks(
        [evidence.limit, evidence.measured], labels if evidence.limit != evidence.measured else labels[:1] * 2
    )
    for label, at in zip(axes.get_xticklabels(), (evidence.limit, evidence.measured), strict=True):
        label.set_horizontalalignment("right" if at == ends[0] else "left")


def trial(trial: Trial, width: float = HALF, height: float = 2.2, name: str = "trial") -> Drawing | None:
    """The losses with a fix and without it, from the same start on the same batches."""
    pairs = [("without it", trial.control, ALARM), ("with it", trial.treated, GOOD)]
    pairs = [(label, losses, colour) for label, losses, colour in pairs if losses]
    if not pairs:
        return None
    with drawing_style():
        figure, (axes,) = blank(width, height)
        log = wants_log(*(np.array(losses) for _, losses, _ in pairs))
        for label, losses, colour in pairs:
            steps, wider = np.arange(len(losses), dtype=np.float64), 2.6 if label == "without it" else 1.4
            curve(axes, steps, np.array(losses), log, colour, label, linewidth=wider)  # seen even beneath the other
        scale(axes, log)
        whole_steps(axes)
        axes.set_ylabel("loss")
        figure.legend(loc="outside upper left", ncols=2)
        return finish(figure, name, wording.trial_sentence(trial))


def arms(recording: Recording, width: float = HALF, height: float = 2.6, name: str = "arms") -> list[Drawing]:
    """One figure per experiment ("overfit", "trial", ...): the loss of each of its arms."""
    groups: dict[str, list[Arm]] = {}
    for arm in recording.arms.values():
        group = arm.name.partition("/")[0]
        if len(arm.losses) and group not in APART:
            groups.setdefault(group, []).append(arm)
    drawn = enumerate(groups.items())
    return [_arm_group(group, members[:CURVES], width, height, f"{name}{at}") for at, (group, members) in drawn]


def _arm_group(group: str, members: list[Arm], width: float, height: float, name: str) -> Drawing:
    labels = [wording.clean(titles.of_arm(arm.name), 40) for arm in members]
    with drawing_style():
        figure, (axes,) = blank(width, height + 0.17 * ((len(members) + 1) // 2))
        log = wants_log(*(arm.losses for arm in members))
        for index, (arm, label) in enumerate(zip(members, labels, strict=True)):
            curve(axes, np.arange(len(arm.losses), dtype=np.float64), arm.losses, log, palette.apart(index), label)
        scale(axes, log)
        whole_steps(axes)
        axes.set_ylabel("loss")
        axes.set_title(wording.clean(titles.of_group(group), 60))
        figure.legend(loc="outside lower left", ncols=2)
        courses = [
            f"{label} {wording.course([float(v) for v in a.losses])}" for a, label in zip(members, labels, strict=True)
        ]
        return finish(
            figure, name, f"Loss in the experiment {wording.clean(titles.of_group(group), 60)}: {'; '.join(courses)}"
        )
