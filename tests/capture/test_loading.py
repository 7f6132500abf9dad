"""The clock beside DataLoader: what it adds up, what it leaves out, and that it goes away."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, WeightedRandomSampler
from torch.utils.data.dataloader import _BaseDataLoaderIter

from netdoctor.capture.loading import LoaderClock
from netdoctor.capture.observer import Observer


class Numbers(Dataset[float]):
    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> float:
        now.append(now[-1] + 0.1)  # a tenth of a second for each sample
        return float(index)


now = [0.0]


@pytest.fixture
def observer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Observer]:
    monkeypatch.setattr(time, "perf_counter", lambda: now[-1])
    found = Observer()
    clock = LoaderClock(found)
    before = _BaseDataLoaderIter.__next__
    clock.install()
    yield found
    clock.close()
    assert _BaseDataLoaderIter.__next__ is before
    assert found.containment.faults == []


def train(observer: Observer, loader: DataLoader[Any], batches: int = 1, computing: float = 0.3) -> None:
    """One epoch, of so many batches per step."""
    for number, _ in enumerate(loader, 1):
        if number % batches == 0:
            now.append(now[-1] + computing)
            observer.step += 1


def test_waiting_and_wall_time(observer: Observer) -> None:
    train(observer, DataLoader(Numbers(), batch_size=10))
    facts = observer.facts
    assert facts["loader_steps"] == 39  # the last step has no end
    assert facts["loader_waited_s"] == pytest.approx(39.0)
    assert facts["loader_wall_s"] == pytest.approx(39 * 1.3)
    (event,) = [event for event in observer.recorder.events if event.kind == "loader"]
    assert event.source is not None
    assert event.source.text == "for number, _ in enumerate(loader, 1):"


def test_several_batches_per_step(observer: Observer) -> None:
    train(observer, DataLoader(Numbers(), batch_size=10), batches=4)
    assert observer.facts["loader_steps"] == 9
    assert observer.facts["loader_waited_s"] == pytest.approx(36.0)


def test_evaluations_and_measured_steps_are_left_out(observer: Observer) -> None:
    loader = DataLoader(Numbers(), batch_size=40)
    for _ in range(4):
        train(observer, loader)
        for _ in loader:  # an evaluation
            now.append(now[-1] + 100.0)
    observer.detailed = True
    train(observer, loader)
    steps = 10 + 3 * 9  # the step after an evaluation has its batches too
    assert observer.facts["loader_steps"] == steps
    assert observer.facts["loader_wall_s"] == pytest.approx(steps * 4.3)


def test_the_line_that_built_the_loader_of_the_training(observer: Observer) -> None:
    class Own(DataLoader[Any]):
        """A subclass, as libraries have them."""

    held = DataLoader(Numbers(), batch_size=40)
    loader = Own(Numbers(), batch_size=40)  # this one
    next(iter(held))  # looked at before the training
    for _ in range(2):
        train(observer, loader)
        train(observer, held, batches=100)
    built = [event for event in observer.recorder.events if event.kind == "loader built"]
    assert [event.source.text for event in built if event.source] == [
        "loader = Own(Numbers(), batch_size=40)  # this one"
    ]


def test_a_loader_from_before_has_no_line() -> None:
    loader = DataLoader(Numbers(), batch_size=40)
    observer = Observer()
    clock = LoaderClock(observer)
    clock.install()
    train(observer, loader)
    clock.close()
    assert [event.source for event in observer.recorder.events if event.kind == "loader built"] == [None]


def test_batches_and_random_numbers_are_the_same() -> None:
    loader = DataLoader(Numbers(), batch_size=10, shuffle=True)
    torch.manual_seed(0)
    alone = [batch.tolist() for batch in loader]
    clock = LoaderClock(Observer())
    clock.install()
    torch.manual_seed(0)
    watched = [batch.tolist() for batch in loader]
    clock.close()
    assert watched == alone


def test_a_clock_that_fails_costs_no_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any) -> None:
        raise ValueError("on purpose")

    monkeypatch.setattr(LoaderClock, "_got", broken)
    observer = Observer()
    clock = LoaderClock(observer)
    clock.install()
    try:
        assert len(list(DataLoader(Numbers(), batch_size=10))) == 40
    finally:
        clock.close()
    assert [fault.where for fault in observer.containment.faults] == ["data loading"]


def test_what_a_dataset_raises_comes_through() -> None:
    class Broken(Numbers):
        def __getitem__(self, index: int) -> float:
            raise KeyError(index)

    clock = LoaderClock(Observer())
    clock.install()
    try:
        with pytest.raises(KeyError):
            next(iter(DataLoader(Broken(), batch_size=10)))
    finally:
        clock.close()


def test_a_stream_is_told_from_a_list(observer: Observer) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            return (torch.full((2,), float(number)) for number in range(400))

    train(observer, DataLoader(Stream(), batch_size=40))
    assert [event.detail for event in observer.recorder.events if event.kind == "loader built"] == ["stream"]


@pytest.mark.parametrize("weights", [399, 400, 401])
@pytest.mark.parametrize("in_batches", [False, True])
def test_a_sampler_with_fewer_weights_than_samples(observer: Observer, weights: int, in_batches: bool) -> None:
    sampler = WeightedRandomSampler([1.0] * weights, num_samples=20, replacement=True)
    loader = (
        DataLoader(Numbers(), batch_sampler=BatchSampler(sampler, 5, drop_last=False))
        if in_batches
        else DataLoader(Numbers(), batch_size=5, sampler=sampler)
    )
    for _ in range(2):  # told once
        iter(loader)
    told = {name: value for name, value in observer.facts.items() if name.startswith("sampler")}
    assert told == ({"sampler_weights": 399.0, "sampler_samples": 400.0} if weights < 400 else {})
    sources = [event.source for event in observer.recorder.events if event.kind == "sampler"]
    assert [source.text.split(" = ")[0] for source in sources if source] == ["sampler"] * (weights < 400)
