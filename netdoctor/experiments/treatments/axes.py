"""A similarity taken along another dimension."""

from __future__ import annotations

from typing import Any

from netdoctor.checks.loss.broadcast_axes import features
from netdoctor.checks.loss.wrong_dim_similarity import NAME, TREATMENT
from netdoctor.experiments.treatments.operations import exchange_on_line
from netdoctor.experiments.treatments.treatment import Case, Maker, Treatment


def along_features(case: Case) -> Treatment | None:
    """The cosine similarity on the finding's line along the dimension in which both sides vary."""
    at, graph = case.finding.location, case.graph
    found = [] if graph is None else [o for o in graph.named({NAME}) if (o.file, o.line) == (at.file, at.line)]
    dim = features(graph, found[0]) if found and graph is not None else None
    if dim is None or at.file is None or at.line is None:
        return None
    line = (at.file, at.line)

    def change(func: Any, args: Any, kwargs: Any) -> Any:
        others = {name: value for name, value in kwargs.items() if name != "dim"}
        return func(*args[:2], *args[3:], **others, dim=dim) if len(args) < 4 else func(*args[:2], dim, *args[3:])

    return Treatment(lambda bench: exchange_on_line(bench, frozenset({NAME}), change, line))


TREATMENTS: dict[str, Maker] = {TREATMENT: along_features}
