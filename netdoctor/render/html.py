"""The report as one HTML file that needs nothing else: no network, no fonts, no images beside it.

All text passes through `wording.clean` and jinja's escaping; only our own SVG, style and script go in as they are, and
a content security policy forbids the page to run any other script or to load anything.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from functools import partial
from importlib.resources import files

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from netdoctor.finding import Evidence, Finding, Severity
from netdoctor.recording import Recording
from netdoctor.render import figures, history, palette, source, titles, wording
from netdoctor.render.layertable import layer_rows
from netdoctor.render.sheet import Drawing
from netdoctor.report import Report

DRAWN = 12  # findings with figures of their own: each takes about 0.1 s per figure
PLOTS = 2  # evidence plots per finding
OPEN_ROWS = 30  # longer tables of layers are folded
_HISTOGRAMS = (
    "Histograms of the values, the first step at the bottom, the last at the top; each is drawn to its own height."
)
_BANDS = "The line is the mean, the dark band one standard deviation, the light one reaches to the largest magnitude."


def render(report: Report, recording: Recording | None = None, *, advice: bool = False) -> str:
    """The page. Without a recording the figures of the run and the table of layers are left out.

    A figure that cannot be drawn is left out with a line that says so; it never costs the report.
    """
    findings = wording.shown(report, advice)
    script = _template("report.js")
    gallery = _Gallery(report, recording)
    page = _environment().get_template("report.html")
    return page.render(
        report=report,
        findings=findings,
        hidden=len(report.findings) - len(findings),
        own=gallery.of_findings(findings),
        sources=[source.context(finding.location, recording) for finding in findings],
        spreads=gallery.of_parameters(findings),
        spread_key=_HISTOGRAMS if recording and recording.histograms else _BANDS,
        run=gallery.of_run(),
        rows=layer_rows(recording, findings) if recording else [],
        arms=gallery.of_arms(),
        faults=gallery.faults,
        open_rows=OPEN_ROWS,
        style=Markup(_template("report.css")),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _environment() -> Environment:
    environment = Environment(
        autoescape=True,
        loader=FunctionLoader(_template),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "clean": wording.clean,
        "experiment": _experiment,
        "code": wording.clean_code,
        "number": wording.number,
        "place": wording.place,
        "path": wording.shown_path,
        "listed": wording.listed,
        "trial_sentence": wording.trial_sentence,
        "trial_verdict": wording.trial_verdict,
        "certainty": wording.certainty,
        "measured": _measured,
        "limit": _limit,
    }
    environment.globals |= {
        "opening": wording.opening,
        "ended": wording.ended,
        "change": source.change,
        "tally": wording.tally,
        "by_reason": wording.by_reason,
        "seconds": wording.seconds,
        "count": wording.count,
        "error": Severity.ERROR,
    }
    return environment


def _template(name: str) -> str:
    return files("netdoctor.render").joinpath("templates", name).read_text("utf-8")


def _experiment(name: str) -> str:
    title = titles.of_experiment(name)
    return title[:1].upper() + title[1:]


def _measured(evidence: Evidence) -> str:
    return wording.with_unit(evidence.measured, evidence.unit)


def _limit(evidence: Evidence) -> str:
    return f"{wording.clean(evidence.relation, 8)} {wording.with_unit(evidence.limit, evidence.unit)}"


class _Gallery:
    """Draws, and keeps the reason of every figure that could not be drawn."""

    def __init__(self, report: Report, recording: Recording | None) -> None:
        self.report, self.recording = report, recording
        self.faults: list[str] = []

    def of_findings(self, findings: tuple[Finding, ...]) -> list[tuple[list[Markup], list[Markup]]]:
        """Per finding its evidence plots and, one per fix, its trial ("" where there is none)."""
        return [self._of_finding(finding, rank) for rank, finding in enumerate(findings, 1)]

    def of_run(self) -> list[tuple[str, Markup, Markup]]:
        """(title, wide figure, narrow figure) of the run."""
        if self.recording is None:
            return []
        pairs = []
        for title, draw in (("The loss", figures.loss_curve), ("The signal through the layers", figures.depth_profile)):
            wide = self._draw(title, partial(draw, self.recording, name=f"{title.split()[1]}-wide"))
            narrow = self._draw(title, partial(draw, self.recording, figures.HALF, name=f"{title.split()[1]}-narrow"))
            pairs += [(title, wide, narrow)] if wide else []
        return pairs

    def of_parameters(self, findings: tuple[Finding, ...]) -> list[tuple[str, Markup]]:
        """(name, figure) of the parameters whose spread over time is worth a look."""
        if self.recording is None:
            return []
        chosen = history.of_interest(self.recording, findings)
        drawn = [
            (name, self._draw(name, partial(history.spread, self.recording, name, figures.HALF, name=f"spread{at}")))
            for at, name in enumerate(chosen)
        ]
        return [(name, figure) for name, figure in drawn if figure]

    def of_arms(self) -> list[Markup]:
        """One figure per experiment."""
        if self.recording is None:
            return []
        rates = self._draw("the learning-rate range test", partial(history.lr_range, self.recording, figures.HALF))
        try:
            arms = [_themed(drawing) for drawing in figures.arms(self.recording)]
        except Exception as error:  # a figure must never cost the report
            self._note("the experiments", error)
            arms = []
        return [rates, *arms] if rates else arms

    def _of_finding(self, finding: Finding, rank: int) -> tuple[list[Markup], list[Markup]]:
        if rank > DRAWN:
            return [], [Markup()] * len(finding.fixes)
        plots = [
            self._draw(e.quantity, partial(figures.evidence, self.recording, e, name=f"f{rank}e{at}"))
            for at, e in enumerate(finding.evidence[:PLOTS])
        ]
        trials = [
            Markup()
            if fix.trial is None
            else self._draw("a trial", partial(figures.trial, fix.trial, name=f"f{rank}t{at}"))
            for at, fix in enumerate(finding.fixes)
        ]
        return [plot for plot in plots if plot], trials

    def _draw(self, what: str, draw: Callable[[], Drawing | None]) -> Markup:
        try:
            drawing = draw()
        except Exception as error:  # a figure must never cost the report
            self._note(what, error)
            return Markup()
        return Markup() if drawing is None else _themed(drawing)

    def _note(self, what: str, error: Exception) -> None:
        reason = f"{type(error).__name__}: {wording.clean(str(error), 200)}"
        fault = f"The figure of {wording.clean(what, 120)} could not be drawn: {reason}"
        if fault not in self.faults:
            self.faults.append(fault)


def _themed(drawing: Drawing) -> Markup:
    """The figure in the page's own colours, so that it follows light and dark."""
    pattern = re.compile("|".join(palette.THEME))
    return Markup(pattern.sub(lambda found: palette.THEME[found[0]], drawing.svg))
