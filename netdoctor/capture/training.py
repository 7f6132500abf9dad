"""Taps on the training loop: losses given to `backward`, zero_grad, clipping, optimizer steps, schedules, the loss scaler."""

from __future__ import annotations

import math
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture import carried, linear_chains, norms, schedules, statistics, strangers, unseen
from netdoctor.capture.cleared import Cleared
from netdoctor.capture.containment import Containment
from netdoctor.capture.flags import ModuleFlags
from netdoctor.capture.frozen_norms import FrozenNorms
from netdoctor.capture.gradients import moving_line
from netdoctor.capture.histograms import HistogramRecorder
from netdoctor.capture.leftovers import Leftovers
from netdoctor.capture.modes import Modes
from netdoctor.capture.observer import Observer
from netdoctor.capture.optimizers import Optimizers, parameters_of
from netdoctor.capture.parameters import ParameterRecorder
from netdoctor.capture.pattern import Event
from netdoctor.capture.recorder import SeriesRecorder
from netdoctor.capture.renewal import Renewal
from netdoctor.capture.retention import Retention
from netdoctor.capture.source import source_line, user_line, user_position
from netdoctor.capture.step import Action, Iteration
from netdoctor.capture.stepped import StepWatch
from netdoctor.recording import MAX_SKIPS, SourceLine

_SCHEDULED = ("momentum", "betas", "weight_decay")  # options that schedules move beside the learning rate
GRAPHS = 4  # of the first steps, and as many of those where the loop became another
_NEVER_STEPPED = 65  # backward calls without any optimizer step: more than a usual accumulation of gradients
_THROWN_AWAY = 4  # gradients cleared without any optimizer step: this loop does not accumulate, it never steps

Position = tuple[str, int]  # file and line


class TrainingTaps:
    """What the observation knows of losses, gradients and optimizers."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self.optimizers = observer.pattern.optimizers = Optimizers(observer.names)
        self._stepped: set[int] = set()  # optimizers that stepped since this step began
        self._expected: set[int] | None = None  # those that stepped in the one before
        self._backwards = 0  # since the last optimizer step
        self._skips = 0  # steps in a row that the loss scaler left out
        self._zeroed = False  # zero_grad ran since the last backward
        self._thrown_away = 0  # how often gradients were cleared that no optimizer had used
        self.schedulers = 0  # how many were built
        self.linear: list[tuple[str, str]] = []  # matrices that follow one another
        self._by_itself = False  # the loop updates its weights without a torch optimizer, or not at all
        self._at = 0  # the step that `_backwards` counts in
        self._position: Position = ("", 0)  # of the last backward call
        self._parameters = ParameterRecorder(observer.recorder, observer.names)
        self.histograms = HistogramRecorder(observer.names, observer.recorder.parts)
        self.stepped_on = StepWatch(observer.recorder, observer.names)
        self.flags = ModuleFlags(observer.recorder, observer.names)
        self.frozen_norms = FrozenNorms(observer.recorder, observer.names)
        self._unscaled: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._retention = Retention(observer.recorder)
        self._leftovers = Leftovers(observer.recorder, self.optimizers)
        self._cleared = Cleared(observer.recorder, self.optimizers)
        self._renewal = Renewal(observer)
        self._modes = Modes(observer)
        self._positions: dict[Event, tuple[Position, str, SourceLine | None]] = {}  # of backward calls, by their places
        observer.on_leave = self._left_pattern
        self._fresh = True  # the running backward started from clean gradients

    # --- backward ----------------------------------------------------------------------------------------------------

    def known_backward(self, losses: list[Tensor], site: Event) -> bool:
        """A backward call of a step that follows the pattern of the loop: whether it is the expected one."""
        observer, light = self._observer, self._observer.light
        if light is None or len(losses) != 1 or self._unscaled or not light.expects(*site):
            return False
        observer.mode.leave()
        (position, label, source), value = self._positions[site], losses[0].item()
        self._retention.see(losses, observer.step, observer.detailed, position)
        captured, outputs = None, observer.outputs
        if observer.program.capturing or not math.isfinite(value) or (outputs is not None and outputs.found()):
            captured = light.build(value)
        else:
            light.postpone(value)
        if captured is not None:
            observer.program.backward(captured)
        observer.recorder.loss(label, observer.step, value)
        observer.recorder.count("backward", observer.step, value=value, source=source)
        if not math.isfinite(value):
            observer.trip([captured] if captured is not None else [], "forward")
            self._renewal.begin(observer.program.current.backwards)
        elif outputs is not None:
            outputs.judge([captured] if captured is not None else [])
        self._backwards += 1
        return True

    def _left_pattern(self, seen: list[Event]) -> None:
        """A step turned out to be another than expected."""
        self._at = self._observer.step
        self._zeroed = bool(seen) and seen[-1][0] == "zero"
        kinds = [event[0] for event in seen]
        last = len(kinds) - 1 - kinds[::-1].index("step") if "step" in kinds else -1
        stepped = {event[1] for event in seen if event[0] == "step"}
        self._stepped = {self.optimizers.index_of(o) for o in list(self.optimizers.alive) if id(o) in stepped}
        self._backwards = kinds[last + 1 :].count("backward")

    def before_backward(self, losses: list[Tensor], seeds: Any, retain: bool, site: Event) -> None:
        """A backward call is about to run: keep the loss, and the part of the tape that it depends on."""
        observer = self._observer
        if len(observer.tape):
            observer.over = False  # another loss of the same pass
        observer.settle()
        if observer.detailed and not observer.stepping:
            observer.containment.run("left gradients", self._leftovers.before_backward)
        if observer.stepping:  # a closure, which the optimizer evaluates as often as it likes
            observer.facts["closure"] = True
        if observer.step != self._at:
            self._at, self._backwards = observer.step, 0
        self._position = position = user_position()
        self._note_backward(losses, seeds, retain, site, position)
        true_losses = [self._true_loss(loss) for loss in losses]
        self._retention.see(losses, observer.step, observer.detailed, position)
        captured = observer.tape.backward(true_losses, position)
        self._note_gradients([] if self.optimizers.alive or captured is None else captured.leaves())
        value = sum(float(loss.detach().sum()) for loss in true_losses) if losses else math.nan
        if captured is not None:
            captured.fresh, captured.retain, captured.value = self._fresh, retain, value
            carried.note(observer.recorder, observer.step, captured)
            captured.seeds = seeds if true_losses[0] is losses[0] else ()
            if any(seed is not None for seed in captured.seeds):
                pairs = zip(true_losses, captured.seeds, strict=False)
                captured.value = sum(float((t.detach() * (1 if s is None else s)).sum()) for t, s in pairs)
            for entry in captured.entries:
                if entry.module is not None:
                    self._modes.note(entry.module)
            observer.program.backward(captured)
            observer.evaluation.trained(captured)
            if observer.detailed and captured.entries[0].module is None:
                # Weights are used before any module runs: the watch must be on by then.
                observer.program.functional = True
        else:
            strangers.note(observer.facts, observer.step, true_losses, self.optimizers.alive)
            if observer.program.capturing and not observer.program.iterations:
                observer.program.lost = "the operations between the model and the loss could not be followed"
        observer.recorder.loss(_label(position), observer.step, value)
        observer.recorder.count("backward", observer.step, value=value, source=source_line(*position))
        self._keep_graph(true_losses[0] if true_losses else None)
        if not math.isfinite(value):
            observer.trip([captured] if captured is not None else [], "forward")
        elif observer.outputs is not None:
            observer.outputs.judge([captured] if captured is not None else [])
        if captured is not None:
            self._renewal.loss(captured, math.isfinite(value), self._backwards)
        observer.mode.leave()
        self._backwards += 1

    def _note_backward(self, losses: list[Tensor], seeds: Any, retain: bool, site: Event, position: Position) -> None:
        pattern = self._observer.pattern
        pattern.note(*site)
        plain = len(losses) == 1 and losses[0].numel() == 1 and all(seed is None for seed in seeds)
        if retain or self._unscaled or not plain:
            pattern.spoil()
        elif len(self._positions) < 64:
            self._positions[site] = (position, _label(position), source_line(*position))
            pattern.series[site] = self._observer.recorder.losses.setdefault(_label(position), SeriesRecorder())

    def mode_changed(self, training: bool) -> None:
        """The user's code switched a module between train and eval mode."""
        self.look_at_norms()
        self._observer.recorder.count("mode", self._observer.step, "train" if training else "eval", source=user_line())

    def _keep_graph(self, loss: Tensor | None) -> None:
        graph = self._observer.graph
        most = 2 * GRAPHS if self._observer.program.renewed else GRAPHS
        if graph is not None and self._observer.detailed and len(self._observer.graphs) < most:
            if not self._observer.graphs:
                self.linear = linear_chains.told(loss, self._observer.names.parameter_key)
            self._observer.graphs.append(graph.finish(loss, self._observer.names.parameter_key, self._observer.step))
            self._observer.renewed = 0

    def _true_loss(self, loss: Tensor) -> Tensor:
        """The loss before the scaler multiplied it."""
        found = self._unscaled.pop(id(loss), None)
        return loss if found is None or found[0]() is not loss else found[1]

    def scaled(self, scaled: Any, original: Any) -> None:
        """The loss scaler made `scaled` out of `original`."""
        if isinstance(scaled, Tensor) and isinstance(original, Tensor):
            if scaled is not original:  # a scaler that is switched off gives the loss back
                self._observer.facts["loss_scaler"] = True
            if len(self._unscaled) > 8:  # scaled and never used
                self._unscaled.clear()
            self._unscaled[id(scaled)] = weakref.ref(scaled), original  # nobody else may hold it until backward

    def _note_gradients(self, leaves: list[Tensor]) -> None:
        """Whether backward starts from clean gradients, of `leaves` where there is no optimizer; on measured steps the values are
        looked at too."""
        if not self._observer.detailed and not self._observer.program.capturing:
            return  # this step is kept only until it is over, and asked at most for a NaN
        trained = [p for o in self.optimizers.alive for p in parameters_of(o)]
        held = [p.grad for p in trained or leaves if p.grad is not None]
        self._fresh = not held
        if held and (self._observer.detailed or not trained):  # a loop that clears by hand says so by values alone
            self._fresh = not any(bool(statistics.local(g.detach()).any()) for g in held if g.layout is torch.strided)
        elif held:
            self._fresh = self._zeroed
        if (
            self._backwards == 0
            and self._observer.step > 0
            and self._observer.detailed
            and len(self.optimizers.alive) < 2
        ):
            self._observer.recorder.count("clean start" if self._fresh else "stale start", self._observer.step)

    def after_backward(self) -> None:
        """A backward call is done."""
        self._zeroed = False
        self._cleared.computed()
        waiting = self.optimizers.alive and self._thrown_away < _THROWN_AWAY and self._backwards < _NEVER_STEPPED
        stepping = any(self.optimizers.steps) or self._observer.stepping
        alone = not stepping and (self._by_itself or not waiting)
        if alone and not self._by_itself:  # an optimizer that never steps may be gone when the run ends
            self.register_all(self._observer.containment)
            self._observer.recorder.count("moves", self._observer.step, source=moving_line(*self._position))
        self._by_itself = self._observer.over = alone

    # --- schedules ---------------------------------------------------------------------------------------------------

    def scheduler_made(self, scheduler: Any) -> None:
        """A learning-rate scheduler was built; its event's value is its length in calls, where its kind has one."""
        self.schedulers += 1
        schedules.built(self._observer, scheduler, user_line())

    def scheduler_stepped(self) -> None:
        """The user's loop stepped a scheduler."""
        self._observer.recorder.count("scheduler", self._observer.step, source=user_line())

    # --- zero_grad, clipping -----------------------------------------------------------------------------------------

    def zero_grad(self, owner: Optimizer | nn.Module) -> None:
        """An optimizer or a module is about to clear its gradients."""
        observer = self._observer
        held = (
            owner.parameters() if isinstance(owner, nn.Module) else (p for g in owner.param_groups for p in g["params"])
        )
        light = observer.light
        known = light is not None and light.expects("zero", id(owner))
        if not known:
            observer.pattern.note("zero", id(owner))
        if not known or observer.program.capturing:
            observer.program.current.actions.append(Action("zero", parameters=tuple(held)))
        lost = (
            not known
            and self._backwards > 0
            and not self._stepped
            and not observer.stepping
            and self.optimizers.hold_gradients()
        )
        source = user_line() if observer.recorder.keeps("zero_grad") else None
        observer.recorder.count("zero_grad", observer.step, source=source)
        if lost:
            observer.pattern.spoil()
            self._thrown_away += 1
        if not known and not observer.stepping:
            self._cleared.clearing(owner, source)
        self._zeroed = True

    def clip(self, parameters: list[Tensor], limit: float, norm: float, by_value: bool, norm_type: float = 2.0) -> None:
        """Gradients are about to be clipped; `norm` is their norm before."""
        observer = self._observer
        if observer.detailed:
            self._parameters.gradients(parameters)
        observer.recorder.count("clip", observer.step, "value" if by_value else "norm", limit, user_line())
        observer.recorder.scalar("clip limit", observer.step, limit)
        if math.isfinite(norm):
            observer.recorder.scalar("norm at clipping", observer.step, norm)
        action = Action("clip", parameters=tuple(parameters), limit=limit, by_value=by_value, norm_type=norm_type)
        observer.program.current.actions.append(action)
        if all(parameter.grad is None for parameter in parameters):
            observer.recorder.count("clip of nothing", observer.step)

    # --- optimizers --------------------------------------------------------------------------------------------------

    def made(self, optimizer: Optimizer) -> None:
        """An optimizer was constructed."""
        self.optimizers.made(optimizer)
        self.look_at_norms()

    def look_at_norms(self, stepping: bool = False) -> None:
        """See which BatchNorms are frozen by now."""
        self._observer.containment.run("frozen norms", self.frozen_norms.look, stepping)

    def register_all(self, containment: Containment) -> None:
        """Bring the facts of all optimizers up to date, those that never stepped with them."""
        for optimizer in list(self.optimizers.alive):
            containment.run("optimizer names", self.optimizers.register, optimizer)

    def before_step(self, optimizer: Optimizer) -> None:
        """An optimizer is about to step: the last look at gradients while the weights are untouched."""
        observer = self._observer
        observer.stepping, observer.over = True, False
        self.look_at_norms(stepping=True)
        index = self.optimizers.index_of(optimizer)
        observer.mode.leave()
        if index in self._stepped:
            observer.program.hold_back()
            self._close()
        light = observer.light
        if light is None or not light.expects("step", id(optimizer)):
            light = None
            observer.pattern.note("step", id(optimizer))
        observer.program.see_optimizer(optimizer, index)
        if not self._stepped and self._renewal.rates(optimizer, index) and light is not None:
            self._backwards = len(observer.program.current.backwards)
        if self._cleared.stepping(optimizer, index):
            observer.pattern.spoil()
        parameters = parameters_of(optimizer)
        norm = self._parameters.gradients(parameters) if observer.detailed else None
        grads = []
        if norm is None or self._parameters.sharded:
            grads = [p.grad.detach() for p in parameters if p.grad is not None and p.grad.layout is torch.strided]
            gradients = unseen.local_parts(observer, grads)
            norm = norms.gradient_norm(gradients) if norm is None and gradients else norm
        if norm is not None:
            observer.recorder.scalar("gradient norm" if index == 0 else f"gradient norm ({index})", observer.step, norm)
            if not math.isfinite(norm) and (self._backwards or light is not None):
                backwards = observer.program.current.backwards if light is None else light.backwards()
                observer.trip(backwards, "backward")
                _ = self._stepped or self._renewal.begin(backwards)
        if observer.detailed:
            observer.recorder.parts.add(observer.step, index, grads)
            self._leftovers.stepping(optimizer, index)
            self._parameters.weights(parameters)
            self.stepped_on.before(parameters)
            self._observer.containment.run("histograms", self.histograms.see, parameters, observer.step)
        for number, group in enumerate(optimizer.param_groups[:4]):
            label = "lr" if index == number == 0 else f"lr ({index}.{number})"
            observer.recorder.scalar(label, observer.step, float(group.get("lr", math.nan)))

    def after_step(self, optimizer: Optimizer) -> None:
        """An optimizer stepped."""
        observer = self._observer
        observer.stepping = False
        index = self.optimizers.index_of(optimizer)
        self.optimizers.count(index, self._observer.step)
        self._parameters.updates()
        self.stepped_on.after()
        observer.containment.run("module flags", self.flags.look)
        if observer.watch_weights and not norms.finite_weights(optimizer):
            observer.trip([], "optimizer")
        if observer.light is None or observer.program.capturing:
            lrs = tuple(float(group.get("lr", math.nan)) for group in optimizer.param_groups)
            moved = tuple({k: group[k] for k in _SCHEDULED if k in group} for group in optimizer.param_groups)
            observer.program.current.actions.append(Action("step", optimizer=index, lrs=lrs, options=moved))
        observer.recorder.count("step" if self._backwards else "step without backward", observer.step)
        self._stepped.add(index)
        self._backwards, self._zeroed, self._skips = 0, False, 0
        expected = self._expected if self._expected is not None else self.optimizers.numbers()
        if expected <= self._stepped:
            self._close()
        elif observer.program.functional or observer.program.capturing:  # what follows may come before the next module
            observer.mode.enter()

    def _close(self) -> None:
        self._expected, self._stepped = set(self._stepped), set()
        self._observer.end_step()

    def skipped(self) -> None:
        """The loss scaler left out an optimizer step, because a scaled gradient overflowed: the pass counts for nothing, unless it
        does so again and again, whatever the scale."""
        observer = self._observer
        observer.pattern.spoil()
        self._skips += 1
        if self._skips > MAX_SKIPS:
            observer.trip(observer.program.current.backwards, "backward")
        if observer.light is not None:
            observer.light.leave()
        observer.recorder.count("scaler-skip", observer.step)
        observer.program.current = Iteration()
        observer.tape.clear()
        self._backwards = 0

    def release(self) -> None:
        """Take a last look at the weights, and let go of all parameters."""
        self._observer.containment.run("histograms", self.histograms.finish, self._observer.step)
        self._parameters.release()

    @property
    def steps(self) -> tuple[int, ...]:
        """How many steps each optimizer took."""
        self._observer.pattern.catch_up()
        return tuple(self.optimizers.steps)


def _label(position: tuple[str, int]) -> str:
    return f"{position[0]}:{position[1]}"
