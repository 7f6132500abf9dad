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
