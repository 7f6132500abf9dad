"""The check `data-changed-by-access`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.symptoms import NO_LEARNING
from netdoctor.finding import Abstention, Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, SourceLine

ARM = "data/read again"
_SYMPTOMS = """
overfitting train-eval-shift conflicting-labels unnormalised-input unnormalised-target feature-scales input-outliers
constant-feature label-input-mismatch
"""
_ASSIGNED = re.compile(r"^(?P<left>[^=]*[^=!<>+\-*/])=(?!=)\s*(?P<value>[^#]+?)\s*(?:#.*)?$")

_BRACKETS = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")


@dataclass(frozen=True)
class DataChangedByAccess(Check):
    """Reading an item changes the data that the dataset holds, so that later readings give something else.

    What it is: `__getitem__` takes a view (a slice of an array, an entry of a tensor) and works on it in place: it
    normalises it, adds noise, blanks a part. What it writes to is the stored data.
    Why it hurts: each access leaves the data further from what was measured: windows that overlap are scaled by one another,
    noise adds up, images are blanked bit by bit.
    How it is decided: what the dataset holds is kept before it is read first. Where it differs later, items are read from
    copies of the dataset: under the same random state, with all else as it was, an item comes out by 1 % or more of its
    size otherwise after it and its neighbours were read, and again otherwise after the next round of reading.
    When it stays silent: caches that are filled on first access; items that come out the same; indices that change the same
    place (counters, running statistics), or one number each; data that only workers change; more than 64 MB of data.
    A warning where the item comes back to what it was (an image that is mirrored in place).
    Fix: `.copy()` or `.clone()` of the view, in the line that takes it.
    Sources: NumPy's user guide, copies and views; PyTorch's notes on tensor views.
    """

    name = "data-changed-by-access"
    arms = frozenset({ARM})
    explains = NO_LEARNING | frozenset(_SYMPTOMS.split())

    change: float = 0.01  # of an item's size: less is a rescaling by what was one already
    rounds: int = 2  # of reading that change it: a cache of random values changes it once
    numbers: int = 2  # that one access changes: a count of accesses is one

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        arm = recording.arms.get(ARM)
        if arm is None:
            return
        if arm.failure:
            yield Abstention(self.name, arm.failure)
            return
        facts = arm.facts
        change, rounds, numbers = (float(facts.get(key, 0.0)) for key in ("change", "rounds", "numbers"))
        if change < self.change or rounds < self.rounds or numbers < self.numbers or not facts.get("local"):
            return
        dataset, held = str(facts.get("dataset", "")), str(facts.get("stored", ""))
        by = f"{100 * change:.3g} %" if change < 10 else f"{change:.0f} times its size"
        what = f"`{held}`" if held else "the data"
        yield Finding(
            self.name,
            f"reading an item of {dataset} changes {what}: the same item is another one when it is read again",
            Severity.WARNING if facts.get("returns") else Severity.ERROR,
            f"Item {float(facts['index']):.0f}, read from a copy again and again with its neighbours, under the same random state, "
            f"came out otherwise after {rounds:.0f} rounds of reading, by up to {by}. One access writes to "
            f"{numbers:.0f} stored numbers: it works in place on a view of them.",
            Location.at(_source(facts), operation=str(facts.get("function", "")) or None, step=0),
            (Evidence("change of an item by reading", 100 * change, "≥", 100 * self.change, "%"),),
            (Fix("copy-item", "Work on a copy of what is stored.", _code(facts), Reach.RUN),),
            Certainty.PROVEN,
            first_step=0,
            share=1.0,
        )


def _source(facts: Mapping[str, float | str | bool]) -> SourceLine | None:
    file = str(facts.get("file", ""))
    return SourceLine(file, int(float(facts.get("line", 0))), str(facts.get("text", ""))) if file else None


def _code(facts: Mapping[str, float | str | bool]) -> str:
    """The line that takes the view, with a copy; else a line to stand before the one that writes."""
    name, text = str(facts.get("name", "")), str(facts.get("mend_text", ""))
    method = "clone()" if facts.get("tensor") else "copy()"
    found = _ASSIGNED.match(text)
    if found and text.count("(") == text.count(")") and text.count("[") == text.count("]") and "," not in found["left"]:
        bare = found["value"]
        while (less := _BRACKETS.sub("", bare)) != bare:
            bare = less
        value = found["value"] if re.fullmatch(r"[\w.]+", bare) else f"({found['value']})"
        return f"{found['left'].rstrip()} = {value}.{method}  # line {float(facts.get('mend_line', 0)):.0f}"
    if name and name != "self":
        return f"{name} = {name}.{method}  # before line {float(facts.get('line', 0)):.0f}"
    return "item = self.data[index].copy()  # of a tensor: .clone(); then work on the copy"
