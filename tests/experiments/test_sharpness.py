"""Scores on a copy: how sharp a softmax is with masked keys left out, what is scaled, and what smaller scores show."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.units.sharp_softmax import AS_IT_IS, FIRST, LONG, SCALED
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.sharpness import look
from netdoctor.experiments.treatments.scores import Temper, hidden, sharpness
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import watched

KEYS = 8
ROWS = torch.randn(200, KEYS, generator=torch.Generator().manual_seed(0))
CAUSAL = torch.ones(KEYS, KEYS, dtype=torch.bool).triu(1)


@pytest.mark.parametrize(("scale", "low", "high"), [(0.0, 1.0, 1.0), (1.0, 0.8, 0.95), (10.0, 0.1, 0.2)])
def test_what_passes_falls_as_scores_grow(scale: float, low: float, high: float) -> None:
    std, passed = sharpness(scale * ROWS)
    assert low <= round(passed, 6) <= high
    assert std == pytest.approx(scale, rel=0.1)


@pytest.mark.parametrize("fill", [-math.inf, torch.finfo(torch.float32).min, -1e9, -1e4, -100.0])
def test_masked_keys_are_left_out_whatever_fills_them(fill: float) -> None:
    """A causal mask leaves the first row one key, which is one-hot by right."""
    scores = torch.zeros(4, KEYS, KEYS).masked_fill(CAUSAL, fill)
    assert bool((hidden(scores) == CAUSAL).all())
    assert sharpness(scores) == pytest.approx((0.0, 1.0))


def test_a_mask_that_is_added() -> None:
    scores = torch.randn(4, KEYS, KEYS) + CAUSAL * -1e4
    assert bool((hidden(scores) == CAUSAL).all())


def test_rows_with_one_key_say_nothing() -> None:
    assert all(map(math.isnan, sharpness(torch.randn(5, 1))))


def test_other_dimensions() -> None:
    assert sharpness(10 * ROWS.T, 0) == pytest.approx(sharpness(10 * ROWS))


def test_scaled_scores_have_a_scale_of_one_and_keep_their_mask() -> None:
    temper, seen = Temper(("train.py", 1)), []
    scores = (30 * torch.randn(4, KEYS, KEYS)).masked_fill(CAUSAL, -math.inf)

    def softmax(given: Tensor, dim: int) -> Tensor:
        seen.append(given)
        return given.softmax(dim)

    weights = temper(softmax, (scores, -1), {})
    assert sharpness(seen[0])[0] == pytest.approx(1.0)
    assert bool((weights[:, CAUSAL] == 0).all())
    temper(softmax, (scores / 30, -1), {})  # the first call decides, so that scores may grow in training
    assert sharpness(seen[1])[0] == pytest.approx(1 / 30, rel=1e-3)


def test_even_scores_are_left_as_they_are() -> None:
    scores = torch.randn(4, KEYS)
    assert torch.equal(Temper(("train.py", 1))(torch.softmax, (scores, -1), {}), scores.softmax(-1))


class Recall(nn.Module):
    """Which value came with the key that is asked for."""

    def __init__(self, scale: float, mask: bool = False) -> None:
        super().__init__()
        self.query, self.key, self.head = nn.Linear(12, 64), nn.Linear(12, 64), nn.Linear(4, 4)
        self.scale, self.mask = scale, mask

    def forward(self, asked: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        scores = self.query(asked)[:, None] @ self.key(keys).transpose(-2, -1) * self.scale
        if self.mask:  # one key is left
            scores = scores.masked_fill(torch.arange(KEYS) > 0, -math.inf)
        return self.head((torch.softmax(scores, dim=-1) @ values).squeeze(1))


def trained(model: nn.Module) -> tuple[Recording, TrainingStep]:
    torch.manual_seed(0)

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(12):
            key, value = torch.rand(64, 12).argsort(1)[:, :KEYS], torch.randint(0, 4, (64, KEYS))
            place = torch.randint(0, KEYS, (64, 1))
            keys, asked = (F.one_hot(k, 12).float() for k in (key, key.gather(1, place).squeeze(1)))
            optimizer.zero_grad()
            logits = model(asked, keys, F.one_hot(value, 4).float())
            F.cross_entropy(logits, value.gather(1, place).squeeze(1)).backward()
            optimizer.step()

    step, graph = watched(train)
    recording = Recording(graph=graph)
    recording.graphs.append(graph)
    return recording, step


def end(arm: Arm) -> float:
    return float(arm.losses[-10:].mean())


def test_smaller_scores_learn_where_large_ones_do_not() -> None:
    torch.manual_seed(0)
    arms = look(*trained(Recall(60.0)), Budget(120))
    (std,) = (float(value) for name, value in arms[FIRST].facts.items() if name.startswith("std "))
    assert std > 4
    assert len(arms[SCALED].losses) == len(arms[AS_IT_IS].losses) >= LONG
    assert end(arms[SCALED]) < 0.7 * end(arms[AS_IT_IS])


def test_nothing_is_done_for_scores_of_the_right_size() -> None:
    assert look(*trained(Recall(0.3)), Budget(120)) == {}


def test_one_hot_because_of_a_mask_is_looked_at_and_left() -> None:
    arms = look(*trained(Recall(0.3, mask=True)), Budget(120))
    assert list(arms) == [FIRST]
    assert arms[FIRST].facts == {"says": "masked keys explain what is one-hot"}


def test_too_little_time_is_said() -> None:
    arms = look(*trained(Recall(60.0)), Budget(0.05))
    assert "steps were done in the time for it" in arms[AS_IT_IS].failure
