"""redundant-units, at its limit."""

from __future__ import annotations

import pytest

from netdoctor.checks.units.redundant_units import RedundantUnits
from netdoctor.finding import Severity
from tests.checks.builders import Builder


@pytest.mark.parametrize(
    ("curves", "places"),
    [
        ({"body.0": [6.3, 128.0, 128.0]}, ("body.0",)),
        ({"body.0": [6.4, 128.0, 128.0]}, ()),
        ({"body.0": [60.0, 128.0, 128.0], "body.2": [1.0, 64.0, 64.0]}, ("body.2",)),
        ({"body.0": [2.0, 128.0, 4.0]}, ()),  # four columns come in
        ({"body.0": [1.9, 128.0, 40.0]}, ("body.0",)),
    ],
)
def test_few_directions_of_many_units(curves, places):
    build = Builder().linear("body.0", units=128).arm("redundancy/rank", curves=curves)
    found = list(RedundantUnits().judge(build.done()))
    assert [(f.severity, f.places) for f in found] == ([(Severity.ADVICE, places)] if places else [])


def test_an_arm_that_failed_says_nothing():
    assert list(RedundantUnits().judge(Builder().arm("redundancy/rank", failure="x").done())) == []
