"""The hazards of hooking (tests/reliability/hazards.py): nothing changes, what can be seen is seen, what cannot be is said."""

from __future__ import annotations

import re
import warnings

import pytest

from tests.capture.observing import observing, seed
from tests.reliability.hazards import HAZARDS, Hazard, measured
from tests.reliability.rare_hazards import RARE_HAZARDS
from tests.reliability.trainings import same


@pytest.mark.parametrize("hazard", HAZARDS + RARE_HAZARDS, ids=lambda hazard: hazard.name)
def test_hazard(hazard: Hazard) -> None:
    seed()
    with warnings.catch_warnings():  # of old ways that the hazards are about, but none of ours
        warnings.simplefilter("ignore")
        alone = hazard.train()
    seed()
    with observing() as observation:
        watched = hazard.train()
    recording = observation.recording
    assert same(alone, watched)
    assert recording.steps == hazard.steps
    assert [name for name in hazard.layers if not measured(recording, name)] == []
    assert hazard.check(recording)
    if hazard.blind:
        assert any(re.search(hazard.blind, spot) for spot in recording.blind_spots), recording.blind_spots
    else:
        assert recording.blind_spots == []
