"""A recording on disk that is as new as the last second, whatever ends the process or fills the disk."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netdoctor import journal, recordingfile
from netdoctor.errors import MisuseError
from netdoctor.finding import Severity
from netdoctor.journal import PULSE, Journal
from netdoctor.judging import diagnose
from netdoctor.recording import Event, Fault, Recording, Role, Series, Site, Stat, Track
from tests.checks.builders import Builder

ROOT = Path(__file__).parents[1]
LONG = ROOT / "tests" / "reliability" / "programs" / "long.py"
SITE = Site("body", "Linear", Role.OUTPUT)


def recording(steps: int) -> Recording:
    """A recording as it would be after so many steps."""
    made = Builder(steps=max(1, steps)).linear("body").activation("act", "ReLU").optimizer("SGD", lr=0.1).done()
    at = np.arange(steps)
    made.steps, made.counts = steps, {"backward": steps}
    made.losses = {"loss": Series(at, 1.0 / (at + 1.0))}
    made.tracks[SITE, Stat.UNIT_ACTIVE] = Track(at, (at[:, None] + np.arange(3.0)) % 2)
    made.events = [Event(step, "backward") for step in range(min(steps, 5))]
    return made


def written(path: Path, *recordings: Recording) -> Journal:
    kept = Journal(path, recordingfile.head("0"))
    for one in recordings:
        kept.write(lambda one=one: one)
    return kept


def plain(value: Recording) -> str:
    value = copy.copy(value)
    value.blind_spots = []
    return "".join(sorted(recordingfile.lines(value)))


@pytest.mark.parametrize("steps", [[3], [0, 1], [1, 2, 3, 40], [5, 5], [40, 7]])
def test_it_reads_as_what_was_recorded_last(steps: list[int], tmp_path: Path) -> None:
    written(tmp_path / "j", *map(recording, steps))
    saved = recordingfile.load(tmp_path / "j")
    assert plain(saved.recording) == plain(recording(steps[-1]))
    assert saved.recording.blind_spots == [f"the run was cut off: what came after step {steps[-1]} is not in the file"]


def test_a_pulse_writes_what_changes_with_every_step(tmp_path: Path) -> None:
    kept = written(tmp_path / "j", recording(3))
    kept.write(lambda: Recording(steps=9, counts={"backward": 9}, losses=recording(9).losses), PULSE)
    found = recordingfile.load(tmp_path / "j").recording
    assert (found.steps, len(found.losses["loss"].steps), len(found.events)) == (9, 9, 3)
    assert len(found.tracks[SITE, Stat.UNIT_ACTIVE].steps) == 3


def test_what_did_not_change_is_not_written_again(tmp_path: Path) -> None:
    written(tmp_path / "j", recording(40))
    before = (tmp_path / "j").stat().st_size
    written(tmp_path / "j", recording(40), recording(40), recording(40))
    assert (tmp_path / "j").stat().st_size < before + 400  # the last losses and two commits


def test_a_series_that_was_thinned(tmp_path: Path) -> None:
    thin = recording(40)
    thin.losses = {"loss": Series(np.arange(0, 40, 2), np.ones(20))}
    written(tmp_path / "j", recording(38), thin)
    assert recordingfile.load(tmp_path / "j").recording.losses["loss"].values.tolist() == [1.0] * 20


def test_a_value_that_was_the_beginning_of_an_average(tmp_path: Path) -> None:
    one, two = recording(3), recording(3)
    two.losses = {"loss": Series(np.arange(3), np.array([1.0, 0.5, 9.0]))}
    written(tmp_path / "j", one, two)
    assert recordingfile.load(tmp_path / "j").recording.losses["loss"].values[-1] == 9.0


def test_names_that_change_leave_no_trace(tmp_path: Path) -> None:
    one, two = recording(3), recording(4)
    two.losses = {"loss (a.py:1)": two.losses["loss"], "loss (a.py:2)": two.losses["loss"]}
    written(tmp_path / "j", one, two)
    assert list(recordingfile.load(tmp_path / "j").recording.losses) == ["loss (a.py:1)", "loss (a.py:2)"]


def test_it_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is written anew when its changes outgrow the whole."""
    monkeypatch.setattr(journal, "SLACK", 2000)
    kept, sizes = written(tmp_path / "j", recording(20)), []
    for number in range(300):
        one = recording(20)
        one.faults = [Fault("here", f"another one every time {number}")]
        kept.write(lambda one=one: one)
        sizes.append((tmp_path / "j").stat().st_size)
    assert max(sizes) < 5 * sizes[0] + 2000
    assert recordingfile.load(tmp_path / "j").recording.faults[0].error.endswith("299")
    assert sorted(os.listdir(tmp_path)) == ["j"]


def test_what_was_there_before_is_kept_until_there_is_something_new(tmp_path: Path) -> None:
    (tmp_path / "j").write_text("precious")
    kept = Journal(tmp_path / "j", recordingfile.head("0"))
    assert (tmp_path / "j").read_text() == "precious"
    kept.write(lambda: recording(1))
    assert recordingfile.load(tmp_path / "j").recording.steps == 1


# --- cut off anywhere ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("journal") / "j"
    written(path, *map(recording, (1, 2, 3, 8, 9)))
    return path.read_bytes()


@settings(max_examples=150, deadline=None)
@given(share=st.floats(0, 1))
def test_cut_off_at_any_byte(whole: bytes, tmp_path_factory: pytest.TempPathFactory, share: float) -> None:
    """Everything up to the last commit that is whole is there; nothing else."""
    cut = whole[: int(share * len(whole))]
    path = tmp_path_factory.getbasetemp() / "cut"
    path.write_bytes(cut)
    if cut.count(b"\n") == 0 and not cut.endswith(b"}"):
        with pytest.raises(MisuseError):
            recordingfile.load(path)
        return
    lines = cut.split(b"\n")
    complete = [line for line in lines if _is_whole(line)]
    steps = [json.loads(line)["commit"] for line in complete if b'"commit"' in line]
    found = recordingfile.load(path).recording
    expected = recording(steps[-1]) if steps else Recording()
    assert plain(found) == plain(expected)


def _is_whole(line: bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_bytes_that_were_changed(whole: bytes, tmp_path_factory: pytest.TempPathFactory, seed: int) -> None:
    """Refused with a line, or read as a recording that can be judged: never another error."""
    draw = random.Random(seed)
    broken = bytearray(whole)
    for _ in range(draw.randint(1, 20)):
        broken[draw.randrange(len(broken))] = draw.choice(b'{}[]",:0123456789truefalsn-e\n\\u')
    path = tmp_path_factory.getbasetemp() / "broken"
    path.write_bytes(bytes(broken))
    with contextlib.suppress(MisuseError):
        diagnose(path)


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        '{"part": 1}',
        '{"part": "losses", "key": "loss", "from": 1, "value": {}}',
        '{"part": "losses", "key": "loss", "from": -1, "value": {"steps": [], "values": []}}',
        '{"part": "losses", "key": "loss", "from": "1", "value": {"steps": [1], "values": [1]}}',
        '{"part": "steps", "at": 0, "value": "many"}',
        '{"commit": "soon"}',
        '{"part": "losses", "key": "loss", "value": {"steps": [3, 1], "values": [1, 1]}}',
    ],
)
def test_a_line_that_makes_no_sense(line: str, tmp_path: Path) -> None:
    head = json.dumps(recordingfile.head("0") | {"journal": True})
    (tmp_path / "j").write_text(f'{head}\n{line}\n{{"commit": 1}}\n')
    with pytest.raises(MisuseError):
        recordingfile.load(tmp_path / "j")


# --- disks and forks -------------------------------------------------------------------------------------------------


@pytest.fixture
def full_after(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """`os.write` as it is on a disk with so many bytes left."""
    left, write = [10**9], os.write

    def limited(file: int, data: bytes) -> int:
        if left[0] <= 0:
            raise OSError(28, "No space left on device")
        count = write(file, bytes(data)[: left[0]])
        left[0] -= count
        return count

    monkeypatch.setattr(os, "write", limited)
    return left


@pytest.mark.parametrize("room", [0, 1, 100, 700])
def test_a_disk_that_fills_up(room: int, full_after: list[int], tmp_path: Path) -> None:
    kept = written(tmp_path / "j", recording(3))
    full_after[0] = room
    changed = recording(30)
    changed.facts = {"long": "x" * 1000}
    kept.write(lambda: changed)
    assert kept.failure == "No space left on device"
    assert not kept.due()
    assert plain(recordingfile.load(tmp_path / "j").recording) == plain(recording(3))


def test_a_disk_that_is_full_from_the_start(full_after: list[int], tmp_path: Path) -> None:
    (tmp_path / "j").write_text("precious")
    full_after[0] = 50
    kept = written(tmp_path / "j", recording(3))
    assert kept.failure
    assert (tmp_path / "j").read_text() == "precious"
    assert sorted(os.listdir(tmp_path)) == ["j"]


def test_it_does_not_write_through_a_link_beside(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / f".j.{os.getpid()}.journal").symlink_to(victim)
    assert written(tmp_path / "j", recording(1)).failure
    assert victim.read_text() == "precious"


def test_a_fork_leaves_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = written(tmp_path / "j", recording(1))
    monkeypatch.setattr(journal, "EVERY", 0.0)
    kept.write(lambda: recording(2))
    assert kept.due()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert not kept.due()


# --- a real process --------------------------------------------------------------------------------------------------


def started(path: Path, **options: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "netdoctor", "run", "--no-experiments", "--save", str(path), str(LONG)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def steps_until(process: subprocess.Popen[str], seconds: float) -> list[tuple[float, int]]:
    """(time, steps taken) as the program says it, for so many seconds of training."""
    seen: list[tuple[float, int]] = []
    assert process.stdout is not None
    for line in process.stdout:
        seen.append((time.monotonic(), int(line)))
        if seen[-1][0] - seen[0][0] > seconds:
            break
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.7, 3.1, 5.3])
def test_kill_9(seconds: float, tmp_path: Path) -> None:
    """The report of the file reaches to the last second or two before the end, with the machine as busy as it is."""
    with started(tmp_path / "run") as process:
        seen = steps_until(process, seconds)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    report = diagnose(tmp_path / "run")
    at = next(when for when, step in seen if step >= report.steps)
    assert seen[-1][0] - at <= 2.0
    assert report.verdict == "healthy"
    assert report.at_least(Severity.WARNING) == ()
    assert report.ended == "cut off"
    assert any("cut off" in spot for spot in report.blind_spots)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of file sizes")
def test_a_real_limit_on_the_disk(tmp_path: Path) -> None:
    """The file may not grow beyond some bytes: the training goes on, what was written stays whole, and that is said."""
    import resource

    room = 40_000
    process = started(
        tmp_path / "run", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    )
    steps_until(process, 12.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "the recording on disk ends at step" in " ".join(err.split())
    assert "File too large" in err
