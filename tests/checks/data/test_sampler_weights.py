from __future__ import annotations

import pytest

from netdoctor.checks.data.sampler_weights import SamplerWeights
from netdoctor.finding import Severity
from netdoctor.recording import Event, SourceLine
from tests.checks.builders import Builder


def judged(weights, samples) -> list:
    build = Builder().facts(sampler_weights=float(weights), sampler_samples=float(samples))
    build.recording.events.append(Event(0, "sampler", source=SourceLine("t.py", 7, "WeightedRandomSampler(w, n)")))
    return list(SamplerWeights().judge(build.done()))


@pytest.mark.parametrize(
    ("weights", "samples", "severity"),
    [
        (2, 6000, Severity.ERROR),
        (299, 600, Severity.ERROR),
        (300, 600, Severity.WARNING),
        (599, 600, Severity.WARNING),
        (600, 600, None),
        (601, 600, None),
    ],
)
def test_as_many_weights_as_samples(weights, samples, severity):
    found = judged(weights, samples)
    assert [one.severity for one in found] == ([severity] if severity else [])
    for one in found:
        assert (one.location.line, one.location.text) == (7, "WeightedRandomSampler(w, n)")
        assert f"{weights} weights for {samples} samples" in one.title


def test_no_such_sampler():
    assert list(SamplerWeights().judge(Builder().done())) == []
