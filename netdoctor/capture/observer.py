"""The state of an observation, from `start` to `stop`: which step it is, whether it is measured in full, what the tape holds."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from netdoctor.capture import functions, late, unseen
from netdoctor.capture.containment import Containment
from netdoctor.capture.data import PRODUCTS, DataRecorder
from netdoctor.capture.evaluation import EvaluationRecorder
from netdoctor.capture.exact import LayerOutputs
from netdoctor.capture.graphs import Call, GraphBuilder, scalar_attributes
from netdoctor.capture.identity import ByIdentity
from netdoctor.capture.layers import LayerRecorder
from netdoctor.capture.likeness import regular
from netdoctor.capture.naming import ModuleNames, unwrapped
from netdoctor.capture.operations import OperationMode
from netdoctor.capture.pattern import Event
from netdoctor.capture.plain import PlainSteps
from netdoctor.capture.program import Program
from netdoctor.capture.recorder import Recorder, Schedule
from netdoctor.capture.source import user_line, user_position
from netdoctor.capture.step import Iteration
from netdoctor.capture.tape import Backward, Entry, Tape, is_trained_leaf, random_states
from netdoctor.capture.tree import tensors
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Origin

R = TypeVar("R")


class Observer:
    """Everything that is known while the user's code runs. The taps (modules, operations, training) call its methods."""

    def __init__(self, every: int | None = None, exact: bool = False) -> None:
        self.containment = Containment()
        self.recorder = Recorder()
        self.blind_spots: dict[str, str] = {}  # what could not be watched, and why, in words for the reader
        self.names = ModuleNames()
        self.tape = Tape()
        self.program = Program(self.names)
        self.layers = LayerRecorder(self.recorder)
        self.data = DataRecorder()
        self.evaluation = EvaluationRecorder(self.names.key_of)
        self.graph: GraphBuilder | None = GraphBuilder(lambda: self.mode.rest())
        self.graphs: list[StepGraph] = []
        self.renewed = 0  # the loop became another one: steps in which its graph is still to be had
        self.origin: Origin | None = None
        self.find_origin: Callable[[Observer, list[Backward], str], Origin | None] | None = None
        self.on_step: Callable[[int], None] = lambda step: None  # told the number of steps taken, after each
        self.on_trip: Callable[[], None] = lambda: None  # told once, when the first NaN or Inf was found
        self.watch_weights = False  # look at the weights after every step, and not only at what they do in the next one
        self.pending: Exception | None = None  # to be raised into the user's code, on their own wish
        self.facts: dict[str, float | str | bool] = {}
        self.step = 0
        self.detailed = False
        self.in_backward = False
        self.stepping = False  # an optimizer is stepping, and may be evaluating its closure
        self.suspended = 0  # > 0 while our own code runs torch functions
        self.thread = threading.get_ident()
        self.outputs = LayerOutputs(self) if exact else None  # what every layer gives is read in every step
        self.pattern = PlainSteps(self)
        self.evaluation.on_gradient = self.pattern.spoil  # else it would pass for a part of each step
        self.reported: dict[Any, Any] = {}  # functions of torch that report their calls → the original ones
        self.light: PlainSteps | None = None  # the running step is like the ones before: only its calls are followed
        self.passing = False  # inside of a model on a step whose layers are not measured: modules run as they are
        self.on_leave: Callable[[list[Event]], None] = lambda seen: None  # told of a step that left the pattern
        self.schedule = Schedule(every)
        self.mode = OperationMode(self)
        self.started = time.perf_counter()
        self.stack: list[nn.Module] = []  # modules that are running, outermost first
        self._unit: Entry | None = None  # the outermost module with state that is running
        self.measured: set[int] = set()  # models whose first pass of this step was measured
        self.measuring = False
        self.evaluating = False
        self.over = False  # the loop seems to update its weights itself: the step ends when the next one begins
        self._stateful: ByIdentity[nn.Module, bool] = ByIdentity()  # modules known to have parameters or buffers

    # --- steps -------------------------------------------------------------------------------------------------------

    def begin_step(self) -> None:
        """Decide whether the coming step is measured, and switch the operation watch accordingly."""
        self.begin(self.schedule.due(self.step) or (self.graph is not None and bool(self.graphs)))

    def begin(self, detailed: bool) -> None:
        """A step begins, which is measured in full or not."""
        self.detailed = detailed
        self.recorder.step = self.step
        self.measured.clear()
        self.layers.new_step()
        self.passing = False
        fits = self.pattern.known and self.graph is None and (not self.detailed or self.layers.modules_suffice)
        self.light = self.pattern if fits and not self.program.functional else None
        if self.light is not None:
            self.pattern.begin(plain=not detailed and not self.program.capturing)
            self.mode.leave()
        elif self.detailed or self.program.functional:
            self.mode.enter()
        else:
            self.mode.leave()

    def leave_pattern(self, seen: list[Event]) -> None:
        """The running step turned out to be another than expected; `seen` are its calls so far."""
        self.light, self.passing = None, False
        self.mode.end_thin()
        if seen:  # the operations of its first part were not watched: it cannot be run again
            self.program.current = Iteration()
        self.on_leave(seen)
        if self.detailed:
            self.mode.enter()

    def settle(self) -> None:
        """End a step that is over, now that the next one begins."""
        if self.over:
            self.end_step()

    def end_step(self) -> None:
        """Read back what the step left, and go on to the next."""
        self.over = False
        if self.detailed:
            self.ours("outputs of layers", self.layers.statistics.finish)
            self.recorder.flush(self.step)
        if self.light is None:
            self.pattern.learn(self.program.current.backwards)
        self.program.end_iteration(self.step)
        if self.renewed or (self.graph is not None and (self.graphs or self.step >= 2)):
            self.graph, self.renewed = GraphBuilder() if self.renewed else None, max(0, self.renewed - 1)
        self.tape.clear()
        self.step += 1
        self.begin_step()
        self.on_step(self.step)

    # --- modules -----------------------------------------------------------------------------------------------------

    def call_module(self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a module call for the user, and look at it before and after."""
        unit = self._unit is None and bool(self.containment.run("module state", self.has_state, module))
        entry = self.ours("module call", self._enter, module, args, kwargs) if unit else None
        if module._compiled_call_impl is not None or hasattr(module, "_orig_mod"):
            return self._call_compiled(call, module, args, kwargs, entry)
        self.stack.append(module)
        try:
            result = call(module, *args, **kwargs)
        except BaseException:
            self._leave(module, unit)
            raise
        if self.measuring:
            self.containment.run("layer of a module", self.layers.confirm, module, result)
        if self.outputs is not None:
            self.ours("layer output", self.outputs.see, module, result)
        self._leave(module, unit)
        if entry is not None:
            self.ours("module result", self._left, entry, module, result)
        return result

    def _call_compiled(
        self, call: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any, entry: Entry | None
    ) -> Any:
        """A compiled model is one piece: looking into it would have it compiled again, with us inside."""
        inside = bool(self.stack)
        unseen.say(self, "compiled part" if inside else "compiled")
        on = self.mode.on
        self.mode.leave()
        self.suspended += 1
        try:
            result = call(module, *args, **kwargs)
        finally:
            self.suspended -= 1
            if not inside:
                self._leave(module, True)
            elif on:
                self.mode.enter()
        if entry is not None:
            self.ours("module result", self._left, entry, module, result)
        return result

    def ours(self, where: str, work: Callable[..., R], *args: Any) -> R | None:
        """Run our own code in the middle of the user's: contained, and unseen by our own watch."""
        self.suspended += 1
        try:
            return self.containment.run(where, work, *args)
        finally:
            self.suspended -= 1

    @property
    def inside(self) -> bool:
        """Whether a model runs: what happens in it is no operation of the loop's own, as those of a loss without weights are."""
        return self._unit is not None or (self.light is not None and bool(self.stack))

    def has_state(self, module: nn.Module) -> bool:
        """Whether a module holds anything that training could change; a loss function without parameters does not."""
        if module in self._stateful:
            return True
        if next(module.parameters(), None) is None and next(module.buffers(), None) is None:
            return False
        self._stateful[module] = True
        return True

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> Entry:
        grad = torch.is_grad_enabled()
        if grad:
            self.settle()
            self.pattern.note("unit", id(module), module.training)
            if not regular(module):
                self.pattern.spoil()
        module = unwrapped(module)
        root = self.names.root_of(module)
        idle = not self.program.begun and self.tape.idle()
        self.program.see_module(module, root, idle)
        if idle and self.graph is not None:
            self.graph.make_room()
        kept = self.program.capturing
        entry = Entry(None, module, self.tape.encode(args), self.tape.encode(kwargs), context=random_states(kept))
        if kept:  # a step that is only kept until it is over is replayed, if at all, while the modes still stand
            entry.modes = tuple(child.training for child in module.modules())
        entry.position = user_position()
        entry.name, entry.nth = type(module).__name__, self.pattern.number(module) if grad else 0
        self._unit = entry
        self.measuring = self.detailed and grad and id(module) not in self.measured
        if self.measuring:
            self.measured.add(id(module))
            unseen.see_model(self, module)
            self.data.see_inputs(self.step, id(module), (args, kwargs), entry.position, self.made, self.value_of)
        if not grad and not self.evaluating:
            self.recorder.count(
                "evaluation", self.step, detail="train" if module.training else "eval", source=user_line()
            )
        self.evaluating = not grad
        self.evaluation.enter(module, grad, self.step, (args, kwargs), self.made)
        if self.detailed and (grad or not self.mode.resting):
            self.mode.enter()
        else:
            self.mode.leave()
        return entry

    def _leave(self, module: nn.Module, unit: bool) -> None:
        while self.stack and self.stack.pop() is not module:
            pass
        if unit:
            self._unit = None
            self.measuring = False

    def _left(self, entry: Entry, module: nn.Module, result: Any) -> None:
        self.tape.add(entry, result)
        if self.graph is not None and self.detailed:
            outputs = list(tensors(result))
            if outputs and all(self.graph.value_of(tensor) is None for tensor in outputs):
                # Nothing inside could be seen (scripted, compiled, another library): the call stands as one operation.
                inputs = self.graph.reading(tensors((entry.args, entry.kwargs)), self.names.parameter_key)
                self._add_to_graph(entry.name, inputs, None, result, entry.position)
        if self.evaluation.left(entry, result) or (entry.context is not None and entry.context.grad):
            self.mode.enter()

    # --- operations --------------------------------------------------------------------------------------------------

    def before_operation(
        self, name: str, function: Any, args: Any, kwargs: Any
    ) -> tuple[Entry | None, tuple[int, ...]] | None:
        """Note the arguments of an operation before it may change them. None when it is of no interest."""
        mutates = functions.mutates(name, kwargs)
        if mutates and is_trained_leaf(args, kwargs):
            return None  # a weight is initialised, frozen, or moved by the loop itself: no part of what the loss is made of
        entry = None
        if self._unit is None and self.tape.depends(args, kwargs):
            entry = self._entry(name, function, args, kwargs, mutates)
        inputs: tuple[int, ...] = ()
        if self.detailed and self.graph is not None:
            # Names the parameters of a module seen for the first time.
            self._path(self.stack[-1] if self.stack else None)
            inputs = self.graph.reading(tensors((args, kwargs)), self.names.parameter_key)
        if self.detailed and torch.is_grad_enabled():
            if self.data.wants(name):
                self.data.see_operation(self.step, name, args, kwargs, user_position(), self.value_of)
            elif self._unit is None and name in PRODUCTS:  # a model of loose weights
                self.data.see_inputs(
                    self.step, -user_position()[1], args[:2], user_position(), self.made, self.value_of
                )
        return (entry, inputs) if entry is not None or self.detailed or self._unit is None else None

    def made(self, tensor: Tensor) -> bool:
        return self.tape.slot(tensor) is not None

    def value_of(self, tensor: Tensor) -> int | None:
        """The index of a tensor in the captured graph, which it enters here if it is new."""
        graph = self.graph
        if graph is None or not self.detailed:
            return None
        return next(iter(graph.reading([tensor], self.names.parameter_key)), None)

    def _entry(self, name: str, function: Any, args: Any, kwargs: Any, mutates: bool) -> Entry:
        if torch.is_grad_enabled() and name != "data":
            self.settle()
        encoded = self.tape.encode(args)
        changed = args[0] if mutates and args else None
        if isinstance(changed, Tensor) and self.tape.slot(changed) is None and not changed.requires_grad:
            encoded = (self.tape.encode(changed.detach().clone()), *encoded[1:])  # its value from before the change
        context = random_states(False, functions.may_draw(function, name))
        entry = Entry(function, None, encoded, self.tape.encode(kwargs), context=context)
        entry.mutates, entry.name, entry.position = mutates, name, user_position()
        entry.nth = self.pattern.number(function) if torch.is_grad_enabled() else 0
        return entry

    def after_operation(
        self, noted: tuple[Entry | None, tuple[int, ...]], name: str, args: Any, kwargs: Any, result: Any
    ) -> None:
        """Keep what an operation made."""
        entry, inputs = noted
        made = args[0] if functions.mutates(name, kwargs) and args else result
        if entry is None and self._unit is None:
            self.tape.births.note(name, user_position(), args, kwargs, made)
        if entry is not None:
            self.tape.add(entry, made)
            self.evaluation.see(name, args, kwargs, made, self.tape.backward)
        if not self.detailed:
            return
        plain = functions.plain(name)
        if self.graph is not None:
            self._add_to_graph(plain, inputs, (name, args, kwargs), made, user_position())
        if self.measuring or (self._unit is None and entry is not None and torch.is_grad_enabled()):
            module = self.stack[-1] if self.stack else None
            self.layers.operation(
                plain, args, kwargs, made, module, self._path(module), self._describe, lambda: self._source(module)
            )

    def _add_to_graph(
        self, name: str, inputs: tuple[int, ...], call: Call | None, made: Any, position: tuple[str, int]
    ) -> None:
        module = self.stack[-1] if self.stack else None
        operation = Operation(
            0,
            name,
            self._path(module),
            "" if module is None else type(module).__name__,
            inputs,
            (),
            {} if call is None else scalar_attributes(*call[1:]),
            0,
            *position,
            torch.is_grad_enabled(),
            self._unit is not None,
            outer=self._path(self._unit.module if self._unit is not None else None),
        )
        if self.graph is not None:
            self.graph.add(operation, made, call)

    def _path(self, module: nn.Module | None) -> str:
        return "" if module is None else self.names.key_of(module)

    def _describe(self, parameter: Tensor) -> tuple[str, Any]:
        name = self.names.parameter_key(parameter) or self.names.name_loose(parameter, f"parameter{parameter.dim()}d")
        return name, None

    def _source(self, module: nn.Module | None) -> Any:
        if module is not None and functions.is_library_leaf(module):
            return self.names.built_at(module) or user_line()
        return user_line()

    # --- the first NaN or Inf ----------------------------------------------------------------------------------------

    def trip(self, backwards: list[Backward], where: str) -> None:
        """Something is not finite, and the weights are still untouched: find out where it began, once."""
        if self.origin is None and self.find_origin is not None:
            self.suspended += 1
            try:
                self.origin = self.containment.run("origin search", self.find_origin, self, backwards, where)
                if self.origin is not None and self.origin.reproduced and self.origin.operation:
                    self.containment.run("faulty step", self.program.keep_fault, self.step, backwards)
            finally:
                self.suspended -= 1
            if self.origin is None and where == "optimizer":
                return  # large weights, whose squares overflow
            if self.origin is None:
                self.origin = Origin(where, "NaN", self.step, reproduced=False, note="the step could not be run again")
            self.on_trip()

    def trip_late(self, where: str, value: float, step: int, module: str = "") -> None:
        """Something was not finite in a step that is over: its device was not waited for."""
        if self.origin is None:
            kind = "NaN" if value != value else "Inf"
            self.origin = Origin(where, kind, step, module=module, reproduced=False, note=late.TOO_LATE)
            self.on_trip()
