"""Which copies of a model count as ones that are evaluated with the statistics of before the training."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel

from netdoctor.capture.stale_norms import STEPS
from tests.capture.observing import observing, seed


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 8, bias=False), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def follow(average, model):
    for mine, theirs in zip(average.parameters(), model.parameters(), strict=True):
        mine.data.lerp_(theirs.data, 0.2)


def with_buffers(average, model):
    follow(average, model)
    for mine, theirs in zip(average.buffers(), model.buffers(), strict=True):
        mine.copy_(theirs)


def as_averaged(average, model):
    average.update_parameters(model)


def run(make, update, steps=STEPS + 5, mended=False):
    """A training with a copy that is evaluated in each step; `mended`: it gets its statistics before the last evaluation."""
    seed()
    model = net()
    average = make(model).eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with observing() as observation:
        for step in range(steps):
            x = 3 + 2 * torch.randn(16, 5)
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.randint(0, 3, (16,))).backward()
            optimizer.step()
            update(average, model)
            if mended and step == steps - 1:
                with_buffers(average, model)
            with torch.no_grad():
                average(x)
                model.eval()
                model(x)  # has statistics of its own
                model.train()
    return observation.recording


@pytest.mark.parametrize(
    ("make", "update", "stale"),
    [
        (copy.deepcopy, follow, True),
        (AveragedModel, as_averaged, False),  # torch keeps the buffers in step
        (copy.deepcopy, with_buffers, False),
        (lambda model: AveragedModel(model, use_buffers=True), as_averaged, False),
        (lambda model: net(), lambda average, model: None, False),  # a random network of the same form
        (lambda model: nn.Sequential(nn.Linear(5, 3)), lambda average, model: None, False),
    ],
)
def test_copies(make, update, stale):
    recording = run(make, update)
    assert ("stale_norms" in recording.facts) is stale
    sources = [event.source for event in recording.events if event.kind == "stale norms"]
    assert [source.text for source in sources if source] == ["average(x)"] * stale
    if stale:
        assert recording.facts["stale_norms"] == 1.0
        assert recording.facts["stale_norms_shift"] > 0.1
        assert recording.facts["stale_norms_given"] < 0.5 * recording.facts["stale_norms_own"]


def test_too_early_and_mended_in_time():
    assert "stale_norms" not in run(copy.deepcopy, follow, steps=STEPS - 1).facts
    assert "stale_norms" not in run(copy.deepcopy, follow, mended=True).facts
