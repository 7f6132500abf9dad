"""A similarity, or a norm, taken along another dimension."""

from __future__ import annotations

from typing import Any

from netdoctor.checks.loss.broadcast_axes import features
from netdoctor.checks.loss.normalised_products import NORMALIZE, off_axis
from netdoctor.checks.loss.wrong_dim_similarity import NAME, TREATMENT
from netdoctor.experiments.treatments.operations import exchange_on_line
from netdoctor.experiments.treatments.treatment import Case, Maker, Treatment
from netdoctor.graph import StepGraph


def along_features(case: Case) -> Treatment | None:
    """What the finding's line takes along the wrong dimension, along that in which both sides vary or are multiplied."""
    at, graph = case.finding.location, case.graph
    if graph is None or at.file is None or at.line is None:
        return None
    line, name = (at.file, at.line), str(at.operation)
    dim = _right(graph, name, line)

    def change(func: Any, args: Any, kwargs: Any) -> Any:
        others = {key: value for key, value in kwargs.items() if key != "dim"}  # both take it as their third argument
        return func(
            *args[:2],
            *((dim,) if len(args) > 2 else ()),
            *args[3:],
            **others,
            **({} if len(args) > 2 else {"dim": dim}),
        )

    return None if dim is None else Treatment(lambda bench: exchange_on_line(bench, frozenset({name}), change, line))


def _right(graph: StepGraph, name: str, line: tuple[str, int]) -> int | None:
    if name == NORMALIZE:
        return next((summed for o, _, summed in off_axis(graph) if (o.file, o.line) == line), None)
    found = [o for o in graph.named({NAME}) if (o.file, o.line) == line]
    return features(graph, found[0]) if found else None


TREATMENTS: dict[str, Maker] = {TREATMENT: along_features}
