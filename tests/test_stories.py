"""The story: one run names its three causes in order, and all of them mended bring the loss down by orders of magnitude."""

from __future__ import annotations

import re

import pytest

from tests.scripts import FIXTURES, run_observed

ORDERS = 4.0  # of magnitude, between the tiny batch's loss as it is and with the combined treatment


@pytest.mark.slow
def test_the_causes_in_order_and_the_combined_treatment() -> None:
    report = run_observed(FIXTURES / "stories" / "bn_hides_init.py").report
    assert report is not None
    grave = [f for f in report["findings"] if f["severity"] != "advice"]
    assert [f["check"] for f in grave] == ["batchnorm-masking", "unnormalised-input", "lr-decays-too-fast"]
    assert {f["certainty"] for f in grave} == {"proven by trial"}
    first = grave[0]["fixes"][0]
    assert first["treatment"] == "variance-scaling-init + standardise-input + slower-decay"
    assert first["trial"]["verdict"] == "cured"
    (row,) = [e for e in report["experiments"] if e["name"] == "combined-treatment"]
    found = re.search(r"([\d.]+) orders of magnitude lower", row["says"])
    assert found is not None, row["says"]
    assert float(found[1]) >= ORDERS
