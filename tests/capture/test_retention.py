"""Graphs of past steps that are alive, and the line that holds them."""

from __future__ import annotations

import linecache

import pytest
import torch

from netdoctor.capture.recorder import Recorder
from netdoctor.capture.retention import Retention, holder


def run(steps: int, keep: str) -> Recorder:
    recorder, weight = Recorder(), torch.ones(3, requires_grad=True)
    watch, kept, total = Retention(recorder), [], torch.zeros(())
    for step in range(steps):
        output = (weight * step).tanh()
        loss = output.square().sum()
        watch.see([loss], step, True, ("", 0))
        loss.backward()
        if keep == "sum":
            total = total + loss
        elif keep == "outputs":
            kept.append(output)
        elif keep == "numbers":
            kept.append(loss.item())
    return recorder


@pytest.mark.parametrize(("keep", "alive"), [("sum", 8), ("outputs", 8), ("numbers", 0), ("", 0)])
def test_it_counts_what_is_held(keep: str, alive: int) -> None:
    recorder = run(10, keep)
    assert recorder.scalars["graphs alive"].last == alive
    assert recorder.scalars["graph age"].last == (9 if alive else 0)
    assert recorder.counts.get("graphs retained", 0) == (1 if alive else 0)


def test_a_loss_without_a_graph_and_a_step_that_is_not_observed_are_left_alone() -> None:
    recorder = Recorder()
    watch = Retention(recorder)
    watch.see([torch.zeros(())], 0, True, ("", 0))
    watch.see([torch.ones(1, requires_grad=True).sum()], 100, False, ("", 0))
    assert not recorder.scalars


@pytest.mark.parametrize(
    ("keeps", "found"),
    [
        ("total += loss", True),
        ("total = 0.9 * total + loss", True),
        ("average = loss if average is None else 0.9 * average + 0.1 * loss", True),
        ("losses.append(loss)", True),
        ("outputs.append(out)", True),
        ("losses.append(loss.item())", False),
        ("total += float(loss)", False),
        ("total += loss.detach()", False),
    ],
)
def test_the_line_that_holds_them(keeps: str, found: bool) -> None:
    text = f"for x in data:\n    out = model(x)\n    loss = criterion(out)\n    loss.backward()\n    {keeps}\n"
    linecache.cache["held.py"] = (len(text), None, text.splitlines(True), "held.py")
    line = holder(("held.py", 4))
    assert (line is not None and (line.line, line.text) == (5, keeps)) is found


def test_where_nothing_is_known_a_kept_graph_is_named() -> None:
    text = "h = cell(x, h)\nhead(h).backward(retain_graph=True)\n"
    linecache.cache["kept.py"] = (len(text), None, text.splitlines(True), "kept.py")
    line = holder(("kept.py", 2))
    assert line is not None
    assert line.line == 2
    assert holder(("no such file", 1)) is None
