"""Layers and parameters that a model holds in a plain list or dict, where `parameters()` does not find them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.structure.forgotten import forgotten
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation
from netdoctor.recording import Recording, SourceLine


@dataclass(frozen=True)
class UnregisteredParameters(Check):
    """Layers or parameters that the model uses are not registered with it, so the optimizer never sees them.

    What it is: `self.layers = [nn.Linear(...), ...]` instead of `nn.ModuleList`, a plain dict instead of
    `nn.ModuleDict`, a list of `nn.Parameter` instead of `nn.ParameterList`.
    Why it hurts: `parameters()`, `to()`, `state_dict()`, `train()` and `eval()` all miss them: they never train, and
    are not saved.
    How it is decided: on the captured step. Inside of a model's forward pass a module ran (or a parameter was used)
    that the model does not own, the loss's gradient reaches it, and no optimizer holds it.
    When it stays silent: helpers without a gradient (a frozen teacher, a perceptual loss); an optimizer that got them
    by hand.
    Fix: nn.ModuleList, nn.ModuleDict or nn.ParameterList.
    Sources: PyTorch's documentation of ModuleList and ParameterList.
    """

    name = "unregistered-parameters"
    explains = NO_LEARNING | NO_SIGNAL | {"parameter-not-in-optimizer", "symmetric-initialization"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = forgotten(recording)
        if found is not None and found.unregistered:
            where = modules(recording, found.names)
            layer = next((layer for path in where if (layer := recording.layer_at(path)) and layer.source), None)
            source = layer.source if layer is not None else None
            yield self._finding(len(found.names), listed(where), found.caller, source, "ModuleList", found.names)
            return
        loose = _loose(recording)
        if loose and any(o.steps for o in recording.optimizers):
            first = loose[0]
            names = tuple(dict.fromkeys(operation.module for operation in loose))
            yield self._finding(
                len(loose), "an nn.Parameter", first.module, line(recording, first), "ParameterList", names
            )

    def _finding(
        self, count: int, what: str, caller: str, source: SourceLine | None, container: str, names: tuple[str, ...]
    ) -> Finding:
        model = caller or "the model"
        return Finding(
            self.name,
            f"{count} parameters that {model} uses are not registered with it: {what}",
            Severity.ERROR,
            f"{model} uses {what} in its forward pass but does not own them, so parameters() misses them and no "
            "optimizer updates them. This happens when they are kept in a plain list or dict.",
            Location.at(source, caller or None, step=0),
            (Evidence("unregistered parameters with a gradient", count, ">", 0.0),),
            (Fix("register", f"Keep them in an nn.{container}.", _registered(source, container), Reach.MODEL),),
            first_step=0,
            places=names,
            share=1.0,
        )


def _loose(recording: Recording) -> list[Operation]:
    """The first operation inside of a model on each parameter with gradient that nobody owns, in their order."""
    found: dict[int, Operation] = {}
    for graph in graphs(recording):
        reach = graph.values_behind(by_gradient=True)
        for value in (graph.values[i] for i in reach):
            if value.origin == "parameter" and not value.name and value.requires_grad:
                for operation in graph.consumers(value.index):
                    if operation.inside:
                        found.setdefault(value.index, operation)
    return sorted(found.values(), key=lambda operation: operation.index)


def _registered(source: SourceLine | None, container: str) -> str:
    text = "" if source is None else source.text
    found = re.match(r"((?:self\.)?\w+\s*=\s*)(\[.*\])$", text)
    if found:
        return f"{found[1]}nn.{container}({found[2]})"
    return f"self.layers = nn.{container}(self.layers)  # at the end of __init__, for the list that holds them"
