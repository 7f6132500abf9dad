"""A loop that becomes another one is captured as a graph again: what comes after a pretraining is judged, too."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.checks.loss.comparisons import comparisons, graphs
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
