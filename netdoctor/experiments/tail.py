"""The end of a captured step by itself: what the loop does with the outputs of its models, up to the loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from netdoctor.capture.step import Copies, Replay
from netdoctor.capture.tape import Backward, Constant, Entry, Leaf, Slot


@dataclass(frozen=True, slots=True)
class Tail:
    """A backward call in two parts: `head` holds all that touches weights, and what that needs; `entries` the rest.

    `given` are the slots that the head makes and the rest reads, `losses` the slots of the losses. No entry of the head
    reads one of the rest.
    """

    head: list[Entry]
    entries: list[Entry]
    given: tuple[int, ...]
    losses: tuple[int, ...]

    def constants(self) -> list[Constant]:
        """The constants of the rest, each once, in order."""
        found = [item for entry in self.entries for item in entry.meanings() if isinstance(item, Constant)]
        return list({id(item.tensor): item for item in found}.values())

    def replaced(self, backward: Backward, call: Callable[..., tuple[Tensor, ...]]) -> Backward:
        """The backward with one call in place of the rest: it gets what is `given`, and gives back the losses."""
        one = Entry(call, None, tuple(map(Slot, self.given)), {}, list(self.losses), name="tail")
        return replace(backward, entries=[*self.head, one])


def split(backward: Backward) -> Tail | None:
    """The two parts; None where a loss is made by a module with weights, or nothing lies behind these."""
    wanted: set[int] = set()
    head: list[Entry] = []
    rest: list[Entry] = []
    for entry in reversed(backward.entries):
        if _touches_weights(entry) or wanted.intersection(entry.outputs):
            head.append(entry)
            wanted.update(entry.inputs())
        else:
            rest.append(entry)
    made = {number for entry in rest for number in entry.outputs}
    losses = tuple(slot.number for slot in backward.losses)
    read = dict.fromkeys(number for entry in rest[::-1] for number in entry.inputs() if number not in made)
    return Tail(head[::-1], rest[::-1], tuple(read), losses) if made.issuperset(losses) else None


def _touches_weights(entry: Entry) -> bool:
    if entry.module is not None and next(entry.module.parameters(), None) is not None:
        return True
    return any(isinstance(item, Leaf) for item in entry.meanings())


class Rerun(Replay):
    """Runs entries on values that are given: a replay that begins in the middle of a step."""

    def __init__(self, copies: Copies, values: dict[int, Tensor]) -> None:
        super().__init__(copies)
        self._values.update(values)

    def results(self, entries: list[Entry], numbers: tuple[int, ...]) -> tuple[Tensor, ...]:
        """Run the entries in order; the tensors of these slots."""
        for entry in entries:
            self.run_entry(entry)
        return tuple(self._values[number] for number in numbers)
