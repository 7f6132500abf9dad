"""The findings as GitHub's workflow commands: annotations at the user's lines in the changed files of a pull request.

Source: https://docs.github.com/actions/reference/workflow-commands-for-github-actions, "Setting an error message".
"""

from __future__ import annotations

import os

from netdoctor.finding import Finding, Severity
from netdoctor.render import wording
from netdoctor.report import Report

LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.ADVICE: "notice"}
_IN_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_IN_PROPERTY = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A", ":": "%3A", ",": "%2C"})


def render(report: Report, *, advice: bool = False) -> str:
    """One line per finding ("" without findings), in their order; those without a line stand at the script."""
    return "".join(_annotation(finding, report) for finding in wording.shown(report, advice))


def _annotation(finding: Finding, report: Report) -> str:
    location = finding.location
    file = location.file or (report.target if report.target.endswith(".py") else "")
    properties = {"title": f"netdoctor: {finding.check}"}
    if file:
        properties = {"file": _from_root(file)} | properties
        if location.line:
            properties["line"] = str(location.line)
    given = ",".join(f"{key}={wording.clean(value, 400).translate(_IN_PROPERTY)}" for key, value in properties.items())
    said = [finding.title, *(f"Fix: {fix.says}" for fix in finding.fixes[:1])]
    lines = [wording.clean(text, 600) for text in said]
    lines += [wording.clean_code(fix.code) for fix in finding.fixes[:1] if fix.code]
    return f"::{LEVELS[finding.severity]} {given}::{chr(10).join(lines).translate(_IN_DATA)}\n"


def _from_root(file: str) -> str:
    """The path from the repository's root, which is what GitHub knows; as it is where it lies elsewhere."""
    root = os.environ.get("GITHUB_WORKSPACE") or os.getcwd()
    path = os.path.relpath(os.path.abspath(file), root)
    return file if path.startswith("..") else path.replace(os.sep, "/")
