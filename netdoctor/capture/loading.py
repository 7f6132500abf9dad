"""What DataLoaders hand out, and how long a training waits for it: the time within `next`, beside the wall time of the steps.

Nothing is done in the steps themselves: what is known of time is taken where the loader is asked for a batch.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import MutableMapping
from typing import Any
from weakref import WeakKeyDictionary

from torch.utils.data import WeightedRandomSampler
from torch.utils.data.dataloader import _DatasetKind

from netdoctor.capture.observer import Observer
from netdoctor.capture.patching import Patches
from netdoctor.capture.source import user_line
from netdoctor.capture.stored import StoredData
from netdoctor.recording import SourceLine

_MOST_KINDS = 16  # of steps, by the number of batches that they take


class LoaderClock:
    """Adds up waiting and wall time over whole steps. `install` and `close` may each be called once.

    A step lasts from its first batch to the next one's. Measured steps are left out, and so are those that took another number
    of batches than most: they evaluated, or an epoch ended in them.
    """

    def __init__(self, observer: Observer, compares: bool = True) -> None:
        """`compares`: what datasets hold is copied and compared, for an experiment to ask whether reading changes it."""
        self._observer = observer
        self.stored = StoredData()
        self._compares = compares
        self._patches = Patches()
        self._step = -1
        self._began = self._waited = 0.0
        self._batches = 0
        self._plain = False
        self._kinds: dict[int, list[float]] = {}  # batches per step → [steps, seconds, seconds waited]
        # The user's lines that built loaders and samplers, by these and by the loaders' iterators.
        self._lines: MutableMapping[Any, SourceLine | None] = WeakKeyDictionary()
        self._told = False  # where the training's loader was built
        self._short = False  # a sampler was found that leaves out the most part of its data

    def install(self) -> None:
        """Time the loaders from now on."""
        from torch.utils.data import dataloader

        self._patches.wrap(dataloader.DataLoader, "__init__", self._building)
        self._patches.wrap(WeightedRandomSampler, "__init__", self._building)
        self._patches.wrap(dataloader._BaseDataLoaderIter, "__init__", self._beginning)
        self._patches.wrap(dataloader._BaseDataLoaderIter, "__next__", self._timing)

    def close(self) -> None:
        """Take the clock away."""
        self._observer.containment.run("stored data", self.stored.close)
        self._patches.remove()

    def _building(self, original: Any) -> Any:
        @functools.wraps(original)
        def __init__(made: Any, *args: Any, **kwargs: Any) -> None:
            original(made, *args, **kwargs)
            self._observer.containment.run("data loading", lambda: self._lines.update({made: user_line()}))

        return __init__

    def _beginning(self, original: Any) -> Any:
        @functools.wraps(original)
        def __init__(iterator: Any, loader: Any, *args: Any, **kwargs: Any) -> None:
            original(iterator, loader, *args, **kwargs)
            self._observer.containment.run(
                "data loading", lambda: self._lines.update({iterator: self._lines.get(loader)})
            )
            self._observer.containment.run("data loading", self._see_sampler, loader)
            here = threading.get_ident() == self._observer.thread and not self._observer.suspended
            if here and self._compares:
                self._observer.containment.run("stored data", self.stored.begins, loader.dataset)

        return __init__

    def _see_sampler(self, loader: Any) -> None:
        """Note a sampler that has fewer weights than there are samples: it never draws the others."""
        sampler = getattr(loader, "sampler", None)
        if loader._dataset_kind == _DatasetKind.Iterable:
            return
        batches = getattr(loader.batch_sampler, "sampler", None)
        weighted = next((one for one in (sampler, batches) if isinstance(one, WeightedRandomSampler)), None)
        if weighted is None or self._short:
            return
        weights, samples = len(weighted.weights), len(loader.dataset)
        self._short = weights < samples
        if self._short:
            self._observer.facts.update(sampler_weights=float(weights), sampler_samples=float(samples))
            source = self._lines.get(weighted) or self._lines.get(loader)
            self._observer.recorder.count("sampler", self._observer.step, source=source)

    def _timing(self, original: Any) -> Any:
        clock, observer = time.perf_counter, self._observer

        @functools.wraps(original)
        def __next__(loader: Any) -> Any:
            if threading.get_ident() != observer.thread or observer.suspended:
                return original(loader)
            began = clock()
            batch = original(loader)
            observer.containment.run("data loading", self._got, loader, began, clock())
            if observer.detailed:
                observer.ours("data loading", self._handed_out, loader, batch)
            return batch

        return __next__

    def _got(self, loader: Any, began: float, ended: float) -> None:
        observer = self._observer
        if observer.step and not self._told:  # the first loader that is read once the training goes on feeds it
            self._told = True
            kind = "stream" if loader._dataset_kind == _DatasetKind.Iterable else ""
            observer.recorder.count("loader built", observer.step, kind, source=self._lines.get(loader))
        if observer.step != self._step:
            self._close_step(loader, began)
            self._step, self._began, self._waited, self._batches, self._plain = observer.step, began, 0.0, 0, True
        self._waited += ended - began
        self._batches += 1
        self._plain = self._plain and not observer.detailed and not observer.mode.on

    def _handed_out(self, loader: Any, batch: Any) -> None:
        """A batch of a measured step, of so many where its iterator has just begun; the first line that does so is kept."""
        observer, first_of = self._observer, _begun(loader)
        if first_of > 1 and "loader begun" not in observer.recorder.counts:
            observer.recorder.count("loader begun", observer.step, source=user_line())
        observer.data.see_batch(observer.step, batch, first_of)

    def _close_step(self, loader: Any, now: float) -> None:
        if not self._plain or self._observer.step != self._step + 1:
            return
        kind = self._kinds.get(self._batches)
        if kind is None:
            if len(self._kinds) >= _MOST_KINDS:
                return
            if not self._kinds:
                self._observer.recorder.count("loader", self._step, value=loader._num_workers, source=user_line())
            kind = self._kinds[self._batches] = [0.0, 0.0, 0.0]
        kind[0] += 1
        kind[1] += now - self._began
        kind[2] += self._waited
        if kind[0] >= max(other[0] for other in self._kinds.values()):
            names = ("loader_steps", "loader_wall_s", "loader_waited_s")
            self._observer.facts.update(zip(names, kind, strict=True))


def _begun(iterator: Any) -> int:
    """Of how many batches an iterator has just handed out the first; 0 where it was a later one, or their number is not known."""
    if iterator._num_yielded != 1:
        return 0
    try:
        return len(iterator)
    except TypeError:  # an iterable dataset
        return 0
