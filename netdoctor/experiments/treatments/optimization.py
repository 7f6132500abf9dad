"""Treatments of the training loop: the optimizer and its options, clipping, clearing, the order of the calls."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from netdoctor.capture.step import Action, Iteration, TrainingStep
from netdoctor.experiments.sandbox import Sandbox, trained_originals
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment
from netdoctor.experiments.unblocking import treatments as removals

_CLIP = 1.0  # what the fixes' code says
_LOWER = 0.1
_GROUP_LR = re.compile(r"\[['\"]lr['\"]\]\s*=\s*([-+.\deE]+)")
_NUMBER = r"([-+]?[.\d][-+.\deE]*)"
_CLIPPED = re.compile(
    rf"\b(?:max_norm|clip_value)\s*=\s*{_NUMBER}|\bclip_grad_(?:norm|value)_\(.*?,\s*{_NUMBER}\s*(?=[,)])"
)
Options = dict[str, Any]


# --- the optimizer's line --------------------------------------------------------------------------------------------


def optimizer_line(case: Case) -> Treatment | None:
    """The optimizer as the fix's code builds it: another class, or other options of the same one."""
    name, options = _built(case.fix.code)
    starts = case.step.optimizers
    if not name and not options:
        return None
    if name and (not starts or name != type(starts[0].optimizer).__name__):
        return Treatment(sandbox=partial(_with_optimizer, name, options))
    old = _lr(case.step)
    factor = float(options.pop("lr", old)) / old if old else math.nan
    if not math.isfinite(factor):
        return None

    if not options:
        return Treatment(sandbox=partial(_at_rate, factor))

    def apply(bench: Bench) -> None:
        for group in bench.sandbox.optimizers[0].param_groups:
            group.update({key: value for key, value in options.items() if key in group})

    return Treatment(apply, partial(_at_rate, factor))


def rate_alone(treatment: Treatment) -> float | None:
    """By what a treatment multiplies the learning rate, where it does nothing else."""
    made = treatment.sandbox
    factor = made.args[0] if isinstance(made, partial) and made.func is _at_rate else None
    return float(factor) if factor is not None and treatment == Treatment(sandbox=made) else None


def _at_rate(factor: float, step: TrainingStep) -> Sandbox:
    return Sandbox(step, lr_factor=factor)


def _with_optimizer(name: str, options: Options, step: TrainingStep) -> Sandbox:
    kind: type[Optimizer] = getattr(torch.optim, name)
    return Sandbox(step, optimizer=lambda parameters: kind(parameters, **options))


def _built(code: str) -> tuple[str, Options]:
    """(class, options given as constants) of the optimizer that a line builds; ("", {}) where there is none."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        tree = ast.Module([], [])
    for node in ast.walk(tree):
        name = _called(node)
        if isinstance(node, ast.Call) and _is_optimizer(name):
            known = {k.arg: _constant(k.value) for k in node.keywords if k.arg}
            return name, {key: value for key, value in known.items() if value is not None}
    found = _GROUP_LR.search(code)
    return "", {} if found is None else {"lr": float(found[1])}


def _called(node: ast.AST) -> str:
    function = node.func if isinstance(node, ast.Call) else None
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")


def _is_optimizer(name: str) -> bool:
    kind = getattr(torch.optim, name, None)
    return isinstance(kind, type) and issubclass(kind, Optimizer)


def _constant(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def _lr(step: TrainingStep) -> float:
    groups = step.optimizers[0].groups if step.optimizers else []
    return float(groups[0].get("lr", math.nan)) if groups else math.nan


def lower_lr(case: Case) -> Treatment | None:
    """The learning rate of the fix's code, a tenth of the script's own where that names none."""
    found = optimizer_line(case)
    if found is None or found.sandbox is Sandbox:
        return Treatment(sandbox=partial(_at_rate, _LOWER))
    return found


def drop_maximize(_: Case) -> Treatment:
    """Minimise."""

    def apply(bench: Bench) -> None:
        for optimizer in bench.sandbox.optimizers:
            for group in optimizer.param_groups:
                if "maximize" in group:
                    group["maximize"] = False

    return Treatment(apply)


# --- what belongs to the optimizer -----------------------------------------------------------------------------------


def give_parameters(case: Case) -> Treatment | None:
    """Everything that wants a gradient, in the models or used loosely, is trained by the optimizer."""
    return _trained(case, lambda parameter: parameter.requires_grad)


def unfreeze(case: Case) -> Treatment | None:
    """Everything that can have a gradient is trained by the optimizer."""
    return _trained(case, lambda parameter: parameter.is_floating_point())


def unfreeze_module(case: Case) -> Treatment | None:
    """The parameters that the finding names train, in captured steps in which they are frozen."""
    found = [p for path in case.finding.places if (p := case.places.parameter(path)) is not None]
    starts = {key: start for key, (_, start) in case.step.starts.items()}
    if not found or not case.step.optimizers or any(id(p) not in starts or starts[id(p)].requires_grad for p in found):
        return None
    owned = {id(p) for start in case.step.optimizers for group in start.parameters for p in group}
    missing = [p for p in found if id(p) not in owned]

    def apply(bench: Bench) -> None:
        copies = {id(p): c for p in found if isinstance(c := bench.sandbox.copies.of(p), Tensor)}
        for parameter in copies.values():
            parameter.requires_grad_()
        new = [copies[id(p)] for p in missing if id(p) in copies]
        optimizer = bench.sandbox.optimizers[0]
        if new:
            optimizer.add_param_group({**optimizer.param_groups[0], "params": new})
        bench.iterations = [_clearing_too(iteration, missing) for iteration in bench.iterations]

    return Treatment(apply)


def _trained(case: Case, wanted: Callable[[Tensor], bool]) -> Treatment | None:
    owned = {id(p) for start in case.step.optimizers for group in start.parameters for p in group}
    tops = case.places.tops
    known = [p for top in tops for p in top.parameters()] + [p for top in tops for p in _unlisted(top)]
    known += case.step.leaves
    missing = list({id(p): p for p in known if wanted(p) and id(p) not in owned}.values())
    if not case.step.optimizers or not (missing or any(not p.requires_grad for p in known)):
        return None

    def apply(bench: Bench) -> None:
        copies = [c for c in map(bench.sandbox.copies.of, missing) if isinstance(c, Tensor)]
        for parameter in bench.sandbox.trainable() + copies:
            parameter.requires_grad_()
        optimizer = bench.sandbox.optimizers[0]
        optimizer.add_param_group({**optimizer.param_groups[0], "params": copies})  # at the rate that is in force
        bench.iterations = [_clearing_too(iteration, missing) for iteration in bench.iterations]

    return Treatment(apply)


def _unlisted(model: nn.Module) -> Iterator[Tensor]:
    """Parameters that modules hold in plain lists and dictionaries, where torch does not see them."""
    for module in model.modules():
        queue = [value for name, value in vars(module).items() if not name.startswith("_")]
        while queue:
            thing = queue.pop()
            if isinstance(thing, nn.Module):
                yield from thing.parameters()
                yield from _unlisted(thing)
            elif isinstance(thing, nn.Parameter):
                yield thing
            elif isinstance(thing, list | tuple | dict):
                queue += thing.values() if isinstance(thing, dict) else thing


def _clearing_too(iteration: Iteration, missing: list[Tensor]) -> Iteration:
    clear = Action("zero", parameters=tuple(missing))
    return Iteration([clear, *iteration.actions], iteration.bytes)


# --- the order of the loop -------------------------------------------------------------------------------------------


def clip_gradients(case: Case) -> Treatment:
    """Clip the norm of all gradients before each step."""
    limit = _limit(case.fix.code)
    return _reordered(case, partial(_clipped, _CLIP if limit is None else limit))


def raise_clip(case: Case) -> Treatment | None:
    """The script's own clipping at the limit of the fix's code."""
    limit = _limit(case.fix.code)
    if limit is None:
        return None
    return _reordered(case, lambda actions, _: (replace(a, limit=limit) if a.kind == "clip" else a for a in actions))


def _limit(code: str) -> float | None:
    """The number that a line clips gradients at, by name or by its place."""
    found = _CLIPPED.search(code)
    return None if found is None else float(found[1] or found[2])


def _clipped(limit: float, actions: list[Action], parameters: tuple[Tensor, ...]) -> Iterator[Action]:
    for action in actions:
        if action.kind == "step":
            yield Action("clip", parameters=parameters, limit=limit)
        yield action


def zero_grad(case: Case) -> Treatment:
    """Clear all gradients at the start of each step."""
    return _reordered(case, lambda actions, parameters: iter([Action("zero", parameters=parameters), *actions]))


def reorder_step(case: Case) -> Treatment:
    """Clear first, then backward, then step."""
    return _reordered(case, _sorted)


def _sorted(actions: list[Action], _: tuple[Tensor, ...]) -> Iterator[Action]:
    yield from (action for action in actions if action.kind == "zero")
    yield from (action for action in actions if action.kind != "zero")


def _reordered(case: Case, order: Callable[[list[Action], tuple[Tensor, ...]], Iterator[Action]]) -> Treatment:
    parameters = tuple(trained_originals(case.step))

    def apply(bench: Bench) -> None:
        bench.iterations = [Iteration(list(order(it.actions, parameters)), it.bytes) for it in bench.iterations]

    return Treatment(apply)


def optimizer_step(case: Case) -> Treatment | None:
    """Step the script's optimizer after each backward, which the script never does."""
    if not case.recording.optimizers or case.step.optimizers:
        return None
    facts = case.recording.optimizers[0]
    if not _is_optimizer(facts.type):
        return None
    options = {key: value for key, value in facts.groups[0].items() if key in ("lr", "weight_decay", "momentum")}

    def single(bench: Bench) -> None:
        """Only steps of one backward: before it was clear that no step comes, several were taken for one."""
        bench.iterations = [it for it in bench.iterations if len(it.backwards) == 1] or bench.iterations

    still = partial(_with_optimizer, "SGD", {"lr": 0.0})
    return Treatment(sandbox=partial(_with_optimizer, facts.type, options), both=single, control=still)


def divide_loss(case: Case) -> Treatment | None:
    """Divide each loss by the number of backward calls per step."""
    count = max((len(iteration.backwards) for iteration in case.step.iterations), default=1)
    if count < 2:
        return None
    return Treatment(partial(scale_losses, 1 / count), unit=float(count))


def scale_losses(factor: float, bench: Bench) -> None:
    """Multiply the loss of every backward call."""
    bench.iterations = [
        Iteration([_scaled(action, factor) for action in iteration.actions], iteration.bytes)
        for iteration in bench.iterations
    ]


def _scaled(action: Action, factor: float) -> Action:
    backward = action.backward
    if backward is None:
        return action
    seeds = backward.seeds or (None,) * len(backward.losses)
    changed = tuple(torch.tensor(factor) if seed is None else seed * factor for seed in seeds)
    return replace(action, backward=replace(backward, seeds=changed))


def constant_rate(case: Case) -> Treatment:
    """The largest learning rate of the captured steps, all along."""
    steps = [action for iteration in case.step.iterations for action in iteration.actions if action.kind == "step"]
    rates: dict[int, tuple[float, ...]] = {}
    for action in steps:
        rates[action.optimizer] = max(rates.get(action.optimizer, action.lrs), action.lrs)
    return _reordered(case, lambda actions, _: (_at(action, rates) for action in actions))


def _at(action: Action, rates: dict[int, tuple[float, ...]]) -> Action:
    return replace(action, lrs=rates[action.optimizer]) if action.kind == "step" else action


# --- one thing taken out ---------------------------------------------------------------------------------------------


def removal(name: str) -> Maker:
    """Takes one thing out, as the tiny-batch experiment does: "without dropout", "without weight decay" and so on."""

    def make(case: Case) -> Treatment | None:
        operations = frozenset(() if case.graph is None else (o.name for o in case.graph.operations))
        wanted = next((t for t in removals(True, operations) if t.name == name), None)
        if wanted is None:
            return None

        def apply(bench: Bench) -> None:
            if not wanted.concerns(bench.sandbox, bench.iterations):
                raise LookupError(f"there is nothing to do {name}")
            wanted.apply(bench.sandbox, bench.iterations)
            bench.stack.enter_context(wanted.during())

        return Treatment(apply)

    return make


TREATMENTS: dict[str, Maker] = {
    "lower-lr": lower_lr,
    "lower-learning-rate": lower_lr,
    "raise-learning-rate": optimizer_line,
    "adam": optimizer_line,
    "adamw": optimizer_line,
    "momentum": optimizer_line,
    "optimizer": optimizer_line,
    "eps": optimizer_line,
    "drop-maximize": drop_maximize,
    "all-parameters": give_parameters,
    "optimizer-after-model": give_parameters,
    "register": give_parameters,
    "unfreeze": unfreeze,
    "unfreeze-module": unfreeze_module,
    "slower-decay": constant_rate,
    "clip-gradients": clip_gradients,
    "clip-gradient-norm": clip_gradients,
    "raise-clip": raise_clip,
    "zero-grad": zero_grad,
    "reorder-step": reorder_step,
    "optimizer-step": optimizer_step,
    "divide-loss": divide_loss,
    "with matched initialisation": removal("with matched initialisation"),
    "without batchnorm": removal("without batchnorm"),
    "without dropout": removal("without dropout"),
    "without clipping": removal("without clipping"),
    "without weight decay": removal("without weight decay"),
    "without penalty": removal("without penalty"),
}
