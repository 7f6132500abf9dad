"""Several optimizers in turns, a head that is replaced, weights that are frozen at zero: told from real loops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netdoctor.capture.assembly import assemble
from netdoctor.recording import Recording
from tests.capture.observing import Observation, observing, seed


def recorded(observation: Observation) -> Recording:
    return assemble(observation.observer, observation.taps.training, "t.py", "0", "finished")


def duel(clears_critic: bool, late: bool) -> Recording:
    """A generator and a critic; the critic's gradients are cleared before its loss, after its step (`late`), or never."""
    seed(0)
    with observing() as observation:
        maker, critic = nn.Linear(2, 2), nn.Linear(2, 1)
        first, second = (torch.optim.Adam(m.parameters(), lr=1e-3) for m in (critic, maker))
        for _ in range(6):
            if clears_critic and not late:
                first.zero_grad()
            (critic(maker(torch.randn(8, 2)).detach()) - critic(torch.randn(8, 2))).mean().backward()
            first.step()
            second.zero_grad()
            (-critic(maker(torch.randn(8, 2)))).mean().backward()
            second.step()
            if clears_critic and late:
                first.zero_grad()
        return recorded(observation)


@pytest.mark.parametrize("late", [False, True])
def test_gradients_that_are_cleared_in_turns_are_clean(late: bool) -> None:
    counts = duel(True, late).counts
    assert counts.get("stale step 0", 0) == counts.get("stale step 1", 0) == 0
    assert min(counts["clean step 0"], counts["clean step 1"]) >= 3


def test_gradients_that_one_optimizer_never_clears_are_stale() -> None:
    counts = duel(False, False).counts
    assert counts["stale step 0"] >= 3
    assert counts.get("clean step 0", 0) == counts.get("stale step 1", 0) == 0


def test_a_head_that_is_replaced_after_the_optimizer_was_made_belongs_to_none() -> None:
    seed(0)
    with observing() as observation:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
        model[2] = nn.Linear(4, 2)
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 3)).square().mean().backward()
            optimizer.step()
        parameters = recorded(observation).parameters
    assert parameters["0.weight"].optimizer == 0
    assert parameters["2.weight"].optimizer is None


@pytest.mark.parametrize(("zero", "frozen", "found"), [(True, True, "2.weight"), (True, False, ""), (False, True, "")])
def test_frozen_zeros(zero: bool, frozen: bool, found: str) -> None:
    seed(0)
    with observing() as observation:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        if zero:
            nn.init.zeros_(model[2].weight)
        model[2].weight.requires_grad_(not frozen)
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (model(torch.randn(8, 3)) - 1).square().mean().backward()
            optimizer.step()
        assert recorded(observation).facts["frozen_zeros"] == found
