"""Items of a dataset that are read again: which datasets are changed by being read, and the line that does it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset

from netdoctor.capture.step import TrainingStep
from netdoctor.capture.stored import StoredData
from netdoctor.checks.data.data_changed_by_access import DataChangedByAccess
from netdoctor.experiments import rereading
from netdoctor.experiments.sandbox import Budget
from netdoctor.finding import Finding, Severity
from netdoctor.recording import Recording

LENGTH = 40


class Data(Dataset[Any]):
    def __init__(self, item: Callable[[Data, int], Any], tensor: bool = False) -> None:
        rng = np.random.default_rng(0)
        self.images: Any = rng.normal(2.0, 1.0, (LENGTH, 5, 5)).astype(np.float32)
        self.images = torch.tensor(self.images) if tensor else self.images
        self.kept = np.zeros((LENGTH, 5, 5), np.float32)
        self.done = np.zeros(LENGTH, bool)
        self.seen = np.zeros(LENGTH)
        self.mean = np.zeros((5, 5), np.float32)
        self.rng = np.random.default_rng(1)
        self.item = item

    def __len__(self) -> int:
        return LENGTH

    def __getitem__(self, index: int) -> Any:
        return self.item(self, index)


def scaled(data: Data, index: int) -> Any:
    image = data.images[index]
    image /= 2.0
    return image


def windows(data: Data, index: int) -> Any:
    window = data.images.reshape(-1)[index : index + 12]
    window -= window.mean()
    return window


def noisy(data: Data, index: int) -> Any:
    image = data.images[index]
    return {"x": [image.add_(torch.randn(5, 5))], "y": 1}


def masked(data: Data, index: int) -> Any:
    image = data.images[index]
    image[torch.rand(5, 5) < 0.2] = 0
    return image


def counting(data: Data, index: int) -> Any:
    data.seen[index] += 1
    return scaled(data, index)


def mirrored(data: Data, index: int) -> Any:
    image = data.images[index]
    if np.random.rand() < 0.5:
        image[:] = image[:, ::-1].copy()
    return image


def clean(data: Data, index: int) -> Any:
    data.seen[index] += 1
    return data.images[index] + np.random.rand(5, 5) + data.rng.normal(size=(5, 5))


def cached(data: Data, index: int) -> Any:
    if not data.done[index]:
        data.kept[index], data.done[index] = data.images[index] + np.random.rand(5, 5), True
    return data.kept[index]


def idempotent(data: Data, index: int) -> Any:
    image = data.images[index]
    image -= image.mean()
    return image


def running(data: Data, index: int) -> Any:
    data.mean *= 0.9
    data.mean += 0.1 * data.images[index]
    return data.images[index] - data.mean


def by_visits(data: Data, index: int) -> Any:
    data.seen[index] += 1
    return data.images[index] * data.seen[index]


def judged(dataset: Any, epochs: int = 3) -> list[Finding]:
    watch = StoredData()
    for _ in range(epochs):
        watch.begins(dataset)
        for _ in DataLoader(dataset, batch_size=8, shuffle=True):
            pass
    watch.close()
    before = [array.copy() for changed in watch.changed for array in rereading.stored(changed.dataset).values()]
    step = TrainingStep([], [], [], [], {}, changed=watch.changed)
    state, trace = torch.get_rng_state(), sys.gettrace()
    recording = Recording(steps=40, arms=rereading.look(step, Budget(20)))
    assert torch.equal(state, torch.get_rng_state())
    assert sys.gettrace() is trace
    after = [array for changed in watch.changed for array in rereading.stored(changed.dataset).values()]
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))
    assert not any(arm.failure for arm in recording.arms.values())
    return [found for found in DataChangedByAccess().judge(recording) if isinstance(found, Finding)]


@pytest.mark.parametrize(
    ("item", "tensor", "text", "code"),
    [
        (scaled, False, "image /= 2.0", "image = data.images[index].copy()"),
        (scaled, True, "image /= 2.0", "image = data.images[index].clone()"),
        (windows, False, "window -= window.mean()", "window = data.images.reshape(-1)[index : index + 12].copy()"),
        (noisy, True, "return {", "image = data.images[index].clone()"),
        (masked, True, "image[torch.rand(5, 5) < 0.2] = 0", "image = data.images[index].clone()"),
        (counting, False, "image /= 2.0", "image = data.images[index].copy()"),
    ],
)
def test_what_works_in_place_on_the_stored_data_is_found(item: Any, tensor: bool, text: str, code: str) -> None:
    (found,) = judged(Data(item, tensor))
    assert found.severity is Severity.ERROR
    assert Path(found.location.file or "").name == Path(__file__).name
    assert found.location.text.startswith(text)
    assert found.fixes[0].code.startswith(code)


def test_what_comes_back_is_a_warning() -> None:
    assert [found.severity for found in judged(Data(mirrored))] == [Severity.WARNING]


@pytest.mark.parametrize("wrap", [lambda d: Subset(d, range(30)), lambda d: ConcatDataset([d, Subset(d, [1, 2])])])
def test_datasets_within_those_of_torch_are_reached(wrap: Any) -> None:
    (found,) = judged(wrap(Data(scaled)))
    assert found.title.startswith("reading an item of Data changes `images`")


@pytest.mark.parametrize("item", [clean, cached, idempotent, running, by_visits])
def test_it_stays_silent(item: Any) -> None:
    assert judged(Data(item)) == []


def test_without_a_change_nothing_is_kept() -> None:
    watch = StoredData()
    dataset = Data(lambda data, index: data.images[index].copy())
    for _ in range(5):
        watch.begins(dataset)
        _ = [dataset[index] for index in range(LENGTH)]
    watch.close()
    assert watch.changed == []
    assert all(watched.before is None for watched in watch._watched)


def test_more_data_than_the_limit_is_not_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = StoredData()
    watch._left = 1_000
    watch.begins(Data(scaled))
    assert watch._watched == []
