"""Numbers that another device is still working out: fetched without ever waiting for it, and read once they are there.

A read-back that waits would stop the host in every step until the device has caught up. So the numbers of a step are copied into
pinned memory behind the work that makes them, with an event after them; later steps ask the event, and read what has arrived.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

MOST = 64  # steps under way: a host that is further ahead waits for the oldest one, which its device finished long ago

TOO_LATE = "on this device a step is only heard of after it, when the weights have moved: it could not be run again"

Numbers = list[tuple[Any, float]]  # with what the caller named each of them by


class Copy(Protocol):
    """Numbers on their way to the host."""

    def arrived(self) -> bool:
        """Whether they are there; never waits."""

    def wait(self) -> None:
        """Wait until they are there."""

    def read(self) -> list[float]:
        """The numbers, once they are there."""


class PinnedCopy:
    """A copy into pinned memory, with an event behind it in the device's stream."""

    def __init__(self, values: Tensor) -> None:
        self._there = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._there.copy_(values, non_blocking=True)
        self._event: Any = torch.get_device_module(values.device).Event()
        self._event.record()

    def arrived(self) -> bool:
        """Whether the device has passed the event."""
        return bool(self._event.query())

    def wait(self) -> None:
        """Wait for the event."""
        self._event.synchronize()

    def read(self) -> list[float]:
        """The numbers, once they are there."""
        return [float(value) for value in self._there.tolist()]


class LateNumbers:
    """The numbers of steps that are over, in order. `came` is told each step and its numbers; `copy` starts a transfer."""

    def __init__(self, came: Callable[[int, Numbers], None], copy: Callable[[Tensor], Copy] = PinnedCopy) -> None:
        self._came, self._copy = came, copy
        self.under_way: deque[tuple[int, list[Any], Copy]] = deque()

    def __bool__(self) -> bool:
        """Whether any are under way."""
        return bool(self.under_way)

    def put(self, step: int, numbers: list[tuple[Any, Tensor]]) -> None:
        """Fetch the numbers of a step: tensors of one element, all on one device."""
        values = torch.stack([value.reshape(()).float() for _, value in numbers])
        self.under_way.append((step, [name for name, _ in numbers], self._copy(values)))
        if len(self.under_way) > MOST:
            self.under_way[0][2].wait()

    def poll(self) -> None:
        """Read what has arrived."""
        while self.under_way and self.under_way[0][2].arrived():
            step, names, copy = self.under_way.popleft()
            self._came(step, list(zip(names, copy.read(), strict=True)))

    def wait(self) -> None:
        """Read everything, and wait for it: for a step that waits anyway."""
        while self.under_way:
            self.under_way[0][2].wait()
            step, names, copy = self.under_way.popleft()
            self._came(step, list(zip(names, copy.read(), strict=True)))
