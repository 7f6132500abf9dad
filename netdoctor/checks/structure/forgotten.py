"""Parameters that the loss reaches and no optimizer holds, and why: shared by two checks that differ in the reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.structure.gradients import ever_had_gradient, owned, reached_anywhere
from netdoctor.recording import Optimizer, Parameter, Recording


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was left out of every optimizer. `stale` counts parameters that the optimizer holds in vain."""

    names: tuple[str, ...]
    trained: tuple[str, ...]  # those that an optimizer does train
    optimizer: int
    stale: int = 0
    model: str = ""
    whole_model: bool = False
    unregistered: tuple[str, ...] = ()  # modules that were called by a model that does not own them
    caller: str = ""

    def wider(self, text: str) -> str:
        """The optimizer's line with the missing parameters, as far as it can be told; else how to add a group."""
        name = self.model if self.model.isidentifier() else "model"
        if self.whole_model:
            found = re.search(r"([\w.]+\.parameters\(\))", text)
            if found and not re.search(r"\[|list\(", text):
                return text.replace(found[1], f"[*{found[1]}, *{name}.parameters()]", 1)
            return f"optimizer.add_param_group({{'params': {name}.parameters()}})"
        part = re.search(r"(\w+)((?:\.\w+|\[-?\d+\])+)\.parameters\(\)", text)
        if part and part[1] != "self":
            return text.replace(part[0], f"{part[1]}.parameters()", 1)
        return "optimizer = type(optimizer)(model.parameters(), lr=optimizer.param_groups[0]['lr'])"


def forgotten(recording: Recording) -> Forgotten | None:
    """The trainable parameters behind a captured loss that no stepping optimizer holds; None where all is in order."""
    reach = reached_anywhere(recording)
    known = [p for p in recording.parameters.values() if p.requires_grad and p.name in reach]
    missing = [p for p in known if not owned(recording, p)]
    trained = [p for p in known if owned(recording, p)]
    stepping = [o for o in recording.optimizers if o.steps > 0]
    if not missing or not stepping:
        return None
    layers = [p for p in trained if p.module_type]  # an optimised input or image is no part of a model
    holder = max(
        stepping, key=lambda o: (_stale(recording, o) > 0, o.index)
    )  # of an earlier phase's there is nothing to say
    stale = _stale(recording, holder)
    called = _called_from_outside(recording)
    strangers = [p for p in missing if p.model in called or p.module in called]
    if strangers:
        return _made(strangers, trained, stepping[0].index, unregistered=called)
    partly = [p for p in missing if any(t.model == p.model for t in layers)]
    if partly or (stale and not trained):
        return _made(partly or missing, trained, holder.index if stale else stepping[0].index, stale=stale)
    whole = [p for p in missing if _meant_to_train(recording, p, layers)]
    return _made(whole, trained, stepping[0].index, whole=True) if whole and layers else None


def _made(
    missing: list[Parameter],
    trained: list[Parameter],
    optimizer: int,
    stale: int = 0,
    whole: bool = False,
    unregistered: dict[str, str] | None = None,
) -> Forgotten:
    names = tuple(p.name for p in missing)
    kept, modules = tuple(p.name for p in trained), tuple(unregistered or {})
    caller = next(iter((unregistered or {}).values()), "")
    return Forgotten(names, kept, optimizer, stale, missing[0].model, whole, modules, caller)


def _stale(recording: Recording, optimizer: Optimizer) -> int:
    """How many entries of an optimizer belong to no model and never got a gradient."""
    count = 0
    for name in optimizer.parameters:
        parameter = recording.parameters.get(name)
        loose = parameter is None or (parameter.module == "" and parameter.module_type == "")
        count += loose and not ever_had_gradient(recording, name)
    return count


def _called_from_outside(recording: Recording) -> dict[str, str]:
    """Modules that ran inside of a model that does not own them → that model's path."""
    found: dict[str, str] = {}
    for graph in graphs(recording):
        for operation in graph.operations:
            path, outer = operation.module, operation.outer
            if outer and path and path != outer and not path.startswith(f"{outer}."):
                found.setdefault(path, outer)
    return found


def _meant_to_train(recording: Recording, parameter: Parameter, trained: list[Parameter]) -> bool:
    """Whether a model without any trained parameter looks as if it should train: in train mode, fresh, no copy."""
    own = [p for p in recording.parameters.values() if p.model == parameter.model]
    layers = [layer for layer in recording.layers if layer.model == parameter.model]
    others = {p.model for p in trained}
    shapes = [p.shape for p in own]
    copies = any([p.shape for p in recording.parameters.values() if p.model == m] == shapes for m in others)
    fixed = bool(recording.facts.get("pretrained")) or any(not layer.training for layer in layers)
    return bool(layers) and not copies and not fixed
