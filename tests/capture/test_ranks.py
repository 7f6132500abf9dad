"""Several processes: one report, compared weights, the user's communication as it was, and nobody kept waiting."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAMS = ROOT / "tests" / "reliability" / "programs"
PARALLEL, LOGGED = PROGRAMS / "parallel.py", PROGRAMS / "logged.py"
pytestmark = pytest.mark.slow


@dataclass
class Run:
    """How two processes ended."""

    codes: list[int] = field(default_factory=list)
    out: list[str] = field(default_factory=list)
    err: list[str] = field(default_factory=list)
    seconds: float = 0.0
    report: dict | None = None


def two_processes(
    folder: Path, how: str, observed: tuple[bool, bool] = (True, True), options: tuple[str, ...] = ()
) -> Run:
    """Start both ranks as torchrun would, without its habit of ending all when one ends; each with its own netdoctor."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    environment["PYTHONPATH"] = str(ROOT)
    program = [str(LOGGED), str(folder / "said"), str(PARALLEL), how]
    started, processes = time.perf_counter(), []
    for rank in range(2):
        files = ["--json", str(folder / f"report{rank}.json")]
        door = ["-m", "netdoctor", "run", *files, *options] if observed[rank] else []
        processes.append(
            subprocess.Popen(
                [sys.executable, *door, *program],
                env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    run = Run()
    try:
        for process in processes:
            out, err = process.communicate(timeout=180)
            run.codes.append(process.returncode)
            run.out.append(out)
            run.err.append(err)
    finally:
        for process in processes:
            process.kill()
    run.seconds = time.perf_counter() - started
    assert not (folder / "report1.json").exists()
    if (folder / "report0.json").exists():
        run.report = json.loads((folder / "report0.json").read_text())
        assert run.report["crashes"] == []
    return run


def said(folder: Path) -> list[str]:
    """What the two ranks asked of one another."""
    return [(folder / f"said{rank}").read_text() for rank in range(2)]


@pytest.mark.parametrize("how", ["ddp", "sharded"])
def test_a_healthy_training(how: str, tmp_path: Path) -> None:
    """The same losses to the last digit, the same communication in the same order, one report, which finds nothing."""
    alone, watched = tmp_path / "alone", tmp_path / "watched"
    alone.mkdir()
    watched.mkdir()
    plain = two_processes(alone, how, (False, False))
    run = two_processes(watched, how, options=("--budget", "5"))
    assert run.codes == [0, 0], run.err
    assert run.out == plain.out
    assert said(watched) == said(alone)
    assert len(said(alone)[0].splitlines()) > 60
    assert run.report is not None
    assert run.report["findings"] == []
    assert run.report["blind_spots"] == []
    assert "netdoctor" not in run.err[1]


def test_a_model_called_past_its_wrapper(tmp_path: Path) -> None:
    run = two_processes(tmp_path, "bypassed", options=("--no-experiments",))
    assert run.codes == [1, 0], run.err
    assert run.report is not None
    finding = run.report["findings"][0]
    assert finding["check"] == "rank-desync"
    assert "0.weight after step 0" in finding["title"]
    assert finding["location"]["text"] == "loss.backward()"


def test_a_model_that_talks_is_not_replayed(tmp_path: Path) -> None:
    """While the processes live a replay must not talk; when they are gone it cannot. Either way the report says so."""
    run = two_processes(tmp_path, "talking", options=("--budget", "5"))
    assert run.codes[1] == 0, run.err
    assert run.report is not None
    assert run.report["steps"] == 60
    assert any(experiment["verdict"] == "could not run" for experiment in run.report["experiments"])
    assert run.seconds < 120


def test_a_rank_that_dies(tmp_path: Path) -> None:
    """The other one trains on to its end and is reported; nobody waits longer than the limit."""
    run = two_processes(tmp_path, "dying", options=("--no-experiments",))
    assert run.codes[1] == 7
    assert "rank 0 loss" in run.out[0]
    assert run.report is not None
    assert run.report["steps"] == 60
    assert any("were not compared any further" in spot for spot in run.report["blind_spots"])
    assert run.seconds < 90


def test_a_rank_that_raises(tmp_path: Path) -> None:
    """Its traceback comes through; the other one's own communication fails as it would without us, and is reported."""
    run = two_processes(tmp_path, "failing", options=("--no-experiments",))
    assert run.codes[1] == 1
    assert "rank 1 has enough" in run.err[1]
    assert run.report is not None
    assert run.report["steps"] >= 10
    assert run.seconds < 90


def test_only_one_process_under_netdoctor(tmp_path: Path) -> None:
    run = two_processes(tmp_path, "ddp", (True, False), options=("--no-experiments",))
    assert run.codes == [0, 0], run.err
    assert run.report is not None
    assert any("not every process runs under netdoctor" in spot for spot in run.report["blind_spots"])
