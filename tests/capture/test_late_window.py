"""What begins after the first steps is captured when it begins, and comes back on a copy bit for bit."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture import changes, program
from netdoctor.capture.changes import Changes
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from tests.capture.observing import observing
from tests.capture.test_nothing_changes import assert_unchanged, state_of

STEPS, BEGINS = 110, 50


def network():
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 2))


def evaluating(step, model, optimizer, x):
    if step == BEGINS:
        model.eval()
    return x


def spike(step, model, optimizer, x):
    optimizer.param_groups[0]["lr"] = 1.0 if step == BEGINS else 1e-3
    return x


def decay(step, model, optimizer, x):
    if step >= BEGINS:
        optimizer.param_groups[0]["lr"] *= 0.9
    return x


def not_a_number(step, model, optimizer, x):
    return torch.where(torch.arange(8) == 3, torch.nan, x) if step == BEGINS else x


def nothing(step, model, optimizer, x):
    return x


CHANGES = [evaluating, spike, decay, not_a_number]


def train(change, clip=False, steps=STEPS):
    torch.manual_seed(0)
    x = torch.randn(64, 8)
    y, model, losses = (x[:, 0] > 0).long(), network(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for step in range(steps):
        given = change(step, model, optimizer, x[torch.randperm(64)[:16]])
        optimizer.zero_grad()
        loss = F.cross_entropy(model(given), y[:16])
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.detach())
    return model, optimizer, losses


def again(late):
    with quiet():
        return Sandbox(late).run(late.iterations, len(late.iterations), Budget(60)).losses


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("change", CHANGES)
def test_the_window_begins_at_the_very_step_and_is_replayed_to_the_bit(change, clip):
    with observing() as observation:
        *_, losses = train(change, clip)
        parts = {(part.begins, len(part.iterations)): part for part in observation.step.parts()}
    late = parts[BEGINS, program.LATE_ITERATIONS]  # beside it, a NaN's step is kept by itself
    wanted = [loss.item() for loss in losses[BEGINS : BEGINS + program.LATE_ITERATIONS]]
    found = again(late)
    if change is not_a_number:
        assert [value != value for value in found] == [True]  # a run on a copy ends there
    else:
        assert found == wanted


def test_another_loss_begins_one():
    def losses_of_two_kinds():
        torch.manual_seed(0)
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(STEPS):
            out = model(torch.randn(16, 8))
            optimizer.zero_grad()
            if step < BEGINS:
                out.square().mean().backward()
            else:
                F.smooth_l1_loss(out, torch.ones(16, 2)).backward()
            optimizer.step()

    with observing() as observation:
        losses_of_two_kinds()
    assert observation.step.late.begins == BEGINS + 1  # what made the first of them had not been watched


def test_a_training_that_stays_the_same_has_none():
    with observing() as observation:
        train(nothing)
    assert observation.step.late is None


def test_evaluations_between_the_epochs_begin_none():
    def validated(step, model, optimizer, x):
        if step % 20 == 19:
            model.eval()
            with torch.no_grad():
                F.cross_entropy(model(x), torch.zeros(16, dtype=torch.long))
            model.train()
        return x

    with observing() as observation:
        train(validated)
    assert observation.step.late is None


@pytest.mark.parametrize("change", CHANGES)
def test_the_training_is_left_as_it_is(change):
    def whole():
        model, optimizer, losses = train(change)
        return [t.nan_to_num(7.0) for t in state_of(model, optimizer, *losses)]

    assert_unchanged(whole)


def test_what_is_large_is_not_copied_a_second_time(monkeypatch):
    monkeypatch.setattr(program, "LATE_START", 1000)
    with observing() as observation:
        train(evaluating)
    assert observation.step.late is None


def test_the_first_and_the_last_are_kept_and_the_batches_of_others_let_go():
    with observing() as observation:
        model, batches = nn.Linear(50, 1), []
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)
        for step in range(400):
            x = torch.randn(4, 50)
            batches.append(weakref.ref(x))
            optimizer.param_groups[0]["lr"] = 1e-6 * 3 ** (step // 40)
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
            del x
        gc.collect()
        alive = sum(ref() is not None for ref in batches)
        assert alive <= program.MAX_ITERATIONS + program.LATE_WINDOWS * program.LATE_ITERATIONS + 2
    assert [part.begins for part in observation.step.parts()] == [0, 360, 40]


def test_there_is_an_end_to_new_windows():
    known = Changes()
    assert sum(known.allows(step) for step in range(100)) == changes.MOST


@pytest.mark.parametrize(
    ("rates", "step", "due"),
    [
        ([0.1] * 30 + [0.2], 30, True),  # up by a factor
        ([0.1] * (changes.STEADY + 1) + [0.099], 30, True),  # a schedule begins
        ([0.1] * changes.STEADY + [0.099], 30, False),  # one that was on its way
        ([0.1 * 0.99**n for n in range(40)], 40, False),  # it goes on
        ([0.1 * 1.5**n for n in range(10)], 10, False),  # a warm-up
        ([0.1], 0, False),
    ],
)
def test_which_rates_ask_for_one(rates, step, due):
    known, optimizer = Changes(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for number, rate in enumerate(rates, start=step + 1 - len(rates)):
        optimizer.param_groups[0]["lr"] = rate
        found = known.rates(optimizer, 0, number)
    assert found is due


@pytest.mark.parametrize(("starts", "due"), [(0, False), (changes.STEADY - 1, False), (changes.STEADY, True)])
def test_another_optimizer_begins_a_phase_once_the_first_one_runs(starts, due):
    known, optimizer = Changes(), torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for step in range(starts):
        assert not known.rates(optimizer, 0, step)
    known.rates(optimizer, 0, starts)
    assert known.rates(optimizer, 1, starts) is due
    known.due = False
    assert known.rates(optimizer, 1, starts + 1) is False  # known by then
    assert known.rates(optimizer, changes.PHASES, starts + 2) is False


def test_a_second_phase_of_the_same_model_and_loss_has_a_window_of_its_own():
    with observing() as observation:
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))
        for part, rate in ((model, 0.1), (model[2], 0.01)):
            optimizer = torch.optim.SGD(part.parameters(), lr=rate)
            for _ in range(40):
                optimizer.zero_grad()
                model(torch.randn(16, 4)).square().mean().backward()
                optimizer.step()
    assert observation.step.late.begins == 40
