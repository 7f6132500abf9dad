"""Which of a model's inputs hold samples, and which say how the samples are linked."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from netdoctor.data import TensorFacts
from netdoctor.recording import Recording

_SPARSE = 0.5  # of the entries are 0: most pairs of nodes have no edge


def tables(recording: Recording) -> Iterator[TensorFacts]:
    """The inputs whose rows are samples or positions. An adjacency matrix is none: its columns are no features."""
    return (facts for facts in recording.inputs if not _links(facts, recording.inputs))


def _links(facts: TensorFacts, inputs: list[TensorFacts]) -> bool:
    """A square matrix beside an input with as many rows, which stays the same in all steps or is mostly zeros and positive."""
    if len(facts.shape) not in (2, 3) or facts.shape[-1] != facts.shape[-2]:
        return False
    if not any(other is not facts and facts.shape[-1] in other.shape[:-1] for other in inputs):
        return False
    stays = len(facts.batches) > 1 and len(set(facts.batches)) == 1
    columns = facts.columns
    return stays or bool(facts.rows and np.mean(columns.zeros) > _SPARSE and columns.low.min() >= 0)
