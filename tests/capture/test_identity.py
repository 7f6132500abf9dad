"""Facts about objects by identity, whatever their own hash and equality say."""

from __future__ import annotations

import gc

import torch
from torch import nn

from netdoctor.capture.identity import ByIdentity
from tests.capture.observing import observing


class Odd(nn.Module):
    """As metrics of torchmetrics do: hashes what it holds, which is not there yet while it is being built."""

    def __init__(self):
        super().__init__()
        self.total = nn.Linear(2, 1)

    def __hash__(self):
        return hash(self.total.in_features)

    def __eq__(self, other):
        return True


def test_objects_that_are_equal_are_told_apart():
    facts: ByIdentity[Odd, int] = ByIdentity()
    one, other = Odd(), Odd()
    facts[one] = 1
    assert (facts.get(one), facts.get(other)) == (1, None)
    assert one in facts
    assert other not in facts
    facts.pop(other)
    facts.pop(one)
    assert facts.get(one) is None


def test_nothing_is_kept_alive():
    facts: ByIdentity[Odd, int] = ByIdentity()
    one = Odd()
    facts[one] = 1
    del one
    gc.collect()
    assert facts._held == {}


def test_a_module_that_hashes_what_it_holds_is_observed():
    with observing() as observation:
        odd = Odd()
        optimizer = torch.optim.SGD(odd.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            odd.total(torch.ones(2, 2)).sum().backward()
            optimizer.step()
    assert [layer.path for layer in observation.recording.layers] == ["total"]
