"""Steps that go on and on: what is watched of them costs no more per operation the longer they are, and in the end it ends."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture import graphs
from netdoctor.capture.tape import Context, Entry, Slot, Tape
from tests.capture.observing import observing, seed


@pytest.mark.parametrize("loose", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_a_rollout_is_not_watched_for_ever(monkeypatch, training, loose):
    """It is let go of once it is long; a model that trains is watched again, one of loose weights too, and a loss that is on its
    way all the time."""
    monkeypatch.setattr(graphs, "LONG", 200)
    monkeypatch.setattr(graphs, "ASKED", 50)
    seed()
    module, weight = nn.Linear(5, 3), torch.randn(5, 3, requires_grad=True)
    net = (lambda x: x @ weight) if loose else module
    optimizer = torch.optim.SGD([weight] if loose else module.parameters(), lr=0.01)
    with observing() as observation:
        mode = observation.observer.mode
        loss = net(torch.randn(4, 5)).sum() if training else torch.zeros(())
        for _ in range(100):
            with torch.no_grad():
                action = net(torch.randn(4, 5)).argmax(1)
            action = (action + 1) * 2 - 1
        assert mode.resting is not training
        loss = loss + F.cross_entropy(net(torch.randn(4, 5)), torch.randint(0, 3, (4,)))
        assert mode.on
        assert not mode.resting
        loss.backward()
        optimizer.step()
        assert len(observation.step.iterations) == 1
    assert observation.recording.graph.loss is not None
    assert {o.name for o in observation.recording.graph.operations} >= {
        "matmul" if loose else "linear",
        "cross_entropy",
    }


def test_what_shares_memory_is_found_at_once():
    """The entries for views of a tensor that was changed in place, and no look at all others."""
    tape, base, others = Tape(), torch.zeros(4, 4), [torch.zeros(3) for _ in range(50)]
    view = base[1]

    def made(tensor, mutates=False):
        entry = Entry(torch.relu, None, (), {}, context=Context(True, None, None, None))
        entry.mutates = mutates
        tape.add(entry, tensor)

    for tensor in (base, view, *others):
        made(tensor)
    known = tape.slot(view)
    made(base, mutates=True)
    aliases = [entry for entry in tape.entries if entry.name == "alias"]
    assert [entry.args for entry in aliases] == [(Slot(known), Slot(tape.slot(base)))]
    assert tape.slot(view) == aliases[0].outputs[0]
    del view
    made(base, mutates=True)
    assert len([entry for entry in tape.entries if entry.name == "alias"]) == 1
