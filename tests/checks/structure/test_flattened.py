"""wrong-reshape: predictions and targets that are flattened in different orders."""

from __future__ import annotations

import pytest

from netdoctor.checks.structure.wrong_reshape import WrongReshape
from netdoctor.finding import Severity
from tests.checks.structure.models import Model, judged

TEXT = "return F.cross_entropy(scores.reshape(-1, 6), tags.reshape(-1))"


def compared(
    scores: tuple[int, ...], tags: tuple[int, ...], name: str = "reshape", then: str = "", text: str = TEXT
) -> Model:
    """Scores and tags of these shapes, both flattened, in one loss."""
    build = Model().layers("body").stepping()
    count = tags[0] * tags[1]
    out = build.run(build.value((*scores[:-1], 16)), "body", shape=scores)
    merged = build.operation(name, out, shape=(scores[0] * scores[1], scores[-1]), line=20, text=text)
    if then:
        merged = build.operation(then, merged, shape=(count, scores[-1]))
    labels = build.value(tags, "int64", low=0.0, high=5.0, integral=True)
    flat = build.operation("view", labels, shape=(count,), line=20)
    build.backward(build.operation("cross_entropy", merged, flat, shape=(), reduction="mean", line=20))
    return build


@pytest.mark.parametrize(
    ("scores", "tags", "fires"),
    [
        ((14, 60, 6), (60, 14), True),
        ((60, 14, 6), (60, 14), False),
        ((14, 14, 6), (14, 14), False),  # nothing tells
        ((14, 60, 6), (14, 60), False),
        ((1, 60, 6), (60, 1), False),  # one row in any order
    ],
)
def test_axes_the_other_way_round(scores, tags, fires):
    found = judged(WrongReshape(), compared(scores, tags))
    assert [f.severity for f in found] == [Severity.ERROR] * fires
    assert all(f.title == f"predictions {scores} and targets {tags} are flattened in different orders" for f in found)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (TEXT, "return F.cross_entropy(scores.transpose(0, 1).reshape(-1, 6), tags.reshape(-1))"),
        ("out = out.view(-1, 6)", "out = out.transpose(0, 1).reshape(-1, 6)"),
        ("out = merge(out)", ""),
    ],
)
def test_the_line_is_rewritten(text, code):
    (found,) = judged(WrongReshape(), compared((14, 60, 6), (60, 14), text=text))
    assert (found.fixes[0].treatment, found.fixes[0].code) == ("same-order", code)


def test_what_only_changes_the_layout_may_stand_between():
    assert judged(WrongReshape(), compared((14, 60, 6), (60, 14), then="float"))
    assert judged(WrongReshape(), compared((14, 60, 6), (60, 14), then="index_select")) == []
    assert judged(WrongReshape(), compared((14, 60, 6), (60, 14), name="matmul")) == []


@pytest.mark.parametrize(
    ("scores", "labels", "fires"),
    [
        ((16, 3, 24, 24), (16, 24, 24), True),
        ((16, 3, 50), (16, 50), True),
        ((16, 24, 24, 3), (16, 24, 24), False),  # the classes are at the end
        ((16, 3, 3, 3), (16, 3, 3), False),  # nothing tells
        ((16, 3, 24, 24), (9216,), False),
    ],
)
def test_classes_that_are_not_at_the_end(scores, labels, fires):
    build, count = Model().layers("body").stepping(), 1
    for size in labels:
        count *= size
    out = build.run(build.value((*scores[:-1], 16)), "body", shape=scores)
    flat = build.operation("reshape", out, shape=(count, 3), line=20, text="flat = logits.reshape(-1, 3)")
    target = build.operation("reshape", build.value(labels, "int64", high=2.0, integral=True), shape=(count,), line=21)
    build.backward(build.operation("cross_entropy", flat, target, shape=(), reduction="mean", line=22))
    found = judged(WrongReshape(), build)
    assert [f.severity for f in found] == [Severity.ERROR] * fires
    order = "0, 2, 3, 1" if len(scores) == 4 else "0, 2, 1"
    assert all(f.fixes[0].code == f"flat = logits.permute({order}).reshape(-1, 3)" for f in found)
