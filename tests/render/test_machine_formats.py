"""JUnit, SARIF and Markdown: goldens, and that hostile text stays text."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import replace

import pytest

from netdoctor.finding import Severity
from netdoctor.render import junit, markdown, sarif
from netdoctor.report import Report
from tests.render import builders

Golden = Callable[[str, str], None]
REPORTS = [builders.sick(), builders.healthy(), builders.unseen(), builders.evil()]


def test_junit(golden: Golden) -> None:
    golden("sick.junit.xml", junit.render(builders.sick()))


def test_sarif(golden: Golden) -> None:
    golden("sick.sarif.json", sarif.render(builders.sick()))


def test_markdown(golden: Golden) -> None:
    golden("sick.md", markdown.render(builders.sick()))


@pytest.mark.parametrize("report", REPORTS)
def test_junit_counts_what_it_holds(report: Report) -> None:
    suite = ET.fromstring(junit.render(report))[0]
    for name, tag in (("tests", "testcase"), ("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        assert int(suite.attrib[name]) == len(suite.findall(f".//{tag}"))
    assert len(suite.findall(".//failure")) == len(report.at_least(Severity.WARNING))


def test_junit_does_not_pass_what_was_not_observed() -> None:
    suite = ET.fromstring(junit.render(builders.unseen()))[0]
    assert suite.attrib["skipped"] == "1"
    assert suite.attrib["tests"] == "1"


@pytest.mark.parametrize("report", REPORTS)
def test_sarif_has_what_the_standard_requires(report: Report) -> None:
    log = json.loads(sarif.render(report))
    (run,) = log["runs"]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert log["version"] == "2.1.0"
    assert len(set(rules)) == len(rules)
    for result in run["results"]:
        assert result["ruleId"] in rules
        assert result["level"] in {"error", "warning", "note"}
        assert result["message"]["text"]
        for place in result["locations"]:
            uri = place.get("physicalLocation", {}).get("artifactLocation", {}).get("uri", "none")
            assert place
            assert re.fullmatch(r"[A-Za-z0-9._~%/:-]+", uri)


def test_sarif_stands_at_the_users_line_or_at_the_script() -> None:
    first, _, third, ignored = json.loads(sarif.render(builders.sick()))["runs"][0]["results"]
    physical = first["locations"][0]["physicalLocation"]
    assert physical["region"] == {"startLine": 14, "snippet": {"text": "nn.Linear(784, 512),"}}
    assert third["locations"][0]["physicalLocation"] == {"artifactLocation": {"uri": "train.py"}}
    assert ignored["suppressions"]
    assert "suppressions" not in third


def test_sarif_fingerprints_survive_moved_lines_and_new_measurements() -> None:
    finding = builders.sick().findings[0]
    moved = replace(finding, title="changed", location=replace(finding.location, line=99))
    other = replace(finding, location=replace(finding.location, module="body.9"))
    results = json.loads(sarif.render(builders.sick(findings=(finding, moved, other))))["runs"][0]["results"]
    marks = [result["partialFingerprints"]["netdoctor/v1"] for result in results[:3]]
    assert marks[0] == marks[1] != marks[2]


def test_markdown_neutralises_hostile_text() -> None:
    text = markdown.render(builders.evil())
    outside = re.sub(r"(?s)(`{3,}).*?\1|(?<!\\)(`+)[^\n]*?\2", "", text)
    assert not re.search(r"(?<!\\)<(?!/?(details|summary)>)", outside)
    assert len(text) < 65_536


def test_markdown_code_blocks_cannot_be_left() -> None:
    finding = builders.sick().findings[1]
    code = replace(finding.fixes[0], code="```\n# out\n````")
    text = markdown.render(builders.sick(findings=(replace(finding, fixes=(code,)),)))
    assert "`````python\n```\n# out\n````\n`````" in text


def test_markdown_notifies_nobody() -> None:
    finding = replace(builders.remark(), title="@everyone look", severity=Severity.ERROR)
    assert "@everyone" not in markdown.render(builders.sick(findings=(finding,)))


@pytest.mark.parametrize("line", ["# heading", "- item", "1. item", "> quote", "| a | b |", "*a* _b_ [c](d)", "=== "])
def test_markdown_text_is_never_structure(line: str) -> None:
    from markdown_it import MarkdownIt

    finding = replace(builders.remark(), explanation=line, severity=Severity.ERROR)
    page = MarkdownIt("gfm-like", {"linkify": False}).render(markdown.render(builders.sick(findings=(finding,))))
    shown = line.strip().replace(">", "&gt;")
    assert f"<p>{shown}</p>" in page
