"""Plain steps: those that follow the pattern of the loop, and are neither measured nor kept to be run again on a copy.

Nearly all steps of a long training are plain, so these methods are written flat: a step of a small model takes a millisecond, and a
Python call one ten-thousandth of it. Each tells whether the call was the expected one; when it was not, or when something is not
finite, the caller goes the long way, which finds out what happened.
"""

from __future__ import annotations

import math
import threading
from math import isfinite
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture import late, norms, tripwire
from netdoctor.capture.containment import STRIKES
from netdoctor.capture.exact import LayerOutputs
from netdoctor.capture.ledger import Place, kinds_of, named, stepping_place, write_down
from netdoctor.capture.operands import Key, counts
from netdoctor.capture.optimizers import Optimizers
from netdoctor.capture.pattern import Call, Event, Pattern
from netdoctor.capture.products import products
from netdoctor.capture.recorder import LATER, SeriesRecorder
from netdoctor.capture.step import Iteration
from netdoctor.capture.tape import Context

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer

# After the first steps the gradient norm is taken in every 4th plain step, in the others only whether it is finite; and after
# still more steps in every 16th.
_NORMS, _LATE, _LATE_NORMS = 4, 512, 16
_MOVES = 0.5  # but always where the loss moved by so much of itself since the step before
_DEFERRED = 64  # steps at most whose numbers are not yet where they belong
_STILL = 8  # plain steps in a row without a random number, after which the generator's state is no longer kept,
_LOOK_AGAIN = 64  # but in every 64th step, to see whether that is still so
# A number that grew so much from one step to the next: so many steps are not plain.
_WARY_GROWTH, _WARY_STEPS = 10.0, 32
_NOTHING_DRAWN = Context(True, None, None, None)
grad_enabled = torch.is_grad_enabled
Passed = tuple[Key, Any, Any, "Context | None"]  # key, arguments, and the random states where it is a model


class PlainSteps(Pattern):
    """The pattern of a loop, with the short way through a step."""

    def __init__(self, observer: Observer) -> None:
        super().__init__(observer)
        self.on = False  # the running step is plain, so far
        self.series: dict[Event, SeriesRecorder] = {}  # of the losses, by the place of the backward call
        self.optimizers: Optimizers | None = None
        self._recorder = observer.recorder
        self._changes = observer.program.changes
        self._batch = observer.evaluation.batch
        self._state = torch.default_generator.get_state
        self._places: list[Place | None] = []  # one for each event
        self._products: dict[int, int | None] = {}  # weights of which a row and a column tell → their biases
        self._leaves: set[int] = set()  # all that were asked for
        self._drawn: Tensor | None = None  # the generator's state before the first model of this step
        self._still = 0  # plain steps in a row that drew no random number from there to `backward`
        self._passed: list[Passed] = []  # the calls of models and functions in this step
        self._kinds: list[str | None] = []  # under which each event is counted
        self._ticking = True  # events are still kept one by one
        self._deferred = False  # what this step and those from `_since` on gave is not yet in the recorder
        self._since = 0
        self._faults = 0
        self._wary = 0  # until this step none is plain
        self._moved = False  # the loss did, since the step before
        self._waiting: list[tuple[SeriesRecorder | str, Tensor]] = []  # of this step, which another device works out
        self._late = late.LateNumbers(self._came_late)

    def begin(self, plain: bool = False) -> None:
        """A step begins that is expected to be like the ones before; `plain`: and no more is wanted of it than that."""
        super().begin()
        self.catch_up()
        self._passed.clear()
        self._drawn = None
        self.on = plain = plain and self._faults < STRIKES and self._recorder.step >= self._wary
        if not plain:
            self._late.wait()
            return
        if len(self._places) != len(self._events):
            self._places, self._kinds, self._ticking = [None] * len(self._events), kinds_of(self._events), True
        self._defer()

    def _again(self) -> None:
        """The same, after a plain step and before another one."""
        self._cursor = self._reported = 0
        self._drawn = None
        self._built.clear()
        self._passed.clear()
        if self._filled:
            self._filled.clear()
        if self._late.under_way:
            self._late.poll()
            if self._recorder.step < self._wary:
                self.begin()
                return
        if not self._deferred or self._recorder.step - self._since >= _DEFERRED:
            self.catch_up()
            self._defer()

    def _defer(self) -> None:
        """A plain step is about to begin: from here on keep numbers as they come, once no event is kept by itself."""
        if self._ticking:
            self._ticking = not self._recorder.full({kind for kind in self._kinds if kind})
        self._deferred, self._since = not self._ticking, self._recorder.step

    def catch_up(self, anyhow: bool = False) -> None:
        """Bring the recorder up to date: to be called before anything in it is read, or written by others. The rest of the running
        step is recorded as it comes. Another thread gets what is there, unless it ends the observation."""
        if self._deferred and (anyhow or threading.get_ident() == self._observer.thread):
            self._deferred = False
            self._observer.containment.run("bookkeeping", self._write_down)

    def _write_down(self) -> None:
        steps = self._since, self._recorder.step
        stepping = self._observer.stepping
        write_down(self._recorder, self.optimizers, self._kinds, self._places, steps, self._cursor, stepping)

    def expects(self, *event: Any) -> bool:
        """Whether this is the next call of the pattern, in a step that goes the long way: what it records comes after all this."""
        self.catch_up()
        return super().expects(*event)

    def leave(self) -> None:
        """The running step is another than expected."""
        self._forget()
        super().leave()

    def release(self) -> None:
        """Let go of models, batches and optimizers."""
        self._forget()
        super().release()

    def _forget(self) -> None:
        self.catch_up(anyhow=True)
        self.on = False
        if self._waiting:
            self._late.put(self._recorder.step, self._waiting)
            self._waiting = []
        self._late.wait()
        self._places = []
        self._products, self._leaves = {}, set()
        self._passed.clear()

    def _came_late(self, step: int, numbers: list[tuple[SeriesRecorder | str, float]]) -> None:
        """What another device saw in a step that is over by now: losses and norms, and outputs by the keys of their modules."""
        for series, value in numbers:
            if isinstance(series, str):
                if not isfinite(value):
                    self._observer.trip_late("forward", value, step, series)
                continue
            last = series.last
            series.add(step, value)
            if not isfinite(value):
                gradients = series in self._recorder.scalars.values()
                self._observer.trip_late("backward" if gradients else "forward", value, step)
                return
            if abs(value) > _WARY_GROWTH * abs(last):  # what comes next is looked at in time, and can be run again
                self._wary = self._recorder.step + _WARY_STEPS

    def failed(self, where: str, error: Exception) -> bool:
        """The short way failed in code of ours: this step goes the long way, and after a few of them all do. Never True."""
        self.catch_up()
        self.on = False
        self._faults += 1
        self._observer.containment.note(where, error)
        return False

    # --- the calls of a step, in the order of a usual loop -----------------------------------------------------------

    def zero(self, owner: Any) -> bool:
        """An optimizer or a model is about to clear its gradients."""
        event = self._events[self._cursor]
        if event[0] != "zero" or event[1] != id(owner):
            return False
        self._cursor += 1
        if not self._deferred:
            self._tick("zero_grad")
        return True

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> bool:
        """An outermost module is about to run."""
        event = self._events[self._cursor]
        if event[0] != "unit" or event[1] != id(module) or event[2] is not module.training:
            return False
        if not grad_enabled():
            return False
        self._cursor += 1
        context = _NOTHING_DRAWN
        cuda = torch.cuda._initialized
        if cuda or self._still < _STILL or not self._recorder.step % _LOOK_AGAIN:
            state = self._state()
            context = Context(True, None, state, torch.cuda.get_rng_state_all() if cuda else None)
            if self._drawn is None:
                self._drawn = state
        self._passed.append((id(module), args, kwargs, context))
        if self._batch.wanted:
            self._batch.passes((args, kwargs))
        return True

    def function(self, name: str, args: Any, kwargs: Any) -> None:
        """A function of torch.nn.functional is about to run, outside of any model."""
        if name not in self.functions or not grad_enabled():
            return
        if (args and type(args[0]) is Tensor and args[0].requires_grad) or counts(args, kwargs):
            self._passed.append((name, args, kwargs, None))

    def _keep_operation(self, key: Key, args: Any, kwargs: Any) -> None:
        if self.on:
            self._passed.append((key, args, kwargs, None))
        else:
            super()._keep_operation(key, args, kwargs)

    def backward(self, loss: Tensor, frame: FrameType) -> bool:
        """`loss.backward()` is about to run, called from `frame`."""
        observer, cursor = self._observer, self._cursor
        if observer.mode.on:
            observer.mode.leave()
        event = self._events[cursor]
        if event[0] != "backward" or event[1] is not frame.f_code or (self.operations and not self._complete()):
            return False
        place = self._places[cursor]
        if (
            place is None or place.lasti != frame.f_lasti
        ):  # the same instruction stands in the same line, which is slow to ask
            if event[2] != frame.f_lineno:
                return False
            self.catch_up()
            place = self._places[cursor] = Place(self.series.get(event), frame.f_lasti)
            self._ask(loss)
        outputs = observer.outputs
        if place.series is None or (outputs is not None and not self._outputs_fine(outputs)):
            return False
        if self._drawn is not None:
            self._still = self._still + 1 if torch.equal(self._drawn, self._state()) else 0
            self._drawn = None
        if loss.is_cpu:
            value = loss.item()
            if not isfinite(value):
                self._late.wait()  # it may have begun in a step that is not heard of yet
                return False
            self._moved = abs(value - place.value) > _MOVES * abs(place.value)
            place.value = value
        else:
            value = math.nan
            self._waiting.append((place.series, loss.detach()))
        if self._deferred:
            place.values.append(value)
        else:
            if loss.is_cpu:
                place.series.add(self._recorder.step, value)
            self._tick("backward")
        self._built.append(value)
        self._cursor = cursor + 1
        return True

    def _ask(self, loss: Tensor) -> None:
        """A weight counts as a product where it is one for every loss that it is in."""
        found, leaves = products(loss)
        for leaf in leaves:
            known = self._products.pop(leaf, None) if leaf in self._leaves else found.get(leaf)
            if leaf in found and (leaf not in self._leaves or known == found[leaf]):
                self._products[leaf] = known
        self._leaves |= leaves

    def _outputs_fine(self, outputs: LayerOutputs) -> bool:
        self._waiting += outputs.under_way()
        return outputs.bad is None

    def before(self, optimizer: Optimizer) -> bool:
        """An optimizer is about to step: whether that is what the pattern says, and every gradient is finite."""
        cursor = self._cursor
        event = self._events[cursor]
        if event[0] != "step" or event[1] != id(optimizer):
            return False
        groups, step, place = optimizer.param_groups, self._recorder.step, self._places[cursor]
        if place is None or len(groups) != place.groups or len(groups[0]["params"]) != place.size:
            fits = False
        else:
            fits = place.groups == 1 or not place.grew(groups)
        if place is None or not fits:
            self.catch_up()
            place = self._places[cursor] = self._stepping(optimizer)
        moved = groups[0].get("lr") is not place.lr or self._changes.due
        if moved and not self._rates_as_expected(place, optimizer, step):
            return False
        look = place.look
        if look is None or self._waiting or self._moved or step < LATER or not step % _NORMS:
            if not self._gradients_fine(place, groups, step):
                return False
        else:
            try:
                if not isfinite(look.total()):
                    return False
            except RuntimeError:  # sparse ones
                return False
        if not self._deferred:
            place.add_rates(step)
        self._cursor = cursor + 1
        self._observer.stepping = True
        return True

    def _rates_as_expected(self, place: Place, optimizer: Optimizer, step: int) -> bool:
        """Whether no move of a learning rate asks for more than to be written down."""
        lrs = tuple([group.get("lr") for group in optimizer.param_groups])
        known = True
        if lrs != place.lrs or self._changes.due:
            if self._deferred:
                place.runs.append((step, place.lrs))
            place.lrs = lrs
            known = not self._changes.rates(optimizer, place.index, step)
        if any(
            lr is not None and not isinstance(lr, float | int) for lr in lrs
        ):  # a tensor, which may be changed in place
            self.catch_up()
        elif place.groups == 1:
            place.lr = lrs[0]
        return known

    def _gradients_fine(self, place: Place, groups: tripwire.Groups, step: int) -> bool:
        """Look at all gradients at once. On another device that look is taken, and what it saw is read in a later step."""
        try:
            if place.look is None:
                if (there := tripwire.device_norm(groups)) is not None:
                    self._waiting.append((self._norms(place), there))
            elif step >= LATER and step % (_NORMS if step < _LATE else _LATE_NORMS) and not self._moved:
                if not isfinite(place.look.total()):
                    return False
            elif (norm := place.look.norm()) is not None:
                if not isfinite(norm):
                    return False
                self._norms(place).add(step, norm)
        except RuntimeError:  # sparse ones, several devices
            return False
        if self._waiting:
            self._late.put(step, self._waiting)
            self._waiting = []
        return True

    def _norms(self, place: Place) -> SeriesRecorder:
        if place.series is None:
            place.series = self._recorder.scalar_series(named("gradient norm", place.index))
        return place.series

    def after(self, optimizer: Optimizer) -> bool:
        """An optimizer stepped. The last one ends the step."""
        observer, at = self._observer, self._cursor
        place = self._places[at - 1]
        if place is None or self.optimizers is None or not observer.stepping:
            self.catch_up()
            return False
        observer.stepping = False
        if not self._deferred:
            self.optimizers.count(place.index, observer.step)
            self._tick(self._kinds[at - 1] or "step")
        if observer.watch_weights and not norms.finite_weights(optimizer):
            observer.trip([], "optimizer")
        if self._events[at][0] == "end":
            self._end_step(observer)
        return True

    def _end_step(self, observer: Observer) -> None:
        """The step is over, and left nothing to read back."""
        if observer.tape.entries:  # an evaluation ran within it
            observer.tape.clear()
        if observer.program.current.actions:  # its clipping
            observer.program.current = Iteration()
        step = observer.step + 1
        if observer.schedule.due(step):
            self.catch_up()
            observer.step = step
            observer.begin(True)
        else:
            observer.step = self._recorder.step = step
            self._again()
        observer.on_step(step)

    def _tick(self, kind: str) -> None:
        if self._ticking:
            self._recorder.tick(kind)
        else:
            self._recorder.counts[kind] = self._recorder.counts.get(kind, 0) + 1

    def _stepping(self, optimizer: Optimizer) -> Place:
        index = 0 if self.optimizers is None else self.optimizers.index_of(optimizer)
        return stepping_place(self._recorder, optimizer, index, self._products)

    # --- putting a step together -------------------------------------------------------------------------------------

    def given(self, key: Key) -> list[Call]:
        """The calls of a module or function in the running step, those of its plain part included."""
        passed = [Call(args, kwargs, context, []) for at, args, kwargs, context in self._passed if at == key]
        return passed + super().given(key)
