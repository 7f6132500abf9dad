"""A loop that becomes another one is captured as a graph again: what comes after a pretraining is judged, too."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.step import Replay
from netdoctor.checks.loss.comparisons import comparisons, graphs
from netdoctor.experiments.sandbox import Sandbox
from tests.capture.observing import observing, seed


def train(phases, steps=40, shared=None):
    """Each phase: a loss of two models, with an optimizer of its own."""
    seed()
    first, second = nn.Linear(6, 3), nn.Linear(6, 3)
    with observing() as observation:
        for loss in phases:
            optimizer = torch.optim.SGD([*first.parameters(), *second.parameters()], lr=0.05)
            for _ in range(steps):
                x = torch.randn(8, 6)
                optimizer.zero_grad()
                loss(first, second, x).backward()
                optimizer.step()
    return observation.recording


def classes(first, second, x):
    return F.cross_entropy(first(x) + second(x), x[:, 0].gt(0).long())


def distilled(first, second, x):
    return F.kl_div(F.log_softmax(second(x), -1), F.softmax(first(x), -1), reduction="batchmean")


def test_the_graph_of_a_second_phase():
    recording = train([classes, distilled])
    assert recording.faults == []
    assert [comparison.operation.name for comparison in comparisons(recording)] == ["cross_entropy", "kl_div"]
    assert recording.graph is recording.graphs[0]
    assert all(graph.loss is not None for graph in recording.graphs)


def test_one_phase_has_the_graph_of_its_start_alone():
    assert len(train([classes]).graphs) == 1


def test_a_phase_whose_loss_is_made_on_the_same_line_counts_once():
    recording = train([classes, distilled, classes])
    assert [comparison.operation.name for comparison in comparisons(recording)] == ["cross_entropy", "kl_div"]
    assert len(graphs(recording)) == 2


def test_the_number_of_graphs_is_bounded():
    def other(power):
        return lambda first, second, x: (first(x) - second(x)).abs().pow(power).mean()

    recording = train([classes, *(other(power) for power in range(2, 12))], steps=30)
    assert len(recording.graphs) <= 8


def test_a_graph_knows_its_step_and_its_lines():
    recording = train([classes, distilled], steps=40)
    first, later = recording.graphs
    assert first.step == 0
    assert 40 <= later.step < 45
    made = later.producer(later.loss)
    assert recording.graph_at(made.file, made.line) is later
    made = first.producer(first.loss)
    assert recording.graph_at(made.file, made.line) is first
    assert recording.graph_at("elsewhere.py", 1) is first  # of what is in none, the first one speaks


def test_the_step_after_a_head_was_replaced_can_be_run_again():
    """The optimizer that is left behind holds the old head, which is in no model any more."""
    seed()
    body, holder = nn.Linear(6, 8), nn.ModuleDict({"head": nn.Linear(8, 2)})
    with observing() as observation:
        for outputs, loss in ((2, F.cross_entropy), (3, F.multi_margin_loss)):
            if outputs == 3:
                holder["head"] = nn.Linear(8, outputs)
            optimizer = torch.optim.SGD([*body.parameters(), *holder.parameters()], lr=0.05)
            for _ in range(40):
                x = torch.randn(8, 6)
                optimizer.zero_grad()
                loss(holder["head"](body(x)), x[:, 0].gt(0).long()).backward()
                optimizer.step()
    late = observation.step.late
    assert late.begins >= 40
    (optimizer,) = Sandbox(late).optimizers
    assert {tuple(p.shape) for group in optimizer.param_groups for p in group["params"]} == {(8, 6), (8,), (3, 8), (3,)}
    backward = late.iterations[0].backwards[0]
    assert float(Replay(late.copies()).loss(backward).detach()) == pytest.approx(backward.value, rel=1e-6)
