"""Sharded parameters: what two processes measured of their parts is what one process measures of the whole."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from netdoctor import recordingfile
from netdoctor.capture import statistics
from netdoctor.capture.observer import Observer
from netdoctor.capture.sharded import Shards, _distinct, _Places, together
from netdoctor.capture.statistics import Moments
from netdoctor.recording import Recording, Stat

ROOT = Path(__file__).parents[2]
ALIKE = ROOT / "tests" / "reliability" / "programs" / "alike.py"


def recorded(path: Path, how: str, *launcher: str) -> Recording:
    command = [sys.executable, *launcher, "-m", "netdoctor", "run", "--no-experiments", "--save", str(path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([*command, str(ALIKE), how], env=environment, check=True, capture_output=True, timeout=300)
    return recordingfile.load(path).recording


@pytest.mark.slow
def test_two_processes_measure_what_one_does(tmp_path: Path) -> None:
    alone = recorded(tmp_path / "alone.json", "alone")
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    sharded = recorded(tmp_path / "sharded.json", "sharded", *launcher)
    assert sharded.faults == []
    assert [spot for spot in sharded.blind_spots if "were measured as a whole" not in spot] == []
    found = {(site.parameter, site.role, stat): track for (site, stat), track in sharded.tracks.items()}
    kinds = set()
    for (site, stat), track in alone.tracks.items():
        if site.parameter:
            other = found[site.parameter, site.role, stat]
            assert (other.steps == track.steps).all()
            np.testing.assert_allclose(other.values, track.values, 1e-4, 1e-7, err_msg=f"{site} {stat}")
            kinds.add(stat)
    assert {Stat.RMS, Stat.STD, Stat.ABSMAX, Stat.NONFINITE, Stat.DISTINCT_ROWS, Stat.UNIT_ZERO_GRADIENT} <= kinds


@pytest.mark.parametrize("where", [None, 3, 90])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_moments_of_parts(where: int | None, bad: float, size: float) -> None:
    values = torch.randn(100, generator=torch.Generator().manual_seed(0)) * size
    if where is not None:
        values[where] = bad
    parts = [statistics.moments(part) for part in values.split([40, 35, 25])]
    joined = together([*parts, Moments(0, 0.0, 0.0, 0.0, 0.0)])
    assert joined is not None
    np.testing.assert_allclose(
        list(joined.stats().values()), list(statistics.moments(values).stats().values()), rtol=1e-5, atol=1e-5 * size
    )


def test_a_part_without_extremes() -> None:
    """After the first steps extremes are measured only where something is wrong; then the whole is wrong too."""
    brief, wrong = Moments(10, 0.0, 10.0, 0.0, 0.0, 1.0, 1), statistics.moments(torch.tensor([1.0, math.nan]))
    joined = together([brief, brief])
    assert joined is not None
    assert joined.stats() == {Stat.RMS: 1.0, Stat.NONFINITE: 0.0}
    broken = together([brief, wrong])
    assert broken is not None
    assert broken.stats()[Stat.NONFINITE] == 1.0
    assert together([]) is None


def part(number: float, mean: float) -> tuple[float, Moments]:
    return number, Moments(10, 10 * mean, 10 * mean**2, mean, mean)


@pytest.mark.parametrize(
    ("parts", "common", "share"),
    [
        ([part(1, 0.1), part(1, 0.1)], 0, 1 / 8),  # all rows the same
        ([part(1, 0.1), part(1, 0.2)], 0, 2 / 8),  # alike in each process, and others
        ([part(4, 0.1), part(4, 0.1)], 0, 1.0),
        ([part(4, 0.1), part(4, 0.1)], 1, 7 / 8),  # a zero row in both
        ([part(0, 0.0), part(8, 0.1)], 0, 1.0),  # one process has no part
        ([part(0, 0.0)], 0, None),
    ],
)
def test_distinct_rows_of_parts(parts: list[tuple[float, Moments]], common: int, share: float | None) -> None:
    assert _distinct(8, parts, common) == share


def shards(*names: str) -> Shards:
    made = Shards(Observer())
    made._find = lambda: {name: _Places([], [], [], [], [], [], 4, 0, 2) for name in names}  # type: ignore[method-assign]
    made._observer.blind_spots["sharded"] = "weights are sharded"
    return made


def test_processes_with_other_parameters_exchange_nothing() -> None:
    store, one, two = dist.HashStore(), shards("a", "b"), shards("a")
    store.set("shards 0", "5 something else")
    two.agree(store, 1, 2, 5, timedelta(seconds=1))
    one.agree(store, 0, 2, 5, timedelta(seconds=1))
    assert one.message(5) is None
    assert two.message(5) is None
    one.say()
    assert "do not hold parts of the same parameters" in one._observer.blind_spots["sharded"]


def test_nobody_waits_for_ever_and_one_verdict_holds_for_all() -> None:
    store, early, late = dist.HashStore(), shards("a"), shards("a")
    early.agree(store, 0, 2, 5, timedelta(milliseconds=50))  # nobody else is there
    late.agree(store, 1, 2, 5, timedelta(milliseconds=50))  # sees the same parameters, but the other one is gone
    assert early.message(5) is None
    assert late.message(5) is None


def test_processes_that_agree_exchange_messages_of_one_length() -> None:
    store, one, two = dist.HashStore(), shards("a", "b"), shards("a", "b")
    other = threading.Thread(target=two.agree, args=(store, 1, 2, 5, timedelta(seconds=5)))
    other.start()
    one.agree(store, 0, 2, 5, timedelta(seconds=5))
    other.join()
    mine, theirs = one.message(5), two.message(5)
    assert mine is not None
    assert theirs is not None
    assert mine.shape == theirs.shape
    one.hear(5, torch.stack([mine, theirs]))  # nothing was measured: nothing to put anywhere
    one.lost("one of them did not answer")
    one.say()
    assert "one of them did not answer" in one._observer.blind_spots["sharded"]
