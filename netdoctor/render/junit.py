"""The report as JUnit XML: one test case per check, for continuous integration."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from netdoctor.finding import Finding, Severity
from netdoctor.render import wording
from netdoctor.report import Report


def render(report: Report) -> str:
    """XML text: errors and warnings are failures, abstentions are skipped, faults of netdoctor's own are errors."""
    suites = ET.Element("testsuites")
    suite = ET.SubElement(
        suites, "testsuite", name="netdoctor", time=f"{report.observing_s + report.experiments_s:.3f}"
    )
    ET.SubElement(ET.SubElement(suite, "properties"), "property", name="verdict", value=report.verdict)
    for finding in report.at_least(Severity.WARNING):
        _failure(suite, report, finding)
    for check in report.passed:
        _case(suite, report, check)
    for abstention in report.abstentions:
        ET.SubElement(_case(suite, report, abstention.check), "skipped", message=wording.clean(abstention.reason))
    for crash in report.crashes:
        ET.SubElement(_case(suite, report, crash.where), "error", message=wording.clean(crash.error))
    if report.verdict == "not observed":
        reason = "; ".join(wording.clean(spot) for spot in report.blind_spots) or "no training step was seen"
        ET.SubElement(_case(suite, report, "observation"), "skipped", message=reason)
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(name, str(len(list(suite.iter(tag)))))
    ET.indent(suites)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{ET.tostring(suites, encoding="unicode")}\n'


def _case(suite: ET.Element, report: Report, check: str, file: str = "", line: int | None = None) -> ET.Element:
    case = ET.SubElement(suite, "testcase", classname=f"netdoctor.{wording.clean(report.target, 120)}")
    case.set("name", wording.clean(check, wording.NAME_LIMIT))
    if file:
        case.set("file", wording.shown_path(file))
    if line:
        case.set("line", str(line))
    return case


def _failure(suite: ET.Element, report: Report, finding: Finding) -> None:
    case = _case(suite, report, finding.check, finding.location.file or "", finding.location.line)
    failure = ET.SubElement(case, "failure", type=finding.severity.value, message=wording.clean(finding.title))
    lines = [wording.place(finding.location), wording.clean(finding.explanation)]
    lines += [wording.evidence_sentence(evidence) for evidence in finding.evidence]
    for fix in finding.fixes:
        lines += [f"Fix: {wording.clean(fix.says)}", wording.clean_code(fix.code)]
        lines += [wording.trial_sentence(fix.trial)] if fix.trial else []
    lines += [f"Explains: {wording.clean(symptom.title)}" for symptom in finding.symptoms]
    failure.text = "\n".join(line for line in lines if line)
