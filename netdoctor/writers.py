"""Curves and findings into the user's own TensorBoard writer or Weights & Biases run: whatever has their methods will do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from netdoctor.errors import MisuseError
from netdoctor.recording import Recording, Role, Series, Stat, Track
from netdoctor.render import markdown
from netdoctor.report import Report

STEP = "netdoctor/step"  # the run's own axis: a run's global step may only grow, and ours may lie behind it
Point = tuple[int, str, float]


class Writer:
    """Gives a writer what it has not been given before. Raises MisuseError for a thing that has neither's methods."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._given: dict[str, int] = {}
        if callable(getattr(target, "add_scalar", None)):
            self._put, self._tell = self._to_tensorboard, self._text_to_tensorboard
        elif callable(getattr(target, "log", None)):
            self._put, self._tell = self._to_run, self._text_to_run
            if callable(getattr(target, "define_metric", None)):
                target.define_metric(STEP)
                target.define_metric("netdoctor/*", step_metric=STEP)
        else:
            raise MisuseError(
                f"{type(target).__name__} is no writer: it needs add_scalar (TensorBoard) or log (Weights & Biases)"
            )
        self._said = ""

    def write(self, recording: Recording, report: Report) -> None:
        """Add the points since the last time, and the report where it changed."""
        new = [point for point in points(recording) if point[0] > self._given.get(point[1], -1)]
        for step in sorted({step for step, _, _ in new}):
            values = {name: value for at, name, value in new if at == step}
            self._put(values, step)
            self._given.update(dict.fromkeys(values, step))
        text = markdown.render(report)
        findings = repr([(finding.check, finding.title) for finding in report.findings])
        if findings != self._said:
            self._said = findings
            self._tell(text, report, recording.steps)

    def _to_tensorboard(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._target.add_scalar(name, value, step)

    def _to_run(self, values: dict[str, float], step: int) -> None:
        self._target.log({STEP: step, **values})

    def _text_to_tensorboard(self, text: str, report: Report, step: int) -> None:
        self._target.add_scalar("netdoctor/findings", len(report.findings), step)
        if callable(getattr(self._target, "add_text", None)):
            self._target.add_text("netdoctor", text, step)

    def _text_to_run(self, text: str, report: Report, step: int) -> None:
        self._target.log({STEP: step, "netdoctor/findings": len(report.findings)})
        summary: Any = getattr(self._target, "summary", None)
        if summary is not None and callable(getattr(summary, "update", None)):
            summary.update({"netdoctor/report": text})


def points(recording: Recording) -> Iterator[Point]:
    """(step, name, value) of all losses, scalars, and of each layer's activation, gradient and update ratio."""
    curves: list[tuple[str, Series | Track | None]] = [
        *((f"netdoctor/{label}", series) for label, series in recording.losses.items()),
        *((f"netdoctor/{label}", series) for label, series in recording.scalars.items()),
    ]
    of_layer: Callable[..., Track | None] = recording.of_layer
    for layer in recording.layers:
        curves.append((f"netdoctor/activation rms/{layer.name}", of_layer(layer, Stat.RMS)))
        curves.append((f"netdoctor/gradient rms/{layer.name}", of_layer(layer, Stat.RMS, Role.OUTPUT_GRADIENT)))
        if layer.weight:
            curves.append((f"netdoctor/update ratio/{layer.weight}", recording.update_ratio(layer.weight)))
    for name, curve in curves:
        for step, value in () if curve is None else zip(curve.steps, curve.values, strict=True):
            yield int(step), name, float(np.mean(value))
