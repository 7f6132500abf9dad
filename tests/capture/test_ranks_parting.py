"""A group is destroyed only after its threads had the interpreter's lock (see `_PARTING` in netdoctor/capture/ranks.py)."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from netdoctor.capture.observer import Observer
from netdoctor.capture.ranks import Ranks


class Waiting:
    """A thread that needs the lock once, as gloo's do when a piece of their work is over."""

    def __init__(self) -> None:
        self._over, self.had_it = threading.Event(), False
        self._thread = threading.Thread(target=self._need)
        self._thread.start()

    def _need(self) -> None:
        self._over.wait()
        self.had_it = True

    def is_over(self) -> None:
        self._over.set()

    def join(self) -> None:
        self._over.set()
        self._thread.join()


@pytest.fixture
def waiting() -> Iterator[Waiting]:
    """The lock changes hands only where its holder lets go of it by itself."""
    interval = sys.getswitchinterval()
    thread = Waiting()
    sys.setswitchinterval(1000.0)
    yield thread
    sys.setswitchinterval(interval)
    thread.join()


@pytest.fixture
def destroyed(monkeypatch: pytest.MonkeyPatch, waiting: Waiting) -> list[bool]:
    """For every time that the user's group was destroyed: whether the thread had had the lock by then."""
    seen: list[bool] = []
    for module in (dist, dist.distributed_c10d):
        monkeypatch.setattr(module, "destroy_process_group", lambda *args: seen.append(waiting.had_it))
    return seen


def test_without_the_patch_a_thread_may_still_wait(waiting: Waiting, destroyed: list[bool]) -> None:
    waiting.is_over()
    dist.destroy_process_group()
    assert destroyed == [False]


@pytest.mark.parametrize("name", ["destroy_process_group", "distributed_c10d.destroy_process_group"])
def test_the_users_group(name: str, waiting: Waiting, destroyed: list[bool]) -> None:
    ranks = Ranks(Observer())
    ranks.install()
    try:
        waiting.is_over()
        (dist if "." not in name else dist.distributed_c10d).destroy_process_group()
    finally:
        ranks.close()
    assert destroyed == [True]


def test_our_own_group(waiting: Waiting) -> None:
    class Group:
        def __del__(self) -> None:
            gone.append(waiting.had_it)

    gone: list[bool] = []
    ranks = Ranks(Observer())
    ranks._group = Group()
    waiting.is_over()
    ranks.close()
    assert gone == [True]
