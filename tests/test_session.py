"""The session as its doors use it: observe, report, leave nothing behind, refuse what cannot work."""

from __future__ import annotations

import gc
import threading
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.errors import MisuseError, NetdoctorError
from netdoctor.finding import Severity
from netdoctor.judging import Options, diagnose
from netdoctor.session import EnoughSteps, FindingError, Session, examine, examined
from netdoctor.watching import watch
from tests.capture.observing import seed
from tests.capture.test_nothing_stays import differences, torch_as_it_is

PASSIVE = Options(experiments=False)


def mlp():
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3))


def data(size=16):
    x = torch.randn(size, 5)
    return x, x[:, :3].argmax(1)


def fit(model, optimizer, steps=12):
    for _ in range(steps):
        x, y = data()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def trained(options=PASSIVE, steps=12):
    """A finished session around a small training that is built inside of it."""
    seed()
    session = Session(options)
    session.start()
    try:
        model = mlp()
        fit(model, torch.optim.Adam(model.parameters(), lr=1e-2), steps)
    finally:
        session.stop()
    return session


# --- from start to report --------------------------------------------------------------------------------------------


def test_a_training_is_observed():
    session = trained()
    report = session.report()
    assert report.steps == 12
    assert report.crashes == ()
    assert session.recording.counts["step"] == 12
    assert [layer.name for layer in session.recording.layers] == ["0", "1", "2"]


def test_the_report_is_made_once():
    session = trained()
    assert session.report() is session.report()


def test_nothing_observed():
    session = Session(PASSIVE)
    session.start()
    session.stop()
    report = session.report()
    assert report.verdict == "not observed"
    assert report.steps == 0


def test_experiments_leave_the_users_world_alone():
    seed()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer, options=Options(budget=2.0)) as doctor:
        fit(model, optimizer)
    before = [t.clone() for t in model.state_dict().values()], torch.get_rng_state(), torch_as_it_is()
    doctor.report()
    assert all(torch.equal(a, b) for a, b in zip(before[0], model.state_dict().values(), strict=True))
    assert torch.equal(before[1], torch.get_rng_state())
    assert differences(before[2], torch_as_it_is()) == []


def test_scalars_of_the_users_own():
    seed()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer, options=PASSIVE) as doctor:
        for epoch in range(3):
            fit(model, optimizer, 2)
            doctor.log(val_loss=1.0 / (epoch + 1))
    series = doctor.recording.scalars["val_loss"]
    assert series.values.tolist() == [1.0, 0.5, pytest.approx(1 / 3)]
    assert series.steps.tolist() == [2, 4, 6]


def test_a_report_in_the_middle():
    seed()
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with watch(model, optimizer, options=PASSIVE) as doctor:
        fit(model, optimizer, 5)
        assert doctor.report().steps == 5
        fit(model, optimizer, 5)
    assert doctor.report().steps == 10


def test_an_exception_of_the_users_comes_through():
    model = mlp()
    before = torch_as_it_is()
    with pytest.raises(KeyError, match="mine"), watch(model, options=PASSIVE) as doctor:
        raise KeyError("mine")
    assert differences(before, torch_as_it_is()) == []
    assert doctor.recording.header.ended == "raised KeyError: 'mine'"


def test_a_number_of_steps():
    session = Session(Options(experiments=False, steps=4))
    session.start()
    model = mlp()
    try:
        with pytest.raises(EnoughSteps):
            fit(model, torch.optim.SGD(model.parameters(), lr=0.1), 100)
    finally:
        session.stop()
    assert session.recording.steps == 4


def test_a_watched_model_whose_optimizer_is_not_named():
    """`with watch(model)` is enough: the optimizer that holds its weights is found."""
    seed()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, options=PASSIVE) as doctor:
        fit(model, optimizer, 6)
    assert doctor.recording.steps == 6
    assert all(any(a.kind == "step" for a in i.actions) for i in doctor._session._step.iterations)


# --- findings --------------------------------------------------------------------------------------------------------


def broken_training(model, optimizer, at=3, steps=6):
    for step in range(steps):
        x, y = data()
        out = model(x)
        loss = F.cross_entropy(out, y) if step < at else torch.log(out * 0 - 1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_raise_stops_at_the_very_step():
    seed()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FindingError) as caught, watch(model, optimizer, options=PASSIVE, on_finding="raise") as doctor:
        broken_training(model, optimizer)
    assert isinstance(caught.value, NetdoctorError)
    assert caught.value.finding.severity is Severity.ERROR
    assert doctor.recording.steps == 3
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_warn_warns_when_the_block_ends():
    seed()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.warns(UserWarning, match="netdoctor: "), watch(model, optimizer, options=PASSIVE, on_finding="warn"):
        broken_training(model, optimizer)


def test_ignore_says_nothing():
    seed()
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with watch(model, optimizer, options=PASSIVE):
            broken_training(model, optimizer)


def test_an_old_recording_can_be_judged_again():
    session = trained()
    again = diagnose(session.recording, PASSIVE)
    assert [f.check for f in again.findings] == [f.check for f in session.report().findings]


# --- examine ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "batch",
    [
        pytest.param(lambda x, y: (x, y), id="pair"),
        pytest.param(lambda x, y: ((x,), y), id="tuple of inputs"),
        pytest.param(lambda x, y: ({"input": x}, y), id="named inputs"),
    ],
)
def test_examine(batch):
    seed()
    model, (x, y) = mlp(), data()
    before = [t.clone() for t in model.state_dict().values()]
    report, recording = examined(model, F.cross_entropy, batch(x, y), options=PASSIVE)
    assert recording.steps == 30
    assert report.crashes == ()
    assert all(torch.equal(a, b) for a, b in zip(before, model.state_dict().values(), strict=True))
    assert all(p.grad is None for p in model.parameters())


def test_examine_with_an_optimizer_leaves_it_alone():
    seed()
    model, batch = mlp(), data()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    report = examine(model, F.cross_entropy, batch, optimizer, steps=5, options=PASSIVE)
    assert report.steps == 5
    assert not optimizer.state


def test_examine_restores_the_random_state():
    model, batch = mlp(), data()
    state = torch.get_rng_state()
    examine(model, F.cross_entropy, batch, steps=3, options=PASSIVE)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "loss", "match"),
    [
        (lambda x: x, F.cross_entropy, "must be a torch.nn.Module"),
        (nn.Linear(5, 3), "cross_entropy", "must be callable"),
        (nn.Linear(5, 3), lambda out, y: out, "one number"),
    ],
)
def test_examine_refuses(model, loss, match):
    before = torch_as_it_is()
    with pytest.raises(MisuseError, match=match):
        examine(model, loss, data(), options=PASSIVE)
    assert differences(before, torch_as_it_is()) == []


@pytest.mark.parametrize(
    ("arguments", "match"), [(("model",), "nn.Module"), ((nn.Linear(1, 1), None, "shout"), "on_finding")]
)
def test_watch_refuses(arguments, match):
    model, *rest = arguments
    options = {"on_finding": rest[1]} if rest else {}
    with pytest.raises(MisuseError, match=match):
        watch(model, **options)


# --- what is left ----------------------------------------------------------------------------------------------------


def watched_things(options):
    """A finished watch, and weak references to what it watched."""
    seed()
    model, batch = mlp(), torch.randn(4, 5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with watch(model, optimizer, options=options) as doctor:
        for _ in range(3):
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()
    return doctor, [weakref.ref(thing) for thing in (model, optimizer, batch, model[0], model[0].weight)]


def test_nothing_is_held_once_the_session_is_gone():
    doctor, things = watched_things(Options(budget=1.0))
    report = doctor.report()
    del doctor
    gc.collect()
    assert [ref() for ref in things] == [None] * 5
    assert report.steps == 3


def test_nothing_is_held_once_the_report_is_made():
    """The doctor is often kept for its report; the model and its batches must not be kept with it."""
    doctor, things = watched_things(PASSIVE)
    doctor.report()
    gc.collect()
    assert [ref() for ref in things] == [None] * 5


def test_sessions_one_after_another():
    before = torch_as_it_is()
    assert [trained().report().steps for _ in range(3)] == [12, 12, 12]
    assert differences(before, torch_as_it_is()) == []


def test_a_session_inside_of_another():
    """`netdoctor run` on a script that itself uses `watch`: both see the training, and both leave."""
    seed()
    before = torch_as_it_is()
    outer = Session(PASSIVE)
    outer.start()
    try:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(model, optimizer, 2)
        with watch(model, optimizer, options=PASSIVE) as inner:
            fit(model, optimizer, 3)
        inner.report()
        fit(model, optimizer, 2)
    finally:
        outer.stop()
    assert differences(before, torch_as_it_is()) == []
    assert inner.report().steps == 3
    assert outer.report().steps == 7
    assert outer.recording.faults == []


def test_an_examination_inside_of_a_session_is_not_part_of_the_training():
    seed()
    outer = Session(PASSIVE)
    outer.start()
    try:
        model = mlp()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        fit(model, optimizer, 2)
        examine(model, F.cross_entropy, data(), steps=4, options=PASSIVE)
        fit(model, optimizer, 2)
    finally:
        outer.stop()
    assert outer.recording.faults == []
    assert outer.report().steps >= 4


def test_training_in_another_thread_is_named_as_a_blind_spot():
    session = Session(PASSIVE)
    session.start()
    try:
        model = mlp()
        thread = threading.Thread(target=fit, args=(model, torch.optim.SGD(model.parameters(), lr=0.1)))
        thread.start()
        thread.join()
    finally:
        session.stop()
    report = session.report()
    assert report.steps == 12 or any("thread" in spot for spot in report.blind_spots)
