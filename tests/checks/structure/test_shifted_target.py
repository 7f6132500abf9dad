"""A language model that learns another token than the next one: what the experiment says, and the line that is named."""

from __future__ import annotations

import pytest

from netdoctor.checks.structure.copied_target import COPIES
from netdoctor.checks.structure.shifted_target import OFFSET, ShiftedTarget
from netdoctor.checks.structure.shifts import moved_back
from netdoctor.finding import Abstention, Certainty, Severity
from tests.checks.structure.models import Model, judged

CALL = {"file": "train.py", "line": 40.0, "text": "loss = model(ids, labels=labels)"}
SHIFTED = 'return {"input_ids": ids[:, :-1], "labels": ids[:, 1:].clone()}'


def asked(**facts: float | str | bool) -> Model:
    """A batch of 16 texts of 21 tokens, and what was seen of it."""
    build = Model()
    known = {"offset": 2.0, "moved": 2.0, "agree": 1.0, "length": 20.0, "twice": True, "handed": True, "looped": False}
    build.arm(OFFSET, **{**known, **CALL, **facts})
    build.ids = build.value((16, 21), "int64")
    build.logits = build.run(build.value((16, 20, 8)), "head", shape=(16, 20, 8))
    return build


def cut(build: Model, value: int, positions: int, line: int, text: str, name: str = "getitem") -> int:
    return build.operation(name, value, shape=(16, positions), dtype="int64", line=line, text=text)


def compared(build: Model, target: int) -> Model:
    flat = build.operation("flatten", target, shape=(320,), dtype="int64", line=40, text=str(CALL["text"]))
    return build.backward(build.operation("cross_entropy", build.logits, flat, shape=(), line=40))


def test_the_line_of_the_shift_that_is_one_too_many():
    build = asked()
    (found,) = judged(ShiftedTarget(), compared(build, cut(build, build.ids, 20, 7, SHIFTED)))
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.MEASURED)
    assert (found.location.line, found.location.text) == (7, SHIFTED)
    assert "the model shifts them again" in found.explanation
    assert found.fixes[0].code == 'return {"input_ids": ids[:, :-1], "labels": ids[:, :-1].clone()}'


def test_two_lines_of_the_user_s_own():
    build = asked(length=19.0, handed=False)
    first = cut(build, build.ids, 20, 7, "x, y = ids[:, :-1], ids[:, 1:]")
    (found,) = judged(ShiftedTarget(), compared(build, cut(build, first, 19, 9, "y = y[:, 1:]")))
    assert found.location.line == 7
    assert "line 9 shifts them again" in found.explanation


def test_what_makes_the_text_and_windows_of_it_are_no_shifts():
    build = asked()
    window = cut(build, build.value((16, 400), "int64"), 21, 3, "chunk = stream[i : i + 21]")
    begun = cut(build, build.value((16, 2), "int64"), 1, 4, "notes = torch.cat([notes, rule[notes[:, -1:]]], 1)")
    made = build.operation("cat", begun, window, shape=(16, 21))
    (found,) = judged(ShiftedTarget(), compared(build, cut(build, made, 20, 7, SHIFTED)))
    assert found.location.line == 7


def test_without_a_graph_of_the_data_the_call_is_named():
    (found,) = judged(ShiftedTarget(), asked())
    assert (found.location.line, found.fixes[0].code) == (40, "labels = input_ids.clone()")


@pytest.mark.parametrize("dropped", [False, True])
def test_one_shift_by_two_may_be_meant(dropped):
    """In one place, by what the loss leaves out or by what the line drops."""
    build = asked(twice=dropped, handed=False, length=19.0)
    target = cut(build, build.ids, 19, 7, "targets = ids[:, 2:]")
    (found,) = judged(ShiftedTarget(), compared(build, target))
    assert found.severity is Severity.WARNING
    assert "ignore this" in found.explanation


@pytest.mark.parametrize("offset", [-1.0, 0.0])
def test_the_wrong_way_is_told_where_a_copy_learns_the_next_tokens(offset):
    check = ShiftedTarget()
    (found,) = judged(check, asked(offset=offset, twice=False, learned=check.learned))
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.PROVEN)
    assert judged(check, asked(offset=offset, twice=False, learned=check.learned + 0.01)) == []
    assert judged(check, asked(offset=offset, twice=False, learned=float("nan"))) == []


def test_what_causal_leak_says_is_not_said_twice():
    build = asked(offset=0.0, twice=False, learned=0.2)
    copies = {
        "causal": True,
        "shifted": False,
        "right": 1.0,
        "follows": 1.0,
        "others": 0.0,
        "looped": False,
        "place": 0.0,
    }
    build.arm(COPIES, **CALL, **copies, keyword="", arguments=1.0)
    assert judged(ShiftedTarget(), build) == []


@pytest.mark.parametrize("offset", [-2.0, 0.0, 1.0, 3.0])
def test_other_offsets_are_no_finding(offset):
    assert judged(ShiftedTarget(), asked(offset=offset)) == []


def test_targets_that_do_not_all_agree():
    check = ShiftedTarget()
    assert judged(check, asked(agree=check.agree - 0.001)) == []
    assert len(judged(check, asked(agree=check.agree))) == 1


def test_it_says_why_it_could_not_tell():
    (found,) = judged(ShiftedTarget(), Model().arm(OFFSET, failure="no copy"))
    assert found == Abstention("shifted-target", "no copy")


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("y = torch.stack([d[i+1:i+1+T] for i in ix])", ""),
        ("x, y = s[:-1], s[1:]", "x, y = s[:-1], s[:-1]"),
        ("loss = ce(logits[:, :-1], y[..., 1:].flatten())", "loss = ce(logits[:, :-1], y[..., :-1].flatten())"),
        ("y = y[1::2]", ""),
        ("for batch in loader:", ""),
    ],
)
def test_the_line_without_its_shift(text, code):
    assert moved_back(text) == code
