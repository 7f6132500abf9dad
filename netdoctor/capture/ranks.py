"""Several processes that train together: their weights and losses are compared, and only one of them reports.

Nothing here may change or hold up the user's own communication. The comparison runs over a group of our own that torch's
bookkeeping does not know, with a time limit, and in the background: what is not there by the next comparison is passed over.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from netdoctor.capture import statistics
from netdoctor.capture.observer import Observer
from netdoctor.capture.patching import Patches
from netdoctor.capture.recorder import Schedule
from netdoctor.capture.sharded import Shards
from netdoctor.capture.source import user_line
from netdoctor.errors import CannotReplayError

LIMIT = timedelta(seconds=10)  # how long a rank may keep the others waiting: when they meet, and when they part
_MOST_PLACES = 256  # numbers per comparison; a model of more parameters is compared in groups of neighbours
_MOST_RANKS = 64  # whose losses are kept one by one
_MOST_UNDER_WAY = 48  # three for each comparison of a sharded model
_HEAD = 2  # step, loss
# Seconds in which gloo's threads may end what they hold. A piece of work carries a Python object (torch.autograd.graph stores
# the context of each backward in the thread state), and its thread needs the interpreter's lock to let go of it. Whoever
# destroys the group waits for that thread with the lock in hand: then both wait for ever.
_PARTING = 0.05
_COLLECTIVES = ("c10d::", "_c10d_functional::", "c10d_functional::", "_c10d_functional_autograd::")


class Ranks:
    """This process's part in a comparison of all. `install` and `close` may each be called once."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._patches = Patches()
        self._schedule = Schedule()
        self._models: weakref.WeakSet[DistributedDataParallel] = weakref.WeakSet()
        self._group: Any = None
        self._running: deque[tuple[Any, list[Tensor], Callable[[Tensor], None]]] = deque()  # under way, oldest first
        self._shards = Shards(observer)
        self._store: Any = None
        self._calls = 0  # of the wrapped models, in training
        self.rank, self.size = _by_environment()

    # --- joining and leaving -----------------------------------------------------------------------------------------

    def install(self) -> None:
        """Take part from the moment on when the user's processes have found one another."""
        if not dist.is_available():
            return
        self._patches.wrap(dist, "init_process_group", self._joining)
        self._patches.wrap(dist.distributed_c10d, "init_process_group", self._joining)
        self._patches.wrap(dist, "destroy_process_group", self._leaving)
        self._patches.wrap(dist.distributed_c10d, "destroy_process_group", self._leaving)
        self._patches.wrap(DistributedDataParallel, "__init__", self._wrapping)
        self._patches.wrap(DistributedDataParallel, "forward", self._calling)
        if dist.is_initialized():
            self._contained(self._join)

    def include(self, model: torch.nn.Module) -> None:
        """Make known a model that was made before the observation began."""
        self._models.update(m for m in model.modules() if isinstance(m, DistributedDataParallel))

    def close(self) -> None:
        """Hear what is still under way, within the limit, and leave."""
        self._patches.remove()
        self._contained(self._hear, LIMIT)
        self._contained(self._shards.say)
        self._release()
        self._store = None

    def _release(self) -> None:
        if self._group is not None:
            self._running.clear()
            time.sleep(_PARTING)
            self._group = None

    def _contained(self, work: Any, *args: Any) -> None:
        self._observer.suspended += 1
        try:
            self._observer.containment.run("comparison of ranks", work, *args)
        finally:
            self._observer.suspended -= 1

    def _joining(self, original: Any) -> Any:
        @functools.wraps(original)
        def init_process_group(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            if self._group is None and dist.is_initialized():
                self._contained(self._join)
            return result

        return init_process_group

    def _leaving(self, original: Any) -> Any:
        """Observing takes up the interpreter's lock where a bare script leaves it free, see `_PARTING`."""

        @functools.wraps(original)
        def destroy_process_group(*args: Any, **kwargs: Any) -> Any:
            time.sleep(_PARTING)
            return original(*args, **kwargs)

        return destroy_process_group

    def _join(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        if self.size < 2 or not dist.is_gloo_available():
            return
        store = dist.distributed_c10d.PrefixStore("netdoctor", dist.distributed_c10d._get_default_store())
        store.set(f"here {self.rank}", "")
        try:
            store.wait([f"here {rank}" for rank in range(self.size)], LIMIT)
            self._group = dist.ProcessGroupGloo(store, self.rank, self.size, LIMIT)
            self._store = store
        except RuntimeError:
            self._lose("not every process runs under netdoctor")

    def _lose(self, why: str) -> None:
        self._release()
        self._shards.lost(why)
        self._observer.blind_spots.setdefault(
            "ranks", f"the {self.size} processes were not compared any further: {why}"
        )

    def _wrapping(self, original: Any) -> Any:
        @functools.wraps(original)
        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:
            original(model, *args, **kwargs)
            self._models.add(model)
            self._contained(self._note)

        return __init__

    def _note(self) -> None:
        self._observer.recorder.count("ddp", self._observer.step, source=user_line())

    def _calling(self, original: Any) -> Any:
        @functools.wraps(original)
        def forward(model: Any, *args: Any, **kwargs: Any) -> Any:
            self._calls += torch.is_grad_enabled()
            return original(model, *args, **kwargs)

        return forward

    # --- comparing ---------------------------------------------------------------------------------------------------

    def stepped(self, steps: int) -> None:
        """So many optimizer steps were taken: on measured steps, hear what the others sent last, and send what is here now."""
        if self._group is not None and self._schedule.due(steps - 1):
            self._contained(self._exchange, steps - 1)

    def _exchange(self, step: int) -> None:
        self._hear()
        if len(self._running) >= _MOST_UNDER_WAY:
            self._lose("one of them falls too far behind")
        if self._group is None:
            return
        self._observer.pattern.catch_up()
        losses = [series.last for series in self._observer.recorder.losses.values()]
        names, prints = self._fingerprints()
        mine = torch.tensor(
            [float(step), sum(losses) / len(losses) if losses else math.nan, *prints], dtype=torch.float64
        )
        self._send(mine, lambda rows: self._compare(rows, names))
        shards, contained = self._shards, self._observer.containment
        contained.run("sharded weights", shards.agree, self._store, self.rank, self.size, step, LIMIT)
        measured = shards.message(step)
        if measured is not None:
            self._send(measured, lambda rows: shards.hear(step, rows))
        sampled = shards.samples(step)
        if sampled is not None:
            self._send(sampled, lambda rows: shards.hear_samples(step, rows))

    def _send(self, mine: Tensor, hear: Callable[[Tensor], None]) -> None:
        theirs = [torch.empty_like(mine) for _ in range(self.size)]
        self._running.append((self._group.allgather([theirs], [mine]), theirs, hear))

    def _hear(self, limit: timedelta | None = None) -> None:
        """Take in the comparisons that all have answered; wait for the others only where a limit is given."""
        while self._running and (limit is not None or self._running[0][0].is_completed()):
            work, theirs, hear = self._running.popleft()
            try:
                work.wait(limit or LIMIT)
            except RuntimeError:
                return self._lose("one of them did not answer")
            hear(torch.stack(theirs))
        return None

    def _fingerprints(self) -> tuple[list[str], list[float]]:
        """Names, and (a random projection of a sample of the values, the sum of their magnitudes) for each."""
        names, found = [], []
        for model in self._models:
            ignored = getattr(model, "parameters_to_ignore", ())
            if getattr(model, "_comm_hooks", None):  # such as those that average only now and then
                continue
            for name, parameter in model.module.named_parameters():
                sample = None if name in ignored else _sample(parameter)
                if sample is not None:
                    names.append(name)
                    found.append(torch.stack([(sample * _weights(sample)).sum(), sample.abs().sum()]))
        if not found:
            return [], []
        rows = torch.stack([row.cpu() for row in found])
        if len(rows) > _MOST_PLACES:
            width = -(-len(rows) // _MOST_PLACES)
            names = names[::width]
            rows = torch.stack([part.sum(0) for part in rows.split(width)])
        return names, rows.reshape(-1).tolist()

    def _compare(self, rows: Tensor, names: list[str]) -> None:
        observer, steps = self._observer, rows[:, 0]
        if bool((steps != steps[0]).any()):
            return self._lose("they are not at the same step")
        step = int(steps[0])
        for rank, loss in enumerate(rows[:_MOST_RANKS, 1].tolist()):
            observer.recorder.scalar(f"loss (rank {rank})", step, loss)
        facts = observer.facts
        facts["ranks_compared"] = float(facts.get("ranks_compared", 0.0)) + 1
        facts["ddp_calls"] = float(self._calls)
        prints = rows[:, _HEAD:].reshape(self.size, -1, 2)
        spread = (prints[:, :, 0].amax(0) - prints[:, :, 0].amin(0)) / prints[:, :, 1].amax(0).clamp_min(1e-300)
        if not len(spread) or not bool((spread > 0).any()):
            for name in [name for name in facts if name.startswith("ranks_differ")]:
                del facts[name]
            return None
        first = int((spread > 0).nonzero()[0])
        facts.setdefault("ranks_differ_step", float(step))
        facts.setdefault("ranks_differ_parameter", names[first])
        facts["ranks_differ_by"] = float(spread.nan_to_num(math.inf).max())
        facts["ranks_differ_samples"] = float(facts.get("ranks_differ_samples", 0.0)) + 1
        facts["ranks_differ_share"] = float((spread > 0).double().mean())
        return None


def _by_environment() -> tuple[int, int]:
    """(rank, processes) as torchrun tells every process that it starts; (0, 1) elsewhere."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return 0, 1
    try:
        return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        return 0, 1


def _sample(parameter: Tensor) -> Tensor | None:
    if statistics.floats(parameter) is None or type(parameter).__name__ == "DTensor":
        return None
    return statistics.strided(parameter, statistics.sample_stride(parameter)).double()


def _weights(sample: Tensor) -> Tensor:
    """Fixed and irregular, so that values which change places do not cancel; no random state is used."""
    return (
        torch.frac(torch.arange(1, sample.numel() + 1, dtype=torch.float64, device=sample.device) * 0.6180339887) + 0.5
    )


# --- replays alone ---------------------------------------------------------------------------------------------------


class _NoCollectives(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name().startswith(_COLLECTIVES):
            raise CannotReplayError("the step talks to the other processes, which would not answer to a copy")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """No word to the other processes while a step is run again here: they are elsewhere, and would wait or be misled.

    A replay that wants to communicate raises CannotReplayError. With one process this does nothing and costs nothing.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        yield
        return
    with _NoCollectives():  # type: ignore[no-untyped-call]
        yield
