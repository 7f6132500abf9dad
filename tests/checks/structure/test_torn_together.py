"""Which torn axes are one mistake of wrong-reshape, and which are several."""

from __future__ import annotations

import pytest

from netdoctor.checks.structure.wrong_reshape import WrongReshape
from tests.checks.structure.models import BATCH, Model, judged

FLAT, HEADS = (BATCH, 6, 16), (BATCH, 2, 6, 8)


def heads(module: str = "attn", other: str = "attn", meets: str = "matmul", merged: bool = True) -> Model:
    """Queries, keys and values whose heads are split and merged without a transposition, in lines 3, 4, 5 and 9."""
    build = Model().layers("body").stepping()
    x = build.value(FLAT)
    q, k, v = (
        build.operation(
            "view", build.run(x, f"attn.{part}", FLAT), shape=HEADS, line=line, module=where, text="x.view(B, H, T, D)"
        )
        for part, line, where in (("q", 3, module), ("k", 4, other), ("v", 5, other))
    )
    scores = build.operation(meets, q, k, shape=(BATCH, 2, 6, 6), module=module)
    mixed = build.operation(meets, build.operation("softmax", scores, module=module), v, shape=HEADS, module=module)
    if merged:
        mixed = build.operation("reshape", mixed, shape=FLAT, line=9, module=module, text="y.reshape(B, T, C)")
    return build.compare(build.run(mixed, "body", FLAT))


def lines(build: Model) -> list[tuple[int | None, int]]:
    """Per finding its line, and how many lines its fix has."""
    return [(f.location.line, f.fixes[0].code.count("\n") + 1) for f in judged(WrongReshape(), build)]


def test_heads_are_one_mistake_from_the_first_line_on():
    (found,) = judged(WrongReshape(), heads())
    assert found.location.line == 3
    assert found.explanation.endswith("Lines 4, 5, 9 do the same.")
    assert found.fixes[0].code.splitlines()[-1] == "y.transpose(1, 2).reshape(B, T, C)"
    assert found.fixes[0].says == "Swap the axes in each of these lines."


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"merged": False}, [(3, 3)]),
        ({"other": "memory"}, [(3, 2), (4, 1), (5, 1)]),  # another module's
        ({"meets": "add"}, [(3, 4)]),  # the way back undoes them all
        ({"meets": "add", "merged": False}, [(3, 1), (4, 1), (5, 1)]),  # put together, not multiplied
    ],
)
def test_what_belongs_together(options, expected):
    assert lines(heads(**options)) == expected


def test_two_inputs_that_have_nothing_to_do_with_each_other():
    build = Model().layers("body").stepping()
    one, other = (
        build.operation("view", build.value((BATCH, 6, width)), shape=(6, BATCH, width), line=line, module="net")
        for width, line in ((16, 3), (4, 4))
    )
    states = build.operation("cat", build.run(one, "body", (6, BATCH, 16)), other, shape=(6, BATCH, 20), module="net")
    assert lines(build.compare(build.operation("matmul", states, build.weight("last", (20, 9)), module="net"))) == [
        (3, 1),
        (4, 1),
    ]


def test_a_single_line_says_nothing_of_others():
    build = Model().layers("body").stepping()
    build.compare(build.run(build.operation("view", build.value(FLAT), shape=HEADS, line=3), "body", HEADS))
    (found,) = judged(WrongReshape(), build)
    assert "the same" not in found.explanation
    assert found.fixes[0].says == "Swap the axes."
