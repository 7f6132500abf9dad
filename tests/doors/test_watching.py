"""`watch` in all its forms: block, decorator, start and stop, several models, callbacks, writers, notebook, saved files."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import netdoctor
from netdoctor.errors import MisuseError
from netdoctor.finding import Finding
from netdoctor.judging import Options
from netdoctor.watching import watch
from netdoctor.writers import STEP, Writer

PASSIVE = Options(experiments=False)


def made(dead: bool = False) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    if dead:
        nn.init.constant_(model[0].bias, -100.0)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 20) -> int:
    for _ in range(steps):
        x = torch.randn(32, 8)
        optimizer.zero_grad()
        F.cross_entropy(model(x), (x[:, 0] > 0).long()).backward()
        optimizer.step()
    return steps


def checks(findings: tuple[Finding, ...]) -> list[str]:
    return [finding.check for finding in findings]


def test_block_decorator_and_start_stop_see_the_same() -> None:
    reports = []
    model, optimizer = made(dead=True)
    with watch(model, optimizer, options=PASSIVE) as doctor:
        train(model, optimizer)
    reports.append(doctor.report())

    model, optimizer = made(dead=True)
    doctor = watch(model, optimizer, options=PASSIVE)
    assert doctor(train)(model, optimizer) == 20
    reports.append(doctor.report())

    model, optimizer = made(dead=True)
    doctor = watch(model, optimizer, options=PASSIVE).start()
    train(model, optimizer)
    assert doctor.stop() is doctor
    reports.append(doctor.report())
    assert {report.findings[0].check for report in reports} == {"dead-relu"}
    assert len({tuple(finding.title for finding in report.findings) for report in reports}) == 1


def test_a_decorated_function_is_watched_anew_at_every_call() -> None:
    model, optimizer = made()
    doctor = watch(model, optimizer, options=PASSIVE)
    watched = doctor(train)
    assert watched.__name__ == "train"
    for steps in (10, 12):
        watched(model, optimizer, steps)
        assert doctor.report().steps == steps
    with pytest.raises(ZeroDivisionError):
        doctor(lambda: 1 / 0)()
    assert doctor.report().ended == "raised ZeroDivisionError: division by zero"


def test_several_models_and_optimizers() -> None:
    (one, first), (two, second) = made(), made(dead=True)
    with watch([one, two], [first, second], options=PASSIVE) as doctor:
        for _ in range(12):
            train(one, first, 1)
            train(two, second, 1)
    assert len(doctor.recording.optimizers) == 2
    assert len({parameter.model for parameter in doctor.recording.parameters.values()}) == 2
    assert checks(doctor.report().findings)[0] == "dead-relu"


def test_without_a_model_all_that_trains_is_watched() -> None:
    with watch(options=PASSIVE) as doctor:
        train(*made())
    assert (doctor.report().verdict, doctor.report().steps) == ("healthy", 20)


def test_findings_are_live() -> None:
    model, optimizer = made(dead=True)
    with watch(model, optimizer, options=PASSIVE) as doctor:
        train(model, optimizer, 16)
        assert "dead-relu" in checks(doctor.findings)
        assert doctor.report().steps == 16
        train(model, optimizer, 4)
    assert "dead-relu" in checks(doctor.findings)


def test_a_callback_gets_each_finding_once_while_it_trains() -> None:
    heard: list[tuple[str, int]] = []
    model, optimizer = made(dead=True)

    def hear(finding: Finding) -> None:
        heard.append((finding.check, doctor.recording.steps))

    with watch(model, optimizer, options=PASSIVE, on_finding=hear) as doctor:
        train(model, optimizer, 40)
    assert "dead-relu" in dict(heard)
    assert dict(heard)["dead-relu"] in (8, 16, 32)
    assert len({check for check, _ in heard}) == len(heard)


def test_what_a_callback_raises_stops_the_training() -> None:
    model, optimizer = made(dead=True)

    def stop(finding: Finding) -> None:
        raise RuntimeError(finding.check)

    with (
        pytest.raises(RuntimeError, match="dead-relu"),
        watch(model, optimizer, options=PASSIVE, on_finding=stop) as doctor,
    ):
        train(model, optimizer, 1000)
    assert doctor.recording.steps in (8, 16, 32)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: watch(nn.Linear), "needs a torch.nn.Module, not type"),
        (lambda: watch([made()[0], "model"]), "needs a torch.nn.Module, not str"),
        (lambda: watch(made()[0], on_finding="shout"), "or a function, not 'shout'"),
        (lambda: watch(made()[0], options=Options(select=("ded-relu",))), "unknown check 'ded-relu'"),
        (lambda: watch(made()[0], writer=3), "int is no writer: it needs add_scalar"),
        (lambda: watch(made()[0]).report(), "nothing was watched yet"),
        (lambda: watch(made()[0]).log(a=1.0), "nothing was watched yet"),
    ],
)
def test_misuse_is_said(call: Any, says: str) -> None:
    with pytest.raises(MisuseError, match=says):
        call()


def test_one_watch_runs_once_at_a_time() -> None:
    with watch(options=PASSIVE) as doctor, pytest.raises(MisuseError, match="this watch is running already"):
        doctor.start()
    doctor.start().stop()


def test_stopping_twice_or_before_is_nothing() -> None:
    doctor = watch(made()[0], options=PASSIVE)
    assert doctor.stop().start().stop().stop() is doctor


class Board:
    """The two methods of a SummaryWriter that are used."""

    def __init__(self) -> None:
        self.scalars: list[tuple[str, float, int]] = []
        self.texts: list[str] = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((name, value, step))

    def add_text(self, name: str, text: str, step: int) -> None:
        self.texts.append(text)


class Run:
    """A run of Weights & Biases, as far as it is used: a global step that may only grow is not among it."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.metrics: list[str] = []
        self.summary: dict[str, str] = {}

    def define_metric(self, name: str, step_metric: str = "") -> None:
        self.metrics.append(name)

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)


def test_tensorboard_gets_curves_and_findings_once_each() -> None:
    board = Board()
    model, optimizer = made(dead=True)
    with watch(model, optimizer, options=PASSIVE, writer=board) as doctor:
        train(model, optimizer, 20)
        assert board.scalars  # while it trains, too
    seen = [(name, step) for name, _, step in board.scalars if name != "netdoctor/findings"]
    assert len(seen) == len(set(seen))
    losses = [value for name, value, _ in board.scalars if name == "netdoctor/loss"]
    assert losses == pytest.approx(list(doctor.recording.losses["loss"].values))
    for name in ("netdoctor/activation rms/0", "netdoctor/gradient rms/2", "netdoctor/update ratio/2.weight"):
        assert name in dict(seen)
    assert "units of layer 1 are dead" in board.texts[-1]
    assert len(board.texts) == len(set(board.texts))


def test_a_run_of_weights_and_biases_gets_them_on_an_axis_of_their_own() -> None:
    run = Run()
    model, optimizer = made(dead=True)
    with watch(model, optimizer, options=PASSIVE, writer=run):
        train(model, optimizer, 20)
    assert run.metrics == [STEP, "netdoctor/*"]
    assert all(STEP in row for row in run.rows)
    assert {row[STEP] for row in run.rows if "netdoctor/loss" in row} == set(range(20))
    assert "units of layer 1 are dead" in run.summary["netdoctor/report"]


def test_a_writer_without_text_will_do() -> None:
    got: list[object] = []
    with watch(*made(), options=PASSIVE) as doctor:
        train(*made(), 3)
    Writer(SimpleNamespace(add_scalar=lambda *a: got.append(a))).write(doctor.recording, doctor.report())
    Writer(SimpleNamespace(log=got.append)).write(doctor.recording, doctor.report())
    assert len(got) > 6


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    model, optimizer = made(dead=True)
    doctor = watch(model, optimizer, options=PASSIVE)
    assert "nothing was watched yet" in doctor._repr_html_()
    with doctor:
        train(model, optimizer)
    page = doctor._repr_html_()
    assert page.startswith('<iframe title="netdoctor report" sandbox="allow-scripts"')
    assert "units of layer 1 are dead" in page
    assert page.count("<") == 2  # the page itself is escaped


def test_what_is_saved_is_judged_again(tmp_path: Path) -> None:
    model, optimizer = made(dead=True)
    with watch(model, optimizer, options=PASSIVE) as doctor:
        train(model, optimizer)
    doctor.save(tmp_path / "run.ndr")
    assert netdoctor.diagnose(tmp_path / "run.ndr", PASSIVE).to_json() == doctor.report().to_json()
