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
from netdoctor.capture.recorder import SeriesRecorder
from netdoctor.capture.sharded import Shards, _distinct, _Places, together
from netdoctor.capture.statistics import Moments
from netdoctor.recording import Recording, Role, Stat, shared

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
    assert sharded.blind_spots == []
    found = {(site.parameter, site.role, stat): track for (site, stat), track in sharded.tracks.items()}
    kinds = set()
    for (site, stat), track in alone.tracks.items():
        if site.parameter:
            other = found[site.parameter, site.role, stat]
            assert (other.steps == track.steps).all()
            np.testing.assert_allclose(other.values, track.values, 1e-4, 1e-7, err_msg=f"{site} {stat}")
            kinds.add(stat)
    assert {Stat.RMS, Stat.STD, Stat.ABSMAX, Stat.NONFINITE, Stat.DISTINCT_ROWS, Stat.UNIT_ZERO_GRADIENT} <= kinds
    steps, whole, one = shared(sharded.scalars["gradient norm"], alone.scalars["gradient norm"])
    assert len(steps) >= 8
    assert len(steps) == len(sharded.scalars["gradient norm"].steps)  # nothing that is true of one part only
    np.testing.assert_allclose(whole, one, rtol=1e-4)
    spread = {(h.parameter, h.role): h for h in sharded.histograms}
    for histogram in alone.histograms:  # of matrices this small every value counts
        parts = spread[histogram.parameter, histogram.role]
        there = np.isin(histogram.steps, parts.steps)
        assert there[:-1].all()  # the weights at the end are left out
        np.testing.assert_allclose(parts.low, histogram.low[there], rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(parts.high, histogram.high[there], rtol=1e-4, atol=1e-7)
        assert (parts.counts.sum(1) == histogram.counts[there].sum(1)).all()
        assert np.abs(parts.counts - histogram.counts[there]).sum() <= 2 * there.sum()  # values at the edge of a bin


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
    made._find = lambda: {name: _Places([], [], [], [], [], [], 12, 12, 4, 0, 2) for name in names}  # type: ignore[method-assign]
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


def agreed(copies: int = 1) -> list[Shards]:
    """Two processes that agreed on one sharded parameter of 12 numbers; each holds half of it, or with two copies all."""
    store, pair = dist.HashStore(), [shards("a"), shards("a")]
    other = threading.Thread(target=pair[1].agree, args=(store, 1, 2, 5, timedelta(seconds=5)))
    other.start()
    pair[0].agree(store, 0, 2, 5, timedelta(seconds=5))
    other.join()
    for one in pair:
        one._places["a"].weight.append((5, Moments(6 * copies, 0.0, 6.0, -1.0, 1.0)))
    return pair


@pytest.mark.parametrize("copies", [1, 2])
def test_the_norm_over_all_gradients_counts_every_part_once(copies: int) -> None:
    pair = agreed(copies)
    for one, squares in zip(pair, (4.0, 9.0), strict=True):
        one._observer.recorder.parts.step = 5
        one._observer.recorder.parts.squares[0] = squares if copies == 1 else 13.0, 3.0  # 3: of what all processes hold
    messages = torch.stack([message for one in pair if (message := one.message(5)) is not None])
    pair[0].hear(5, messages)
    assert pair[0]._observer.recorder.all_scalars()["gradient norm"].values.tolist() == [4.0]


def test_of_this_processs_norms_only_a_nan_stays() -> None:
    recorder = Observer().recorder
    for step, norm in enumerate([1.0, 2.0, math.nan, 4.0]):
        recorder.scalar("gradient norm", step, norm)
    recorder.wholes["gradient norm"] = whole = SeriesRecorder()
    for step, norm in ((1, 20.0), (3, 40.0)):
        whole.add(step, norm)
    found = recorder.all_scalars()["gradient norm"]
    assert found.steps.tolist() == [1, 2, 3]
    np.testing.assert_array_equal(found.values, [20.0, math.nan, 40.0])


@pytest.mark.parametrize("parts", [([1.0, 2.0], [3.0, 4.0, 5.0]), ([], [1.0, 5.0])])
def test_histograms_are_of_what_all_processes_hold(parts: tuple[list[float], list[float]]) -> None:
    pair, place = agreed(), ("a", Role.WEIGHT)
    for one, values in zip(pair, parts, strict=True):
        one._observer.recorder.parts.sampling(5)
        if values:
            one._observer.recorder.parts.sample(5, place, torch.tensor(values))
    messages = torch.stack([message for one in pair if (message := one.samples(5)) is not None])
    assert pair[0].samples(6) is None
    pair[0].hear_samples(5, messages)
    ((step, low, high, counts),) = pair[0]._observer.recorder.parts.histograms[place]
    assert (step, low, high) == (5, 1.0, 5.0)
    assert counts.sum() == sum(map(len, parts))
