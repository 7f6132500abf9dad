"""The report as SARIF 2.1.0, for code scanning: every finding at the user's line.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html, sections 3.27 (result) and 3.28 (location).
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

from netdoctor.finding import Finding, Location, Severity
from netdoctor.render import wording
from netdoctor.report import Report

SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
LEVELS = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.ADVICE: "note"}


def render(report: Report) -> str:
    """SARIF text; findings without a line of their own stand at the script, ignored ones are marked suppressed."""
    results = [_result(finding, report) for finding in report.findings]
    results += [_result(finding, report) | {"suppressions": [{"kind": "external"}]} for finding in report.ignored]
    checks = dict.fromkeys(finding.check for finding in (*report.findings, *report.ignored))
    driver: dict[str, Any] = {
        "name": "netdoctor",
        "rules": [{"id": name, "help": {"text": f"netdoctor explain {name}"}} for name in map(_name, checks)],
    }
    if report.netdoctor:
        driver["version"] = report.netdoctor
    notes = [
        {"level": "warning", "message": {"text": f"{wording.clean(c.where)}: {wording.clean(c.error)}"}}
        for c in report.crashes
    ]
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "results": results,
    }
    return json.dumps({"$schema": SCHEMA, "version": "2.1.0", "runs": [run]}, indent=1) + "\n"


def _result(finding: Finding, report: Report) -> dict[str, Any]:
    location = finding.location
    said = [wording.clean(finding.title) + ".", wording.clean(finding.explanation)]
    said += [f"{wording.evidence_sentence(evidence)}." for evidence in finding.evidence]
    said += [f"Fix: {wording.clean(fix.says)}" for fix in finding.fixes[:1]]
    result: dict[str, Any] = {
        "ruleId": _name(finding.check),
        "level": LEVELS[finding.severity],
        "message": {"text": " ".join(part for part in said if part)},
        "locations": [place] if (place := _location(location, report.target)) else [],
        "partialFingerprints": {"netdoctor/v1": _fingerprint(finding)},
    }
    related = [
        _location(symptom.location, "") | {"id": number, "message": {"text": wording.clean(symptom.title)}}
        for number, symptom in enumerate(finding.symptoms)
    ]
    return result | ({"relatedLocations": related} if related else {})


def _location(location: Location, fallback: str) -> dict[str, Any]:
    place: dict[str, Any] = {}
    file = location.file or (fallback if fallback.endswith(".py") else "")
    if file:
        physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(file)}}
        if location.file and location.line and location.line > 0:
            physical["region"] = {"startLine": location.line}
            if location.text:
                physical["region"]["snippet"] = {"text": wording.clean(location.text)}
        place["physicalLocation"] = physical
    if location.module:
        name = wording.clean(location.module, wording.NAME_LIMIT)
        place["logicalLocations"] = [{"fullyQualifiedName": name, "kind": "module"}]
    return place


def _uri(file: str) -> str:
    path = PurePath(wording.shown_path(file))
    if path.is_absolute():
        return "file://" + quote("/" + path.as_posix().lstrip("/"), errors="replace")
    return quote(path.as_posix(), errors="replace")


def _name(check: str) -> str:
    return wording.clean(check, wording.NAME_LIMIT)


def _fingerprint(finding: Finding) -> str:
    """The same for the same fault in the next run: made of check, module and source text, not of numbers."""
    file = os.path.basename(finding.location.file or "")
    parts = (finding.check, finding.location.module or "", file, finding.location.text)
    return hashlib.sha256("\0".join(parts).encode("utf-8", "replace")).hexdigest()[:32]
