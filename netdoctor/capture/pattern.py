"""The steps of a loop that repeats itself are followed by their calls alone.

Once several steps in a row made the same calls (zero_grad, model, loss function, backward, optimizer step) on the same objects, the
operations between them are known: only what the model, the loss function and operations of the loop's own (operands.py) are given
is new. From then on nothing else is watched, which makes a plain step cheap, and a step can still be put together for a replay:
the known operations with the new arguments. The first call that is not the expected one ends this, and the step goes on as any
other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from netdoctor.capture.likeness import of_functional, same_step
from netdoctor.capture.operands import Key, Trial, counts, entry_key, key_of
from netdoctor.capture.tape import Backward, Constant, Context, Entry, random_states, version
from netdoctor.capture.tree import substitute, tensors

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer

ALIKE = 2  # steps in a row that must be like the one before
TRIES = 64  # steps after which a loop that never repeats itself is left alone
MISSES = 8  # patterns that broke: this loop has several, and is watched in full

Event = tuple[Any, ...]


@dataclass(slots=True)
class Call:
    """What a plain step keeps of a call of a model or a loss function, until the step is over."""

    args: Any
    kwargs: Any
    context: Context | None  # None for a function: random numbers go on from the model's
    versions: list[int]  # of the tensors among the arguments; empty when the step is not kept


@dataclass(slots=True)
class Template:
    """A step that repeats itself: its events in order, its backward calls, and which entries have new arguments each time."""

    events: list[Event]
    backwards: list[Backward]
    renewed: set[int]  # ids of those entries
    positional: dict[int, int]  # how many arguments torch hands on without a name, by the same ids


class Pattern:
    """Finds out whether a loop repeats itself, and follows it while it does."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._trace: list[Event] = []
        self._spoiled = False
        self._last: tuple[list[Event], list[Backward]] | None = None
        self._streak = self._tries = self._misses = 0
        self._template: Template | None = None
        self.functions: frozenset[str] = frozenset()  # of torch.nn.functional that are among the pattern's calls
        self._probed: dict[str, int] | None = (
            None  # calls that were reported in a trial step, before the pattern is relied on
        )
        self.operations: frozenset[Key] = frozenset()  # of the loop's own, among the pattern's calls: see operands.py
        self._trial: Trial | None = None  # what these report in the trial step
        self._before: list[int] = []  # how many of these calls there are before each backward
        self._reported = 0  # of these calls, in this step
        self._events: list[Event] = [("end",)]
        self._cursor = 0
        self._counts: dict[Key, int] = {}  # calls of each module and function in a step that is watched in full
        self._calls: dict[Key, list[Call]] = {}  # of each module and function in a step that follows the pattern
        self._built: list[Backward | float | None] = []  # a number where it is yet to be put together: its loss
        self._filled: dict[int, Entry | None] = {}
        # Asked to report the calls of a function of torch.nn.functional.
        self.intercept: Callable[[str], None] = lambda name: None

    # --- learning ----------------------------------------------------------------------------------------------------

    def note(self, *event: Any) -> None:
        """A call of a step that is watched in full."""
        if self._template is None or self._probed is not None:
            self._trace.append(event)
        if self._trial is not None and event[0] == "backward":
            self._trial.before.append(self._reported)

    def number(self, of: Any) -> int:
        """The how-manieth call of a module or function in this step this is, from 0."""
        key = key_of(of)
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        return count

    def spoil(self) -> None:
        """Something happened in this step that no pattern holds."""
        self._spoiled = True

    def learn(self, backwards: list[Backward]) -> None:
        """A step is over that was watched in full."""
        events, self._trace = self._trace, []
        self._counts.clear()
        self._reported = 0
        spoiled, self._spoiled = self._spoiled, False
        if self._probed is not None:
            self._try_out(events, backwards)
        if self._template is not None or self._tries >= TRIES or self._misses >= MISSES:
            self._last = None
            return
        self._tries += 1
        count = sum(event[0] == "backward" for event in events)
        good = not spoiled and bool(events) and events[-1][0] == "step" and count == len(backwards) > 0
        last, self._last = self._last, (events, backwards) if good else None
        renewed: set[int] = set()
        if last is None or not good or last[0] != events or not same_step(last[1], backwards, renewed):
            self._streak = 0
            return
        self._streak += 1
        if self._streak >= ALIKE:
            self._last = None
            self._make(events, backwards, renewed)

    def _make(self, events: list[Event], backwards: list[Backward], renewed: set[int]) -> None:
        new = [e for b in backwards for e in b.entries if id(e) in renewed]
        loose = [e for e in new if e.module is None]
        names = frozenset(e.name for e in loose if of_functional(e))
        for name in names:
            self.intercept(name)
        blank = {id(e): _blank(e) for e in new}
        kept = [replace(b, entries=[blank.get(id(e)) or _going_on(e) for e in b.entries]) for b in backwards]
        given = {id(blank[id(e)]): len(e.args) for e in loose}
        self._template = Template(events, kept, {id(e) for e in blank.values()}, given)
        self._events, self.functions = [*events, ("end",)], names
        self.operations = frozenset(key_of(e.call) for e in loose if not of_functional(e))
        self._probed = dict.fromkeys(names, 0) if loose else None
        self._trial = Trial() if loose else None

    def _try_out(self, events: list[Event], backwards: list[Backward]) -> None:
        """Whether every known call was reported: a script may hold a function under a name of its own."""
        probed, self._probed = self._probed, None
        trial, self._trial = self._trial, None
        if self._template is None or probed is None:
            return
        wanted = {id(e): e.name for b in self._template.backwards for e in b.entries if id(e) in self._template.renewed}
        for name in wanted.values():
            if name in probed:
                probed[name] -= 1
        if any(count < 0 for count in probed.values()):
            self._template, self._misses = None, MISSES
        elif events != self._template.events:
            self._template, self._streak = None, 0
        elif trial is not None and not trial.agrees(backwards, self.operations):
            self._template, self._misses = None, MISSES
        self._before = [] if trial is None else trial.before
        if self._template is None:
            self.operations = frozenset()

    # --- following ---------------------------------------------------------------------------------------------------

    @property
    def known(self) -> bool:
        """Whether the next step is expected to be like the ones before."""
        return self._template is not None and self._probed is None

    def begin(self) -> None:
        """A step begins that is expected to be like the ones before."""
        self._cursor = self._reported = 0
        self._calls, self._built, self._filled = {}, [], {}

    def _complete(self) -> bool:
        """Whether the loop's own operations ran as often as they do before the backward call that is coming."""
        number = len(self._built)
        return not self.operations or (number < len(self._before) and self._reported == self._before[number])

    def expects(self, *event: Any) -> bool:
        """Whether this is the next call of the pattern; when it is not, the pattern is given up."""
        if self._events[self._cursor] == event and (event[0] != "backward" or self._complete()):
            self._cursor += 1
            return True
        self.leave()
        return False

    def leave(self) -> None:
        """The running step is another than expected: it is watched as any other from here on."""
        seen = self._events[: self._cursor]
        self._template, self._events, self._streak, self._tries = None, [("end",)], 0, 0
        self.operations = frozenset()
        self._misses += 1
        self._calls, self._filled, self._trace, self._spoiled = {}, {}, list(seen), True
        self._observer.leave_pattern(seen)

    def release(self) -> None:
        """Let go of models, batches and optimizers."""
        self._template, self._last, self._events, self._trial = None, None, [("end",)], None
        self.operations = frozenset()
        self._calls, self._built, self._filled, self._misses = {}, [], {}, MISSES
        self._observer.light = None

    def entering(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        """Whether an outermost module call is one of the pattern's; its arguments are kept then."""
        if not torch.is_grad_enabled():  # an evaluation or a target is looked at as ever
            return False
        if not self.expects("unit", id(module), module.training):
            return False
        self._keep(id(module), args, kwargs, module=True)
        if self._observer.evaluation.batch.wanted:
            self._observer.evaluation.batch.passes((args, kwargs))
        return True

    def called(self, name: str, args: Any, kwargs: Any) -> None:
        """A function of torch.nn.functional was called outside of any model."""
        if self._probed is not None:
            if name in self._probed:
                self._probed[name] += 1
            return
        known = self._template is not None and name in self.functions
        if not known or self._observer.light is None or not torch.is_grad_enabled():
            return
        if counts(args, kwargs):
            self._keep(name, args, kwargs, module=False)

    def operation(self, call: Any, args: Any, kwargs: Any) -> None:
        """A function of torch was called outside of any model."""
        key = key_of(call)
        if key not in self.operations or not torch.is_grad_enabled() or not counts(args, kwargs):
            return
        self._reported += 1
        if self._trial is not None:
            self._trial.see(key, args, kwargs)
        elif self._observer.light is not None:
            self._keep_operation(key, args, kwargs)

    def _keep_operation(self, key: Key, args: Any, kwargs: Any) -> None:
        self._keep(key, args, kwargs, module=False)

    def _keep(self, key: Key, args: Any, kwargs: Any, module: bool) -> None:
        kept = self._observer.program.capturing
        context = random_states(kept) if kept or module else None
        versions = [version(t) for t in tensors((args, kwargs))] if kept else []
        self._calls.setdefault(key, []).append(Call(args, kwargs, context, versions))

    # --- putting a step together -------------------------------------------------------------------------------------

    def backwards(self) -> list[Backward]:
        """The backward calls of the running step so far, for a replay; none when one of them cannot be put together."""
        done, self._built = self._built, []
        found = [self.build(known) if isinstance(known, float) else known for known in done]
        return [backward for backward in found if backward is not None] if all(found) else []

    def postpone(self, value: float) -> None:
        """A backward call of this loss is running; it is put together only if the step turns out to be of interest."""
        self._built.append(value)

    def build(self, value: float) -> Backward | None:
        """The backward call that is running, for a replay: the pattern's operations with this step's arguments."""
        template, number = self._template, len(self._built)
        made = None
        if template is not None and number < len(template.backwards):
            known = template.backwards[number]
            entries = self._entries(known, template.renewed)
            if entries is not None:
                made = replace(known, entries=entries, value=value)
        self._built.append(made)
        return made

    def given(self, key: Key) -> list[Call]:
        """The calls of a module, function or operation in the running step."""
        return self._calls.get(key, [])

    def _entries(self, known: Backward, renewed: set[int]) -> list[Entry] | None:
        found: list[Entry] = []
        for entry in known.entries:
            if id(entry) not in renewed:
                found.append(entry)
                continue
            if id(entry) not in self._filled:
                calls = self.given(entry_key(entry, self.functions))
                call = calls[entry.nth] if entry.nth < len(calls) else None
                self._filled[id(entry)] = None if call is None else _fill(entry, self._as_torch_has_it(entry, call))
            filled = self._filled[id(entry)]
            if filled is None:
                return None
            found.append(filled)
        return found

    def _as_torch_has_it(self, entry: Entry, call: Call) -> Call:
        """A call of a function with as many arguments without a name as torch hands on: it was seen as the user, or a loss module,
        wrote it, and who reads the arguments of a loss knows them by their names."""
        count = len(call.args) if self._template is None else self._template.positional.get(id(entry), len(call.args))
        function = entry.call
        if len(call.args) == count or function is None:
            return call
        names = list(inspect.signature(inspect.unwrap(function)).parameters)
        kwargs = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        if not kwargs.keys() >= set(names[:count]):  # a function that takes anything
            return call
        args = tuple(kwargs.pop(name) for name in names[:count])
        return replace(call, args=args, kwargs=kwargs)


def call_site(frame: FrameType) -> Event:
    """Where a call was made: the same place of the same code gives the same event."""
    return "backward", frame.f_code, frame.f_lineno


def _blank(entry: Entry) -> Entry:
    """An entry whose arguments are only told by what they mean: what this step was given is let go."""
    kept = [None if isinstance(meaning, Constant) else meaning for meaning in entry.meanings()]
    return replace(entry, args=kept, kwargs={}, outputs=list(entry.outputs))


def _going_on(entry: Entry) -> Entry:
    """An entry as it is; what it draws goes on from the model's random numbers, which are this step's."""
    context = entry.context
    if entry.module is not None or context is None or context.cpu_random is None:
        return entry
    return replace(entry, outputs=list(entry.outputs), context=replace(context, cpu_random=None, cuda_random=None))


def _fill(entry: Entry, call: Call) -> Entry | None:
    """A blank entry with the arguments of a new call; None when they are of another form."""
    given = list(tensors((call.args, call.kwargs)))
    if len(given) != len(entry.args) or any(
        meaning is None and tensor.requires_grad for meaning, tensor in zip(entry.args, given, strict=True)
    ):
        return None
    meant = iter(zip(entry.args, call.versions or [version(tensor) for tensor in given], strict=True))

    def meaning(tensor: Tensor) -> Any:
        known, at = next(meant)
        return Constant(tensor, at) if known is None else known

    args, kwargs = substitute((call.args, call.kwargs), meaning)
    context = call.context
    if entry.context is not None and context is not None:
        context = replace(context, autocast=entry.context.autocast)
    modes = () if entry.module is None else tuple(child.training for child in entry.module.modules())
    return replace(entry, args=args, kwargs=kwargs, context=context, modes=modes)
