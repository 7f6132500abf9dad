"""A closer look at what a step did to frozen and to half-precision parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from netdoctor.capture.naming import ModuleNames
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.stepped import StepWatch
from netdoctor.recording import Recording, Stat


def watched(model: nn.Module, step: float, stat: Stat) -> dict[str, float]:
    """The statistic by parameter after a step that adds `step` to every entry."""
    names, recorder, recording = ModuleNames(), Recorder(), Recording()
    names.add_root(model)
    watch = StepWatch(recorder, names)
    watch.before(list(model.parameters()))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(step)
    watch.after()
    recorder.write(recording)
    tracks = recording.tracks.items()
    return {site.parameter.rpartition("\x1f")[2]: track.last for (site, kind), track in tracks if kind is stat}


def model(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    net = nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 4)).to(dtype)
    for parameter in net.parameters():
        nn.init.constant_(parameter, 1.0)
        parameter.grad = torch.ones_like(parameter)
    return net


def test_a_frozen_parameter_with_a_gradient_is_measured() -> None:
    net = model()
    net[0].requires_grad_(False)
    found = watched(net, 0.25, Stat.FROZEN_UPDATE)
    assert found == {"0.weight": pytest.approx(0.25), "0.bias": pytest.approx(0.25)}


def test_one_without_a_gradient_is_not_and_neither_are_gradients_set_by_hand() -> None:
    net = model()
    net[0].requires_grad_(False)
    net[0].weight.grad = None
    assert set(watched(net, 0.25, Stat.FROZEN_UPDATE)) == {"0.bias"}
    assert watched(model().requires_grad_(False), 0.25, Stat.FROZEN_UPDATE) == {}


# The spacing of bfloat16 above 1 is 2**-7: half of it, and what is less, is rounded away (to even).
@pytest.mark.parametrize(("step", "lost"), [(2**-8, 1.0), (2**-8 + 2**-9, 0.0), (2**-7, 0.0)])
def test_the_share_that_is_rounded_away(step: float, lost: float) -> None:
    assert watched(model(torch.bfloat16), step, Stat.ROUNDED_AWAY)["0.weight"] == lost


def test_entries_without_a_gradient_do_not_count() -> None:
    net = model(torch.bfloat16)
    net[0].weight.data[0] = 2**-10
    assert net[0].weight.grad is not None
    assert watched(net, 2**-9, Stat.ROUNDED_AWAY)["0.weight"] == pytest.approx(7 / 8)
    net[0].weight.data[0] = 2**-10
    net[0].weight.grad[1:] = 0
    assert watched(net, 2**-9, Stat.ROUNDED_AWAY)["0.weight"] == 0.0
    assert watched(model(), 0.25, Stat.ROUNDED_AWAY) == {}
