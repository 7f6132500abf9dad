"""What was taken along the wrong dimension, beside the same along the right one written by hand."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.checks.loss.wrong_dim_similarity import TREATMENT
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.treatment import Bench, Case, Places
from netdoctor.finding import Finding, Fix, Location, Severity
from netdoctor.recording import Recording
from tests.experiments.capturing import watched

STEPS = 4
Match = Callable[[Tensor, Tensor], Tensor]
X = torch.randn(STEPS, 2, 8, 5, generator=torch.Generator().manual_seed(0))


def train(match: Match) -> list[float]:
    torch.manual_seed(0)
    model = nn.Linear(5, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for one, two in X:
        optimizer.zero_grad()
        loss = F.cross_entropy(match(model(one), model(two)), torch.arange(8))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def cosines(a: Tensor, b: Tensor, *dim: int) -> Tensor:
    return F.cosine_similarity(a[:, None], b[None], *dim)


def by_keyword(a: Tensor, b: Tensor) -> Tensor:
    return F.cosine_similarity(a[:, None], b[None], dim=1)


def by_module(a: Tensor, b: Tensor) -> Tensor:
    return nn.CosineSimilarity()(a[:, None], b[None])


def views(a: Tensor, b: Tensor, dim: int = 1) -> Tensor:
    both = F.normalize(torch.stack([a, b], 1), dim=dim)
    return both[:, 0] @ both[:, 1].t()


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (cosines, lambda a, b: cosines(a, b, -1)),
        (lambda a, b: cosines(a, b, 1), lambda a, b: cosines(a, b, -1)),
        (by_keyword, lambda a, b: cosines(a, b, -1)),
        (by_module, lambda a, b: cosines(a, b, -1)),
        (views, lambda a, b: views(a, b, -1)),
    ],
)
def test_it_is_taken_along_the_features(wrong: Match, right: Match) -> None:
    step, graph = watched(lambda: train(wrong))
    (operation,) = graph.named({"cosine_similarity", "normalize"})
    at = Location(file=operation.file, line=operation.line, operation=operation.name)
    finding = Finding("wrong-dim-similarity", "", Severity.ERROR, "", at, (), ())
    recording = Recording(graph=graph)
    recording.graphs.append(graph)
    treatment = treatment_of(Case(step, recording, finding, Fix(TREATMENT, ""), Places(step)))
    assert treatment is not None
    with quiet(), ExitStack() as stack:
        bench = Bench(Sandbox(step), step.iterations, stack)
        treatment.apply(bench)
        losses = bench.sandbox.run(bench.iterations, STEPS, Budget(60)).losses
    assert losses == pytest.approx(train(right))
