"""The JSON schema (draft 2020-12) of the report, format 1. Keys may be added within a format, so others are let through."""

from __future__ import annotations

from typing import Any

from netdoctor.finding import Certainty, Reach, Severity, Verdict
from netdoctor.recording import Stat
from netdoctor.report import FORMAT
from netdoctor.reportfile import VERDICTS

Schema = dict[str, Any]
TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer"}
NUMBER: Schema = {"anyOf": [{"type": "number"}, {"enum": ["NaN", "Infinity", "-Infinity"]}]}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _maybe(schema: Schema) -> Schema:
    return {"anyOf": [schema, {"type": "null"}]}


def _one_of(kind: Any) -> Schema:
    return {"enum": [member.value for member in kind]}


def _object(keys: Schema, optional: tuple[str, ...] = ()) -> Schema:
    return {"type": "object", "properties": keys, "required": [key for key in keys if key not in optional]}


LOCATION = _object(
    {
        "module": _maybe(TEXT),
        "operation": _maybe(TEXT),
        "file": _maybe(TEXT),
        "line": _maybe(COUNT),
        "text": TEXT,
        "step": _maybe(COUNT),
        "samples": _list(COUNT),
    },
    ("text",),
)
EVIDENCE = _object(
    {
        "quantity": TEXT,
        "site": TEXT,
        "stat": _maybe(_one_of(Stat)),
        "measured": NUMBER,
        "relation": TEXT,
        "limit": NUMBER,
        "unit": TEXT,
    }
)
MEASURED = _object({"quantity": TEXT, "control": NUMBER, "treated": NUMBER, "unit": TEXT})
TRIAL = _object(
    {
        "verdict": _one_of(Verdict),
        "control": _list(NUMBER),
        "treated": _list(NUMBER),
        "steps": COUNT,
        "seconds": NUMBER,
        "says": TEXT,
        "side_effects": _list(TEXT),
        "measured": _maybe(MEASURED),
    },
    ("side_effects", "measured"),
)
FIX = _object({"treatment": TEXT, "says": TEXT, "code": TEXT, "reach": _one_of(Reach), "trial": _maybe(TRIAL)})
SYMPTOM = _object(
    {"check": TEXT, "severity": _one_of(Severity), "title": TEXT, "location": {"$ref": "#/$defs/location"}}
)
FINDING = _object(
    {
        "rank": {"type": "integer", "minimum": 1},
        "check": TEXT,
        "severity": _one_of(Severity),
        "certainty": _one_of(Certainty),
        "title": TEXT,
        "explanation": TEXT,
        "location": {"$ref": "#/$defs/location"},
        "first_step": _maybe(COUNT),
        "places": _list(TEXT),
        "share": NUMBER,
        "evidence": _list({"$ref": "#/$defs/evidence"}),
        "fixes": _list({"$ref": "#/$defs/fix"}),
        "symptoms": _list(SYMPTOM),
    },
    ("first_step", "share"),
)
SCHEMA: Schema = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": f"netdoctor report, format {FORMAT}",
    **_object(
        {
            "format": {"const": FORMAT},
            "netdoctor": TEXT,
            "torch": TEXT,
            "target": TEXT,
            "verdict": {"enum": list(VERDICTS)},
            "ended": TEXT,
            "steps": COUNT,
            "losses": {
                "type": "object",
                "additionalProperties": {"type": "array", "items": NUMBER, "minItems": 2, "maxItems": 2},
            },
            "findings": _list({"$ref": "#/$defs/finding"}),
            "ignored": _list({"$ref": "#/$defs/finding"}),
            "experiments": _list(
                _object({"name": TEXT, "verdict": {"enum": ["passed", "failed", "could not run"]}, "says": TEXT})
            ),
            "abstentions": _list(_object({"check": TEXT, "reason": TEXT})),
            "crashes": _list(_object({"where": TEXT, "error": TEXT})),
            "passed": _list(TEXT),
            "blind_spots": _list(TEXT),
            "cost": _object({"observing_s": NUMBER, "experiments_s": NUMBER}),
        },
        ("ended", "ignored"),
    ),
    "$defs": {"location": LOCATION, "evidence": EVIDENCE, "fix": FIX, "finding": FINDING},
}
