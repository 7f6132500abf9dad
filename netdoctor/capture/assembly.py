"""Makes the `Recording` of a finished (or running) observation."""

from __future__ import annotations

import linecache
import os
import platform
import time
from dataclasses import replace

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from netdoctor.capture import linear_chains
from netdoctor.capture.moving import moving_target
from netdoctor.capture.naming import SEPARATOR
from netdoctor.capture.observer import Observer
from netdoctor.capture.recorder import rename
from netdoctor.capture.statistics import is_shard
from netdoctor.capture.training import TrainingTaps
from netdoctor.capture.twins import twins
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Event, Header, Parameter, Recording
from netdoctor.trend import phase

TOGETHER = 0.9  # of the steps: a skipped one, or one more backward in the first, is no habit
_FAMILIES = {
    "cross_entropy": "cross_entropy",
    "nll_loss": "nll",
    "binary_cross_entropy": "bce",
    "binary_cross_entropy_with_logits": "bce",
    "mse_loss": "mse",
    "l1_loss": "l1",
    "smooth_l1_loss": "huber",
    "huber_loss": "huber",
    "kl_div": "kl",
    "ctc_loss": "ctc",
    "hinge_embedding_loss": "hinge",
    "margin_ranking_loss": "margin",
    "triplet_margin_loss": "margin",
    "triplet_margin_with_distance_loss": "margin",
    "multi_margin_loss": "margin",
    "multilabel_margin_loss": "margin",
    "cosine_embedding_loss": "cosine",
}
_SIGNED = frozenset(
    ["mul", "imul", "rmul", "div", "truediv", "add", "iadd", "radd", "sum", "mean", "getitem", "neg", "log"]
)


def assemble(observer: Observer, training: TrainingTaps, target: str, version: str, ended: str) -> Recording:
    """Everything that was observed so far, under the names that the reader knows."""
    observer.pattern.catch_up()
    training.register_all(observer.containment)
    recording = Recording(header=_header(observer, target, version, ended), steps=observer.step)
    observer.recorder.write(recording)
    recording.layers = list(observer.layers.layers.values())
    display, labels = _names(observer, training, recording)
    recording.optimizers = [
        replace(
            o,
            parameters=tuple(display.get(p, p) for p in o.parameters),
            steps=steps,
            span=training.optimizers.spans.get(o.index, ()),
        )
        for o, steps in zip(training.optimizers.facts, training.steps, strict=True)
    ]
    recording.parameters = _parameters(observer, training, display, labels)
    _note_twins(observer, recording.parameters, display)
    rename(recording, display, labels)
    recording.events += _late_events(observer, training, display)
    recording.histograms = training.histograms.histograms(display)
    recording.graphs = [_renamed(graph, display) for graph in observer.graphs]
    recording.graph = recording.graphs[0] if recording.graphs else None
    recording.inputs, recording.targets = observer.data.inputs(), observer.data.targets()
    recording.evaluations = observer.evaluation.evaluations(lambda k: display.get(k, k.rpartition(SEPARATOR)[2]))
    origin = observer.origin
    if origin is not None:
        module, parameter = display.get(origin.module, origin.module), display.get(origin.parameter, origin.parameter)
        recording.origin = replace(origin, module=module, parameter=parameter)
    _name_losses(recording)
    recording.blind_spots = list(observer.blind_spots.values())
    recording.faults = observer.containment.faults
    recording.facts = {**_facts(recording), **observer.facts, **_variable(observer, recording)}
    recording.facts["unused_inputs"] = observer.data.handed.unused(recording.inputs)
    recording.facts["first_of_batches"] = observer.data.handed.first_again(recording.inputs)
    recording.facts["inputs_made_anew"] = observer.data.made_anew()
    recording.facts["frozen_zeros"] = ",".join(_frozen_zeros(observer, display))
    recording.facts.update(observer.evaluation.norms.found)
    recording.facts["last_batch"] = float(observer.evaluation.batch.size)
    recording.facts["scheduler_never_stepped"] = training.schedulers > 0 and not recording.counts.get("scheduler")
    if not recording.counts.get("step"):
        changed = observer.program.changed()
        recording.facts["parameters_changed"] = changed
        if not changed:
            recording.steps = 0  # backward calls were counted as steps, in case the loop updates its weights itself
    return recording


def _late_events(observer: Observer, training: TrainingTaps, display: dict[str, str]) -> list[Event]:
    """Events of which only the end of the run tells whether they are any."""
    flags = observer.containment.run("module flags", lambda: list(training.flags.events(display)))
    norms = observer.containment.run("frozen norms", lambda: list(training.frozen_norms.events(display)))
    unfrozen = observer.containment.run("unfrozen", lambda: list(training.stepped_on.unfrozen.events(display)))
    stale = observer.evaluation.norms.source
    found = [] if stale is None else [Event(observer.step, "stale norms", source=stale)]
    found += [Event(0, linear_chains.KIND, f"{display.get(a, a)}\n{display.get(b, b)}") for a, b in training.linear]
    return [*(flags or ()), *(norms or ()), *(unfrozen or ()), *found]


def pulse(observer: Observer) -> Recording:
    """What changes with every step: the count of steps, losses, scalars, counts of events. Takes far less than `assemble`."""
    observer.pattern.catch_up()
    recorder = observer.recorder
    recording = Recording(steps=observer.step, counts=dict(recorder.counts))
    recording.losses = {label: series.series() for label, series in recorder.losses.items()}
    recording.scalars = recorder.all_scalars()
    _name_losses(recording)
    return recording


def _header(observer: Observer, target: str, version: str, ended: str) -> Header:
    devices = {str(p.device) for root in observer.names.roots for p in getattr(root.module(), "parameters", list)()}
    return Header(
        target,
        version,
        torch.__version__,
        platform.python_version(),
        ", ".join(sorted(devices)) or "cpu",
        time.strftime("%Y-%m-%dT%H:%M:%S"),
        observing_s=time.perf_counter() - observer.started,
        ended=ended,
    )


def _names(observer: Observer, training: TrainingTaps, recording: Recording) -> tuple[dict[str, str], dict[str, str]]:
    """Internal key → name for the reader, and internal key → model label; labels only where several models train, or should."""
    held = (name for facts in training.optimizers.facts for name in facts.parameters)
    used = {key.split(SEPARATOR)[0] for key in (*(x.path for x in recording.layers), *held) if SEPARATOR in key}
    several = len(used) > 1
    display: dict[str, str] = {}
    labels: dict[str, str] = {}
    keys = {site.module for site, _ in recording.tracks} | {site.parameter for site, _ in recording.tracks}
    keys |= {layer.path for layer in recording.layers}
    for root in observer.names.roots:
        module = root.module()
        if module is not None:
            keys |= {f"{root.label}{SEPARATOR}{path}" for path, _ in module.named_modules()}
            keys |= {f"{root.label}{SEPARATOR}{name}" for name, _ in module.named_parameters()}
    for key in keys:
        label, found, path = key.partition(SEPARATOR)
        if found:
            display[key] = ".".join(part for part in (label, path) if part) if several else path
            labels[key] = label if several else ""
    return display, labels


def _frozen_zeros(observer: Observer, display: dict[str, str]) -> list[str]:
    """Weight matrices that are all zero and require no gradient, in models of which something trains."""
    found = []
    for root in observer.names.roots:
        module = root.module()
        held = [] if module is None else list(module.named_parameters())
        if any(p.requires_grad for _, p in held):
            for name, p in held:
                if not p.requires_grad and p.dim() > 1 and p.numel() and not (is_lazy(p) or p.is_meta or is_shard(p)):
                    first = p.detach().flatten()[:1024]  # nearly always enough to tell
                    if not bool(first.any()) and not bool(p.detach().any()):
                        found.append(display.get(f"{root.label}{SEPARATOR}{name}", name))
    return found


def _variable(observer: Observer, recording: Recording) -> dict[str, str]:
    """Under which variable the script holds its model, where only one trains."""
    for root in observer.names.roots:
        module = root.module()
        trains = module is not None and any(p.requires_grad for p in module.parameters())
        if trains and not any(layer.model for layer in recording.layers) and root.label != type(module).__name__:
            return {"model_variable": root.label}
    return {}


def _parameters(
    observer: Observer, training: TrainingTaps, display: dict[str, str], labels: dict[str, str]
) -> dict[str, Parameter]:
    owners = {name: index for index, facts in enumerate(training.optimizers.facts) for name in facts.parameters}
    eps = {o.index: float(o.groups[0].get("eps", 0.0)) if o.groups else 0.0 for o in training.optimizers.facts}
    found: dict[str, Parameter] = {}
    for root in observer.names.roots:
        module = root.module()
        for name, parameter in [] if module is None else module.named_parameters():
            key = f"{root.label}{SEPARATOR}{name}"
            path, _, _ = name.rpartition(".")
            owner = module.get_submodule(path) if module is not None else None
            shown = display.get(key, name)
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                continue
            index = owners.get(key, owners.get(observer.names.parameter_key(parameter)))  # a part that models share
            found[shown] = Parameter(
                shown,
                display.get(f"{root.label}{SEPARATOR}{path}", path),
                type(owner).__name__,
                tuple(parameter.shape),
                str(parameter.dtype).removeprefix("torch."),
                parameter.requires_grad,
                index,
                labels.get(key, ""),
                eps.get(-1 if index is None else index, 0.0),
            )
    for key, index in owners.items():
        if SEPARATOR not in key:
            shape, dtype = observer.names.loose_shape(key)
            found[key] = Parameter(key, "", "", shape, dtype, True, index, "", eps.get(index, 0.0))
    return found


def _note_twins(observer: Observer, parameters: dict[str, Parameter], display: dict[str, str]) -> None:
    """Write down which parameters started as copies of one another."""
    for pair in observer.containment.run("equal parameters", lambda: list(twins(observer.program.starts()))) or ():
        later, earlier = (display.get(key, key) for key in map(observer.names.parameter_key, pair))
        if later in parameters and earlier in parameters:
            parameters[later] = replace(parameters[later], same_as=earlier)


def _renamed(graph: StepGraph, display: dict[str, str]) -> StepGraph:
    def name(key: str) -> str:
        return display.get(key, key.rpartition(SEPARATOR)[2])

    operations = [
        replace(
            o,
            module=name(o.module),
            outer=name(o.outer),
            text=linecache.getline(o.file, o.line).strip() if o.file else "",
        )
        for o in graph.operations
    ]
    values = [replace(v, name=name(v.name)) for v in graph.values]
    return replace(graph, operations=operations, values=values)


def _name_losses(recording: Recording) -> None:
    labels = list(recording.losses)
    if len(labels) == 1:
        recording.losses = {"loss": recording.losses[labels[0]]}
        return
    named = {}
    for label in labels:
        file, _, line = label.rpartition(":")
        named[f"loss ({os.path.basename(file) or 'unknown'}:{line})"] = recording.losses[label]
    recording.losses = named


def _facts(recording: Recording) -> dict[str, float | str | bool]:
    facts: dict[str, float | str | bool] = {
        "several_optimizers": _each_for_itself(recording),
        "pretrained": any(e.kind == "load_state" and e.step == 0 for e in recording.events),
        "gradients_before_backward": recording.counts.get("stale start", 0) > recording.counts.get("clean start", 0),
    }
    graph = recording.graph
    if graph is not None and graph.loss is not None:
        behind = graph.loss_operations()
        facts["moving_target"] = moving_target(graph)
        family, operation = _family(graph, behind)
        facts["loss_family"] = family
        unbounded = family == "custom" or _below_zero_too(graph, operation, behind)
        facts["loss_lower_bound"] = float("-inf") if unbounded else 0.0
        if family in ("cross_entropy", "nll") and operation is not None:
            shape = graph.values[operation.inputs[0]].shape
            facts["classes"] = float(shape[1] if len(shape) > 1 else shape[0])
    return facts


def _each_for_itself(recording: Recording) -> bool:
    """Whether several optimizers follow losses of their own. Those that all step on one backward (of an encoder and a decoder, of
    sparse and dense weights) share one loss, as if they were one."""
    begins, counts = phase(recording), recording.counts
    stepped = sum(o.steps > 0 and o.span[-1:] >= (begins,) for o in recording.optimizers)  # those of the last phase
    own, shared = counts.get("step", 0), counts.get("step without backward", 0)
    together = shared >= TOGETHER * (stepped - 1) * own and TOGETHER * counts.get("backward", 0) <= own
    return stepped > 1 and not together


def _below_zero_too(graph: StepGraph, family: Operation | None, behind: list[Operation]) -> bool:
    """Whether something is added to a known loss that was negative in the first step or may become so (a learned logarithm of a
    variance), or taken away from it: then the sum has another lowest value than the loss by itself. A sign in front of the
    whole is another matter."""
    for operation in behind:
        if operation is family:
            return False
        if operation.name not in ("add", "iadd", "radd", "sub", "isub", "rsub"):
            continue
        parts = [graph.values[value] for value in operation.inputs if graph.values[value].shape == ()]
        taken = parts[1:] if "sub" in operation.name else []
        if any(part.low < 0 or not part.finite for part in parts) or any(part.high > 0 for part in taken):
            return True
        if any(_takes_both_signs(graph, part.index) for part in parts):
            return True
    return False


def _takes_both_signs(graph: StepGraph, value: int) -> bool:
    """Whether a number is a parameter itself, times and plus whatever: training may move it below zero."""
    queue = [value]
    for _ in range(16):  # such terms are short
        if not queue:
            break
        at = graph.values[queue.pop()]
        if at.origin == "parameter":
            return True
        made = graph.producer(at.index)
        if made is not None and made.name in _SIGNED:
            queue += made.inputs
    return False


def _family(graph: StepGraph, behind: list[Operation]) -> tuple[str, Operation | None]:
    """The known loss nearest to the value that backward was called on, or a squared or absolute difference written by hand."""
    for operation in behind:
        if operation.name in _FAMILIES:
            return _FAMILIES[operation.name], operation
        if operation.inside:
            break
        before = graph.producer(operation.inputs[0]) if operation.inputs else None
        if before is not None and before.name in ("sub", "rsub"):
            if operation.name == "square" or (operation.name == "pow" and operation.attributes.get("1") == 2):
                return "mse", operation
            if operation.name == "mul" and len(set(operation.inputs)) == 1:
                return "mse", operation
            if operation.name == "abs":
                return "l1", operation
    return "custom", None
