"""The rest of our entry points made to raise, one at a time; test_containment.py has the taps themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from netdoctor import journal
from netdoctor.capture import (
    data,
    evaluation,
    flags,
    frozen_norms,
    loading,
    origin,
    parts,
    ranks,
    recorder,
    retention,
    sharded,
    step,
    stepped,
    tape,
    tree,
    twins,
    unseen,
)
from netdoctor.capture import source as source_lines
from netdoctor.capture.watch import Watch
from netdoctor.journal import Journal
from netdoctor.judging import Options
from netdoctor.session import Session
from tests.capture.test_containment import Broken, methods, train

OWNERS: list[Any] = [
    *(data.DataRecorder, evaluation.EvaluationRecorder, stepped.StepWatch, retention.Retention, ranks.Ranks, Journal),
    *(recorder.SeriesRecorder, step.Copies, step.Replay, step.TrainingStep, origin._Search, Watch),
    *(loading.LoaderClock, sharded.Shards, parts.Parts, flags.ModuleFlags, frozen_norms.FrozenNorms),
]
BARE = {"Ranks._contained"}  # the containment itself
METHODS = [(o, name) for o in OWNERS for name in methods(o) if f"{o.__name__}.{name}" not in BARE]
FUNCTIONS: list[tuple[Any, str]] = [
    *((tape, name) for name in ("walk", "random_states", "version")),
    *((tree, name) for name in ("_children",)),
    *((twins, "twins"), (retention, "holder"), (unseen, "see_model"), (ranks, "alone"), (ranks, "_sample")),
    *((source_lines, name) for name in ("source_line", "_judge")),
    *((journal, name) for name in ("_places", "_encoded", "_write_all")),
    *((origin, name) for name in ("_broken_parameter", "_operand", "_rows")),
]


@pytest.fixture(scope="module")
def alone() -> list[Tensor]:
    """The training's own results."""
    return train()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name"),
    [pytest.param(o, n, id=f"{o.__name__.rpartition('.')[2]}.{n}") for o, n in [*METHODS, *FUNCTIONS]],
)
def test_broken(monkeypatch: pytest.MonkeyPatch, alone: list[Tensor], owner: Any, name: str, tmp_path: Path) -> None:
    """The training comes out the same, nothing of ours reaches it, and there is a report."""
    monkeypatch.setattr(journal, "EVERY", 0.0)
    session = Session(Options(experiments=False))
    session.keep(tmp_path / "kept")

    def broken(*args: Any, **kwargs: Any) -> None:
        raise Broken("on purpose")

    monkeypatch.setattr(owner, name, broken)
    try:
        session.start()
        try:
            watched = train()
        finally:
            session.stop()
        report = session.report()
    finally:
        session._taps.remove()
    assert all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(alone, watched, strict=True))
    assert report.steps == 12 or report.crashes
    assert report.to_json()
