"""Recordings in files: what is written is read, and what is no recording is refused with its line."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from netdoctor import recordingfile
from netdoctor.codec import builder, built, plain
from netdoctor.data import Columns, Evaluation, TensorFacts
from netdoctor.errors import MisuseError
from netdoctor.graph import Draw, Operation, StepGraph, Value
from netdoctor.recording import (
    Arm,
    Event,
    Excerpt,
    Fault,
    Header,
    Histogram,
    Kind,
    Layer,
    Operand,
    Optimizer,
    Origin,
    Parameter,
    Recording,
    Role,
    Series,
    Site,
    SourceLine,
    Stat,
    Track,
)
from netdoctor.recordingfile import Saved, lines, load
from tests.render import builders

OLD = Path(__file__).parent / "data" / "recording-format-1.ndr"

TEXT = st.text(max_size=6) | st.sampled_from(["NaN", "Infinity", "text", "a\nb", "\ud800"])
FLOAT = st.floats()
COUNT = st.integers(0, 9)
SCALAR = TEXT | FLOAT | st.booleans() | st.integers(-(2**60), 2**60)
FACTS = st.dictionaries(TEXT, SCALAR, max_size=3)


def arrays(*shape: int) -> st.SearchStrategy[np.ndarray]:
    size = int(np.prod(shape))
    numbers = st.floats(width=64) | st.sampled_from([0.0, 1.0, 2.0**60])
    return st.lists(numbers, min_size=size, max_size=size).map(lambda v: np.array(v, np.float64).reshape(shape))


def steps(count: int) -> st.SearchStrategy[np.ndarray]:
    ascending = st.lists(st.integers(0, 2**40), min_size=count, max_size=count).map(sorted)
    return ascending.map(lambda v: np.array(v, np.int64))


def counted(make: Callable[[int], st.SearchStrategy[Any]]) -> st.SearchStrategy[Any]:
    return st.integers(0, 3).flatmap(make)


SERIES = counted(lambda n: st.builds(Series, steps(n), arrays(n)))
TRACKS = counted(lambda n: st.builds(Track, steps(n), arrays(n) | arrays(n, 2) | arrays(n, 0)))
LINES = st.none() | st.builds(SourceLine, TEXT, COUNT, TEXT)
SITES = st.builds(Site, TEXT, TEXT, st.sampled_from(Role), COUNT, TEXT)
LAYERS = st.builds(Layer, TEXT, TEXT, st.sampled_from(Kind), COUNT, COUNT, TEXT, COUNT, TEXT, source=LINES)
PARAMETERS = st.builds(
    Parameter, TEXT, TEXT, TEXT, st.lists(COUNT, max_size=2).map(tuple), TEXT, st.booleans(), st.none() | COUNT
)
GROUPS = st.lists(FACTS, max_size=2).map(tuple)
OPTIMIZERS = st.builds(Optimizer, COUNT, TEXT, GROUPS, st.lists(TEXT, max_size=2).map(tuple), LINES)
EVENTS = st.builds(Event, COUNT, TEXT, TEXT, FLOAT, LINES)
OPERANDS = st.builds(Operand, TEXT, st.lists(COUNT, max_size=2).map(tuple), TEXT, FLOAT, FLOAT, COUNT)
ORIGINS = st.builds(
    Origin, TEXT, TEXT, COUNT, inputs=st.lists(OPERANDS, max_size=2).map(tuple), output=st.none() | OPERANDS,
    attributes=FACTS, samples=st.lists(COUNT, max_size=2).map(tuple),
)  # fmt: skip
ARMS = st.builds(
    Arm, TEXT, counted(arrays), FLOAT, FACTS, st.dictionaries(TEXT, st.tuples(FLOAT, FLOAT), max_size=2),
    st.dictionaries(TEXT, counted(arrays), max_size=2), TEXT,
)  # fmt: skip
COLUMNS = st.builds(Columns, *[arrays(2)] * len(dataclasses.fields(Columns)))
TENSORS = st.builds(
    TensorFacts, TEXT, st.just((2, 2)), TEXT, steps(2), COUNT, FLOAT, FLOAT, st.booleans(), COLUMNS,
    classes=st.none() | arrays(2, 3),
)  # fmt: skip
GRAPHS = st.builds(
    lambda name, attributes, low: StepGraph(
        [Operation(0, name, "", "", (0,), (1,), attributes)],
        [Value(0, (2,), "float32", "input", low=low), Value(1, (), "float32", "operation", 0)],
        1, 0, (Draw(1, (1,)), Draw(0)), (0,), (1,),
    ),
    TEXT, FACTS, FLOAT,
)  # fmt: skip
RECORDINGS = st.builds(
    Recording,
    header=st.builds(Header, TEXT, TEXT, TEXT, observing_s=FLOAT),
    steps=COUNT,
    layers=st.lists(LAYERS, max_size=2),
    parameters=st.dictionaries(TEXT, PARAMETERS, max_size=2),
    optimizers=st.lists(OPTIMIZERS, max_size=1),
    losses=st.dictionaries(TEXT, SERIES, max_size=2),
    scalars=st.dictionaries(TEXT, SERIES, max_size=2),
    tracks=st.dictionaries(st.tuples(SITES, st.sampled_from(Stat)), TRACKS, max_size=2),
    events=st.lists(EVENTS, max_size=2),
    counts=st.dictionaries(TEXT, COUNT, max_size=2),
    graph=st.none() | GRAPHS,
    graphs=st.lists(GRAPHS, max_size=1),
    origin=st.none() | ORIGINS,
    arms=st.dictionaries(TEXT, ARMS, max_size=2),
    faults=st.lists(st.builds(Fault, TEXT, TEXT, COUNT), max_size=1),
    blind_spots=st.lists(TEXT, max_size=2),
    facts=FACTS,
    inputs=st.lists(TENSORS, max_size=1),
    targets=st.lists(TENSORS, max_size=1),
    excerpts=st.lists(st.builds(Excerpt, TEXT, COUNT, st.lists(TEXT, max_size=2).map(tuple)), max_size=1),
)


def write(folder: Path, recording: Recording, report: Any = None) -> Path:
    path = folder / "run.ndr"
    path.write_text("".join(lines(recording, report)), encoding="utf-8")
    return path


def same(one: Any, other: Any) -> bool:
    """Equal in every field and entry, where NaN equals NaN, arrays have the same type and shape, and 1 is not 1.0."""
    if type(one) is not type(other):
        return False
    if dataclasses.is_dataclass(one):
        return all(same(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.shape == other.shape and np.array_equal(one, other, equal_nan=True)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@given(RECORDINGS)
@settings(
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    deadline=None,
    max_examples=150,
)
def test_what_is_written_is_read(tmp_path: Path, recording: Recording) -> None:
    if recording.graph is None and recording.graphs:
        recording.graph = recording.graphs[0]
    assert same(load(write(tmp_path, recording)).recording, recording)


def test_every_field_of_a_recording_takes_part(tmp_path: Path) -> None:
    """The property above would pass over a new field; this one names it."""
    made = builders.recording()
    made.graphs = [StepGraph([], [Value(0, (), "float32", "input")])]
    made.graph, made.origin = made.graphs[0], Origin("forward", "NaN", 3)
    facts = TensorFacts("x", (2,), "float32", np.array([0]), 1, 0.0, 1.0, False, Columns(*[np.zeros(1)] * 10))
    made.inputs, made.targets, made.facts = [facts], [facts], {"pretrained": True}
    made.evaluations = [Evaluation(np.array([3]), np.array([0.5]), inputs=(facts,))]
    made.faults, made.blind_spots = [Fault("a", "b")], ["c"]
    two = np.array([0.0, 1.0])
    made.histograms = [Histogram("w", Role.WEIGHT, np.array([0, 4]), -two, two, np.array([[1, 2], [0, 3]]))]
    made.excerpts, made.counts = [Excerpt("train.py", 3, ("a", "b"))], {"step": 1}
    empty = Recording()
    assert [f.name for f in dataclasses.fields(made) if same(getattr(made, f.name), getattr(empty, f.name))] == []
    again = load(write(tmp_path, made)).recording
    assert same(again, made)
    assert again.graph is again.graphs[0]


def test_the_report_of_the_time_comes_back(tmp_path: Path) -> None:
    report = builders.sick()
    saved = load(write(tmp_path, builders.recording(), report))
    assert saved.report is not None
    assert saved.report.to_json() == report.to_json()


def test_the_file_is_lines_of_strict_json_that_begin_with_the_format(tmp_path: Path) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    text = write(tmp_path, builders.recording(nan_at=5), builders.sick()).read_text(encoding="ascii")
    pieces = [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
    assert pieces[0] == {"format": 1, "holds": "recording", "netdoctor": "0.1.0"}
    assert pieces[-1] == {"part": "end"}


def test_a_file_of_format_1_from_before_still_opens() -> None:
    saved = load(OLD)
    assert saved.recording.header.target == "train.py"
    assert len(saved.recording.layers) == 6
    assert saved.recording.losses["loss"].values[0] == pytest.approx(2.3318, abs=1e-3)
    assert saved.report is not None
    assert saved.report.verdict == "sick"


def test_a_field_that_an_old_file_lacks_has_its_default_and_new_ones_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x"
    head = '{"format": 1, "holds": "recording"}\n'
    layer = '{"part": "layers", "value": {"path": "a", "type": "Linear", "kind": "linear", "order": 0, "colour": 1}}\n'
    path.write_text(head + layer + '{"part": "sounds", "value": []}\n{"part": "end"}\n')
    assert load(path).recording == Recording(layers=[Layer("a", "Linear", Kind.LINEAR, 0)])


@pytest.mark.parametrize("cut", [1, 40, 2000])
def test_a_file_that_was_cut_short_gives_what_is_there(cut: int, tmp_path: Path) -> None:
    path = write(tmp_path, builders.recording())
    path.write_bytes(path.read_bytes()[:-cut])
    recording = load(path).recording
    assert recording.layers == builders.recording().layers
    assert [spot for spot in recording.blind_spots if "cut short" in spot] == (
        [] if cut == 1 else recording.blind_spots
    )
    assert bool(recording.blind_spots) == (cut > 1)


def test_later_pieces_go_on_where_earlier_ones_ended(tmp_path: Path) -> None:
    text = "".join(lines(builders.recording()))
    head, body = text.splitlines(keepends=True)[0], text.splitlines(keepends=True)[1:-1]
    later = [line for line in body if '"losses"' in line or '"events"' in line]
    path = tmp_path / "x"
    path.write_text(head + "".join(body + later) + '{"part": "end"}\n')
    once, twice = builders.recording(), load(path).recording
    assert same(twice.losses, once.losses)
    assert len(twice.events) == 2 * len(once.events)


def piece(part: str, value: Any, **more: Any) -> str:
    return json.dumps({"part": part, "value": value} | more)


LAYER = {"path": "a", "type": "Linear", "kind": "linear", "order": 0}
SITE = {"module": "a", "layer": "b", "role": "output"}
OPERATION = {"index": 0, "name": "a", "module": "", "module_type": "", "inputs": [7], "outputs": []}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("[]", 'must be an object with a "part"'),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (piece("steps", "3"), "steps must be a whole number"),
        (piece("steps", True), "steps must be a whole number"),
        (piece("layers", 3), "layers must be an object"),
        (piece("layers", {"path": "a"}), "layers.type must be there"),
        (piece("layers", LAYER | {"kind": "round"}), "layers.kind must be one of linear"),
        (piece("layers", LAYER | {"kind": []}), "layers.kind must be one of linear"),
        (piece("losses", {"steps": [0], "values": [1.0]}), "must have a text as their key"),
        (piece("losses", {"steps": [0], "values": [1.0, 2.0]}, key="a"), "one value, or one row of values, per step"),
        (piece("losses", {"steps": [1, 0], "values": [1, 2]}, key="a"), "ascending steps"),
        (piece("losses", {"steps": [0], "values": ["much"]}, key="a"), "losses.a.values must be a number"),
        (piece("losses", {"steps": [2**70], "values": [1]}, key="a"), "numbers of 64 bits"),
        (piece("losses", {"steps": [0], "values": [10**400]}, key="a"), "numbers of 64 bits"),
        (piece("losses", {"steps": [0.5], "values": [1.0]}, key="a"), "losses.a.steps must be a whole number"),
        (piece("tracks", {"steps": [], "values": []}, key=[SITE, "loudness"]), "tracks.key[1] must be one of"),
        (piece("tracks", {"steps": [], "values": []}, key=[SITE]), "tracks.key must be a list of 2"),
        (
            piece("tracks", {"steps": [0], "values": {"shape": [2, 2**40], "values": []}}, key=[SITE, "mean"]),
            "as many numbers as its shape says",
        ),
        (piece("header", {"observing_s": None}), "header.observing_s must be a number"),
        (piece("facts", {"a": None}), "facts.a must be"),
        (piece("graph", {"operations": [OPERATION], "values": []}), "refers to an operation or a value"),
        (piece("graph", {"draws": [{"value": 0, "log_probs": [1]}]}), "refers to an operation or a value"),
        (piece("report", {"format": 9}), "report of format 9"),
    ],
)
def test_bad_pieces_are_named(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.ndr"
    path.write_text('{"format": 1, "holds": "recording"}\n' + line + '\n{"part": "end"}\n')
    with pytest.raises(MisuseError) as raised:
        load(path)
    assert says in str(raised.value)
    assert "bad.ndr" in str(raised.value)
    assert len(str(raised.value)) < 600


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]\n", b"\xff\xfe\n", b"[" * 100_000, b'{"holds": "recording"}\n', b"{\n 1}"]
)
def test_files_that_are_no_recording(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(MisuseError, match="is not a recording of netdoctor"):
        load(path)


@pytest.mark.parametrize("form", [0, 2])
def test_other_formats_are_refused_by_their_number(form: int, tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_text(json.dumps({"format": form, "holds": "recording"}) + "\n")
    with pytest.raises(MisuseError, match=f"format {form}; this version of netdoctor reads formats up to 1"):
        load(path)


def test_sizes_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, builders.recording())
    monkeypatch.setattr(recordingfile, "LONGEST", 300)
    with pytest.raises(MisuseError, match="has a line of more than"):
        load(path)
    monkeypatch.setattr(recordingfile, "LARGEST", 100)
    with pytest.raises(MisuseError, match="is larger than"):
        load(path)
    with pytest.raises(MisuseError, match="cannot read"):
        load(tmp_path / "none")


def test_which_files_hold_a_recording(tmp_path: Path) -> None:
    path = write(tmp_path, builders.recording())
    assert recordingfile.holds_recording(path)
    path.write_text(builders.sick().to_json())
    assert not recordingfile.holds_recording(path)
    with pytest.raises(MisuseError, match="cannot read"):
        recordingfile.holds_recording(tmp_path / "none")


def test_zeros_and_ones_are_written_short_and_read_as_they_were() -> None:
    ones = np.array([0.0, 1.0, 1.0])
    assert json.dumps(plain(ones)) == "[0, 1, 1]"
    for values in (ones, np.array([-0.0]), np.array([math.inf]), np.array([]), np.array([2.0**53])):
        again = built(np.ndarray[Any, np.dtype[np.float64]], plain(values), "x")
        assert again.dtype == np.float64
        assert again.tobytes() == values.tobytes()


def test_a_value_that_is_no_value_is_refused_when_written() -> None:
    with pytest.raises(TypeError, match="object is no value"):
        plain({"a": object()})


def test_builders_are_made_once() -> None:
    assert builder(Site) is builder(Site)
    assert Saved().report is None


def test_histograms_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    made, two = builders.recording(), np.array([0.0, 1.0])
    made.histograms = [Histogram("w", Role.WEIGHT, np.array([0, 4]), -two, two, np.array([[1, 2]]))]
    with pytest.raises(MisuseError, match="one row of counts per step"):
        load(write(tmp_path, made))
