"""Are whole-number targets that one output is regressed on numbers of a scale, or names of classes in no order?"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.functions import plain
from netdoctor.capture.step import Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Entry
from netdoctor.checks.loss.comparisons import REGRESSION, comparisons
from netdoctor.errors import why_it_failed
from netdoctor.experiments.held_out import RATES, STEPS, evaluating, trainable_with_adam
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Places
from netdoctor.recording import Arm, Recording

NUMBERS, NAMES = "classes/as numbers", "classes/as names"
FEWEST = 4  # kinds: the order of three cannot be told from none
MOST = 64
EACH = 20  # samples of each kind, on average


@dataclass(slots=True)
class _Head:
    """The last dense layer: what it was given last, and what the loss was given with it."""

    layer: nn.Linear  # of the script's model
    low: int
    kinds: int
    scores: Tensor | None = None
    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # (scores or predictions, kinds)


def compare(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arms "classes/as numbers" and "classes/as names", where one output is regressed on a few whole numbers.

    Both learn from two thirds of the captured batches with Adam: the first as the script does, the second by a new last
    layer with one output per number and cross-entropy. Facts, of the held-out third: "right", the share of samples that
    get their number (rounded, or the likeliest one); of the second "beside", the share of samples whose second likeliest
    number is one beside the likeliest (near 1 on a scale; 2 / kinds for names), and "kinds". No arms for other targets.
    """
    try:
        with quiet():
            head = _head(recording, step)
            if head is None:
                return {}
            arms = {}
            for name, names in ((NUMBERS, False), (NAMES, True)):
                share = budget.share(budget.left if names else budget.left / 2)
                arms[name] = max((_run(name, step, head, rate, names, share) for rate in RATES), key=_right)
            return arms
    except Exception as error:  # the user's code failed on the copy, or the layer is not called alone
        return {NUMBERS: Arm(NUMBERS, np.empty(0), failure=why_it_failed(error))}


def _right(arm: Arm) -> float:
    return float(arm.facts["right"])


def _head(recording: Recording, step: TrainingStep) -> _Head | None:
    """The layer that makes the prediction, when the targets are a few whole numbers; else None."""
    found = list(comparisons(recording))
    if len(found) != 1 or found[0].operation.name not in REGRESSION or len(step.iterations) < 6:
        return None
    maker, target = found[0].maker, found[0].target
    if maker is None or maker.name != "linear" or not target.integral or target.requires_grad or target.low < 0:
        return None
    layer = Places(step).module(maker.module)
    if not isinstance(layer, nn.Linear) or layer.out_features != 1:
        return None
    values = torch.cat([kinds for iteration in step.iterations for kinds in _targets(iteration)] or [torch.empty(0)])
    kinds = values.unique()
    few = FEWEST <= len(kinds) <= MOST and len(values) >= EACH * len(kinds)
    without_gap = few and bool((kinds.diff() == 1).all()) and kinds[0] in (0, 1)
    return _Head(layer, int(kinds[0]), len(kinds)) if without_gap else None


def _targets(iteration: Iteration) -> list[Tensor]:
    """The constant second argument of each call of a regression loss."""
    entries = [entry for entry in iteration.backwards[0].entries if _compares(entry)]
    held = [value.tensor for entry in entries for value in entry.args[:2] if hasattr(value, "tensor")]
    return [tensor.detach().double().reshape(-1).cpu() for tensor in held]


def _compares(entry: Entry) -> bool:
    return entry.module is None and plain(entry.name) in REGRESSION


def _run(name: str, step: TrainingStep, head: _Head, rate: float, names: bool, budget: Budget) -> Arm:
    began, sandbox = time.perf_counter(), Sandbox(step)
    bench = Bench(sandbox, step.iterations)
    _prepare(bench, head, names)
    optimizer = trainable_with_adam(sandbox, rate)
    cut = len(bench.iterations) - len(bench.iterations) // 3
    losses: list[float] = []
    for number in range(STEPS):
        if budget.left <= 0:
            break
        optimizer.zero_grad()
        losses.append(sandbox.iterate(bench.iterations[number % cut]))
    head.seen.clear()
    with torch.no_grad():
        for iteration in bench.iterations[cut:]:
            refuse_overwritten(iteration.backwards[0])
            Replay(sandbox.copies).loss(evaluating(iteration.backwards[0]))
    return Arm(name, np.asarray(losses), time.perf_counter() - began, _facts(head, names))


def _prepare(bench: Bench, head: _Head, names: bool) -> None:
    layer = bench.copy_of(head.layer)
    assert isinstance(layer, nn.Linear)
    if names:
        new = nn.Linear(layer.in_features, head.kinds, device=layer.weight.device, dtype=layer.weight.dtype)
        layer.add_module("names", new)
        layer.register_forward_pre_hook(lambda _, given: _keep(head, new(given[0])))

    def compared(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if len(args) < 2:
            raise LookupError("the loss is given its arguments by name")
        kinds = args[1].reshape(-1).long() - head.low
        given = head.scores if names else args[0].reshape(-1)
        if given is None or len(given) != len(kinds):
            raise LookupError("the prediction is not what the last layer gives")
        head.seen.append((given.detach(), kinds))
        return F.cross_entropy(given, kinds) if names else func(*args, **kwargs)

    exchange_operations(bench, [Exchange(None, REGRESSION, compared)])


def _keep(head: _Head, scores: Tensor) -> None:
    head.scores = scores.reshape(-1, head.kinds)


def _facts(head: _Head, names: bool) -> dict[str, float | str | bool]:
    given, kinds = (torch.cat(several) for several in zip(*head.seen, strict=True))
    if not names:
        right = float((given.round().long() - head.low == kinds).double().mean())
        return {"right": right, "kinds": float(head.kinds), "says": f"{100 * right:.3g} % right, rounded"}
    first, second = given.topk(2, dim=1).indices.unbind(1)
    right, beside = float((first == kinds).double().mean()), float(((first - second).abs() == 1).double().mean())
    says = f"{100 * right:.3g} % right as classes"
    return {"right": right, "beside": beside, "kinds": float(head.kinds), "says": says}
