"""What plain steps keep to be written down later is, once it is written down, what writing it down step by step gives."""

from __future__ import annotations

import math
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from netdoctor.capture import plain, recorder
from netdoctor.capture.late import LateNumbers
from netdoctor.capture.ledger import kinds_of
from netdoctor.capture.plain import PlainSteps
from tests.capture.observing import observing, seed
from tests.capture.test_late import Slow

STYLES = ("one", "two optimizers", "two groups", "twice on one line", "tensor rate", "no zero_grad")
STYLES += ("another device", "schedule", "own layer")
ACTIONS = ("read", "read", "read at its step", "rate", "same rate", "group")
ACTIONS += ("evaluation", "another step", "NaN", "spoiled gradient")


def optimizers_of(style, model):
    weights, heads = list(model[0].parameters()), list(model[2].parameters())
    if style == "two optimizers":
        return [torch.optim.SGD(weights, lr=0.05), torch.optim.Adam(heads, lr=0.01)]
    if style == "two groups":
        return [torch.optim.SGD([{"params": weights}, {"params": heads, "lr": 0.01}], lr=0.05)]
    if style == "tensor rate":
        return [torch.optim.SGD([*weights, *heads], lr=torch.tensor(0.05), foreach=False)]
    return [torch.optim.SGD([*weights, *heads], lr=0.05)]


def act(action, model, optimizers, observation, seen):
    """What happens between two steps."""
    if action == "read":
        seen.append(reading(observation))
    elif action == "rate":
        for group in optimizers[0].param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].mul_(0.9)
            else:
                group["lr"] *= 0.9
    elif action == "evaluation":
        with torch.no_grad():
            model(torch.randn(3, 5))
    elif action == "another step":
        optimizers[-1].zero_grad()
    elif action == "group":
        optimizers[0].add_param_group({"params": [nn.Parameter(torch.ones(2))], "lr": 0.3})


def reading(observation):
    """What a reader gets, and what is there then."""
    read = observation.recording
    rows = {k: (s.steps.tolist(), s.values.tolist()) for k, s in (*read.losses.items(), *read.scalars.items())}
    return str(rows), read.steps, read.counts, [o.steps for o in read.optimizers], state(observation)


class Own(nn.Linear):
    """A layer that is a function of its own: steps that are measured are watched operation by operation."""

    def forward(self, x):
        return F.linear(x, self.weight * 1.0) + self.bias


def train(style, steps, actions, observation):
    """A loop of one of these styles; gives what was read on the way."""
    seen = []
    model = nn.Sequential((Own if style == "own layer" else nn.Linear)(5, 4), nn.ReLU(), nn.Linear(4, 3))
    optimizers = optimizers_of(style, model)
    now = [0]

    def stepped(*_):
        if actions.get(now[0]) == "read at its step":
            seen.append(reading(observation))

    optimizers[0].register_step_post_hook(stepped)
    for step in range(steps):
        now[0] = step
        x, y = torch.randn(6, 5), torch.randint(0, 3, (6,))
        if actions.get(step) == "NaN":
            x[0, 0] = math.nan
        if style == "no zero_grad":
            for parameter in model.parameters():
                parameter.grad = None
        else:
            for optimizer in optimizers:
                optimizer.zero_grad()
        for part in (x[:3], x[3:]) if style == "twice on one line" else (x,):
            F.cross_entropy(model(part), y[: len(part)]).backward()
        if actions.get(step) == "spoiled gradient":
            model[0].bias.grad[1] = math.inf
        for optimizer in optimizers:
            optimizer.step()
        if actions.get(step) == "same rate" or style == "schedule":
            for group in optimizers[-1].param_groups:
                group["lr"] = group["lr"] * (0.98 if style == "schedule" else 1.0)
        act(actions.get(step), model, optimizers, observation, seen)
    return seen


def state(observation):
    """All that the ledger writes to, to the last digit."""
    kept, stepped = observation.observer.recorder, observation.taps.training.optimizers
    series = {**{("loss", k): s for k, s in kept.losses.items()}, **kept.scalars}
    rows = {k: (list(s._steps), list(map(repr, s._sums)), list(s._counts)) for k, s in series.items()}
    events = [(e.step, e.kind, e.detail) for e in kept.events]
    return rows, list(series), dict(kept.counts), events, list(stepped.steps), dict(stepped.spans)


def observed(style, steps, actions, change):
    """(state at the end, what was read on the way, steps that were deferred)."""
    seed()
    deferred = []
    with pytest.MonkeyPatch.context() as patch, observing() as observation:
        patch.setattr(recorder, "MAX_EVENTS", 40)
        patch.setattr(recorder, "_ALWAYS_KEPT", 3)
        patch.setattr(plain, "_DEFERRED", 7)
        change(patch)
        if style == "another device":
            elsewhere(patch, observation.observer.pattern)
        observation.observer.on_step = lambda step: deferred.append(observation.observer.pattern._deferred)
        seen = train(style, steps, actions, observation)
    return state(observation), seen, sum(deferred)


def elsewhere(patch, pattern):
    """As on another device: what gradients hold is only known when the copy has arrived."""
    real = PlainSteps._stepping

    def stepping(self, optimizer):
        place = real(self, optimizer)
        place.look = None
        return place

    patch.setattr(PlainSteps, "_stepping", stepping)
    pattern._late = LateNumbers(pattern._came_late, Slow)


def at_once(patch):
    """Write everything down as it comes."""
    real = PlainSteps._defer

    def defer(self):
        real(self)
        self._deferred = False

    patch.setattr(PlainSteps, "_defer", defer)


@example("one", 60, {40: "read at its step", 47: "read"})
@example("tensor rate", 60, {40: "rate"})
@settings(max_examples=40, deadline=None)
@given(
    style=st.sampled_from(STYLES),
    steps=st.integers(50, 75),
    actions=st.dictionaries(st.integers(26, 74), st.sampled_from(ACTIONS), min_size=1, max_size=7),
)
def test_what_is_written_down_later_is_the_same(style, steps, actions):
    later, read, _ = observed(style, steps, actions, lambda patch: None)
    now, read_at_once, none = observed(style, steps, actions, at_once)
    assert none == 0
    assert later == now
    assert read == read_at_once


def test_steps_are_deferred_and_no_more_than_so_many():
    with observing() as observation:
        held = []
        pattern = observation.observer.pattern
        observation.observer.on_step = lambda step: held.append(
            max((len(p.values) for p in pattern._places if p), default=0)
        )
        train("one", 500, {}, observation)
    assert max(held) == plain._DEFERRED - 1
    series = next(iter(observation.recording.losses.values()))
    assert series.steps.tolist() == list(range(500))


def test_another_thread_reads_what_is_there():
    """It must not take numbers out of the hands of a step that runs."""
    with pytest.MonkeyPatch.context() as patch, observing() as observation:
        patch.setattr(recorder, "MAX_EVENTS", 40)
        patch.setattr(recorder, "_ALWAYS_KEPT", 3)
        found = []

        def read(step):
            if step == 48:
                assert observation.observer.pattern._deferred
                reader = threading.Thread(target=lambda: found.append(observation.recording))
                reader.start()
                reader.join()
                assert observation.observer.pattern._deferred

        observation.observer.on_step = read
        train("one", 60, {}, observation)
    assert found[0].counts["backward"] < 48
    assert observation.recording.counts["backward"] == 60


def test_a_step_after_another_optimizers_is_one_on_the_same_backward():
    events = [("zero", 1), ("unit", 2, True), ("backward", 3, 4), ("step", 5), ("step", 6), ("end",)]
    assert kinds_of(events) == ["zero_grad", None, "backward", "step", "step without backward", None]
