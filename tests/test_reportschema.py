"""The published schema describes the reports that are written: no more, no less."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from netdoctor import judging
from netdoctor.recordingfile import load
from netdoctor.report import Report
from netdoctor.reportschema import SCHEMA
from tests.render import builders

validators = pytest.importorskip("jsonschema")
SAVED = Path(__file__).parent / "data" / "recording-format-1.ndr"


def closed(schema: Any) -> Any:
    """The schema where keys that it does not name are errors, so that one that was forgotten shows."""
    if isinstance(schema, list):
        return [closed(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(entry) for key, entry in schema.items()}
    return made | ({"additionalProperties": False} if "properties" in schema else {})


REPORTS = {
    "sick": builders.sick(),
    "healthy": builders.healthy(),
    "unseen": builders.unseen(),
    "evil": builders.evil(),
    "judged": judging.diagnose(load(SAVED).recording),
}


def test_it_is_a_schema() -> None:
    validators.Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("report", REPORTS.values(), ids=REPORTS)
def test_reports_fit_and_have_no_other_keys(report: Report) -> None:
    validators.Draft202012Validator(closed(SCHEMA)).validate(json.loads(report.to_json()))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), 2),
        (("verdict",), "ill"),
        (("findings", 0, "severity"), "grave"),
        (("findings", 0, "evidence", 0, "limit"), "much"),
        (("findings", 0, "fixes", 0, "trial", "verdict"), "good"),
        (("losses", "loss"), [1.0]),
        (("findings", 0, "location", "line"), "3"),
    ],
)
def test_what_is_not_a_report_does_not_fit(path: tuple[Any, ...], value: object) -> None:
    data = entry = json.loads(builders.sick().to_json())
    for key in path[:-1]:
        entry = entry[key]
    entry[path[-1]] = value
    with pytest.raises(validators.ValidationError):
        validators.Draft202012Validator(SCHEMA).validate(data)


def test_required_keys_are_needed_and_others_are_let_through() -> None:
    data = json.loads(builders.sick().to_json())
    validator = validators.Draft202012Validator(SCHEMA)
    assert validator.is_valid(data | {"later": 1})
    for key in SCHEMA["required"]:
        less = copy.deepcopy(data)
        del less[key]
        assert not validator.is_valid(less), key
