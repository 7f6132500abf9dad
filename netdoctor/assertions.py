"""What a test asserts of a training, read from its recording and report: "" where it holds, else the sentence it fails with."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator, Sequence

import numpy as np

from netdoctor.finding import Finding
from netdoctor.recording import Parameter, Recording, Role, Stat
from netdoctor.render import wording
from netdoctor.report import Report

OVERFIT = "overfit-tiny-batch"  # the experiment, by its name in the report
_NON_FINITE = ("nan-input", "non-finite-activation", "non-finite-gradient", "non-finite-parameter")


def message(finding: Finding) -> str:
    """The finding's title, place and first fix."""
    lines = [f"{finding.check}: {wording.clean(finding.title)}"]
    place = wording.place(finding.location)
    lines += [f"  at {place}"] if place else []
    for fix in finding.fixes[:1]:
        lines.append(f"  fix: {wording.clean(fix.says)}")
        lines += [f"    {line}" for line in wording.clean_code(fix.code).splitlines()]
    return "\n".join(lines)


def not_fitted(report: Report) -> str:
    """What the overfit experiment says when it did not fit the batch, or why it could not tell."""
    ran = [entry for entry in report.experiments if entry.name == OVERFIT]
    if not ran:
        return "netdoctor could not tell whether the model fits this batch: the experiment did not run in its budget"
    return "" if ran[0].verdict == "passed" else f"{OVERFIT} {ran[0].verdict}: {ran[0].says}"


def not_reached(report: Report, limit: float) -> str:
    """Which loss did not get as low as asked."""
    for label, (first, last) in report.losses.items():
        if not last <= limit:  # NaN is above every limit
            return f"{label} went from {first:.4g} to {last:.4g} in {report.steps} steps, not down to {limit:.4g}"
    return ""


def not_finite(recording: Recording) -> str:
    """The first NaN or Inf of a training: where it was born, or at least where it shows."""
    origin = recording.origin
    if origin is not None:
        place = " at ".join(part for part in (origin.operation, origin.module or origin.parameter) if part)
        return f"{origin.kind} in the {origin.phase} pass of step {origin.step}" + (f": {place}" if place else "")
    for label, series in recording.losses.items():
        broken = np.flatnonzero(~np.isfinite(series.values))
        if broken.size:
            return f"{label} is {wording.number(series.values[broken[0]])} at step {series.steps[broken[0]]}"
    for (site, stat), track in recording.tracks.items():
        if stat is Stat.NONFINITE and np.any(track.values > 0):
            step = track.steps[np.flatnonzero(track.values.reshape(len(track.steps), -1).any(axis=1))[0]]
            return (
                f"NaN or Inf in the {site.role.value} of {site.parameter or site.module or site.layer} at step {step}"
            )
    return ""


def about_finiteness(report: Report) -> list[Finding]:
    """The findings on NaN and Inf, as roots or as symptoms."""
    found = [f for root in report.findings for f in (root, *root.symptoms)]
    return [f for f in found if f.check in _NON_FINITE]


def not_learning(recording: Recording, exempt: Sequence[str] = ()) -> str:
    """Which parameters, but for those whose names match a glob of `exempt`, got no gradient or never changed."""
    known = [p for p in recording.parameters.values() if not any(fnmatch.fnmatchcase(p.name, glob) for glob in exempt)]
    frozen = [p.name for p in known if not p.requires_grad]
    still = list(_unmoved(recording, [p for p in known if p.requires_grad]))
    if not known:
        return "the model has no parameters"
    said = [f"{wording.listed(frozen)} {'is' if len(frozen) == 1 else 'are'} frozen"] if frozen else []
    silent = [name for name, had_gradient in still if not had_gradient]
    held = [name for name, had_gradient in still if had_gradient]
    said += [f"{wording.listed(silent)} never got a gradient"] if silent else []
    said += [f"{wording.listed(held)} got a gradient, but was never changed"] if held else []
    missed = len(frozen) + len(still)
    return f"{missed} of {wording.count(len(known), 'parameter')} did not learn: {'; '.join(said)}" if said else ""


def _unmoved(recording: Recording, parameters: Sequence[Parameter]) -> Iterator[tuple[str, bool]]:
    """(name, whether it had a gradient) of the parameters without a gradient or without an update."""
    for parameter in parameters:
        gradient = _ever(recording, parameter, Role.WEIGHT_GRADIENT)
        if not gradient or not _ever(recording, parameter, Role.UPDATE):
            yield parameter.name, gradient


def _ever(recording: Recording, parameter: Parameter, role: Role) -> bool:
    """Whether it was anything but zero at any sampled step; NaN is not zero."""
    track = recording.track(parameter.site(role), Stat.RMS)
    return track is not None and bool(np.any(track.values != 0))
