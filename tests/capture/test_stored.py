"""What a dataset holds is compared with what it was, and is left as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from netdoctor.capture import stored
from netdoctor.capture.stored import StoredData
from netdoctor.judging import Options
from netdoctor.session import Session


class Rows(Dataset):
    def __init__(self, rows: Any) -> None:
        self.parts = {"rows": [rows]}
        self.name = "rows"

    def __getitem__(self, index: int) -> Any:
        return self.parts["rows"][0][index]


MAKERS = [lambda: np.arange(12.0).reshape(4, 3), lambda: torch.arange(12.0).reshape(4, 3)]


@pytest.mark.parametrize("make", MAKERS)
def test_a_change_in_place_is_told_with_what_was_there(make: Any) -> None:
    watch, rows = StoredData(), make()
    data = Rows(rows)
    watch.begins(data)
    rows[1] *= 2
    watch.begins(data)
    (changed,) = watch.changed
    assert changed.dataset is data
    assert changed.before["parts['rows'][0]"].tolist() == make().tolist()


@pytest.mark.parametrize("make", MAKERS)
def test_what_stays_is_not_told(make: Any) -> None:
    watch, data = StoredData(), Rows(make())
    for _ in range(6):
        watch.begins(data)
    watch.close()
    assert watch.changed == []


def test_a_tensor_can_still_be_resized() -> None:
    """numpy forbids that for every tensor that it has seen."""
    watch, rows = StoredData(), torch.arange(12.0)
    watch.begins(Rows(rows))
    watch.begins(Rows(rows))
    rows.resize_(24)
    assert rows.numel() == 24


@pytest.mark.parametrize("experiments", [True, False])
def test_nothing_is_copied_where_no_experiment_will_ask(experiments: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(StoredData, "begins", lambda self, dataset: seen.append(dataset))
    session = Session(Options(experiments=experiments))
    session.start()
    try:
        next(iter(DataLoader(Rows(torch.ones(4, 3)), sampler=range(4))))
    finally:
        session.stop()
    assert len(seen) == experiments


def test_large_data_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "MOST_BYTES", 95)
    watch, rows = StoredData(), np.arange(12.0)
    data = Rows(rows)
    watch.begins(data)
    rows += 1
    watch.begins(data)
    assert watch.changed == []
