"""Does the model give the same for the same batch twice in evaluation mode, and if not, which operation is to blame?"""

from __future__ import annotations

import linecache
import random
import sys
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import function_name
from netdoctor.capture.source import user_position
from netdoctor.capture.step import Copies, Replay, TrainingStep
from netdoctor.capture.tape import Context, Entry
from netdoctor.capture.tree import tensors
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.recording import Arm, Recording

SEEDS = (1, 2)
SAME = 1e-5  # of the largest output: the rounding of another order of summation
_DROPOUT_NAMES = "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout"
DROPOUTS = frozenset(_DROPOUT_NAMES.split())
ATTENTION = "scaled_dot_product_attention"


def repeat(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "determinism/evaluation": the first captured model call twice, in evaluation mode, with two seeds.

    Facts: "differs"; "share", the mean difference over the mean magnitude; and where a dropout was active, its
    "operation", "file", "line", "text", "registered" (it is a layer of the model's own) and "p".
    """
    name = "determinism/evaluation"
    began = time.perf_counter()
    try:
        with quiet():
            copies = step.copies()
            first, active = _run(step, copies, SEEDS[0])
            second, _ = _run(step, copies, SEEDS[1])
            again, _ = _run(step, copies, SEEDS[0])  # a model that counts its calls differs by itself
    except Exception as error:
        return {name: Arm(name, np.empty(0), failure=why_it_failed(error))}
    share = difference(first, second)
    differs = share > SAME and difference(first, again) <= SAME
    facts: dict[str, float | str | bool] = {"differs": differs, "share": share}
    facts["says"] = f"two passes in evaluation mode differ by {100 * share:.3g} %" if differs else "the same both times"
    if active:
        facts.update(active[0].facts())
    return {name: Arm(name, np.empty(0), time.perf_counter() - began, facts)}


def two_passes(step: TrainingStep, copies: Copies) -> float:
    """By which share of their magnitude the outputs of two passes in evaluation mode differ, in these copies."""
    (one, _), (other, _) = (_run(step, copies, seed) for seed in SEEDS)
    return difference(one, other)


@dataclass(frozen=True, slots=True)
class _Active:
    """A dropout that drops in evaluation mode."""

    operation: str
    position: tuple[str, int]
    registered: bool
    p: float

    def facts(self) -> dict[str, float | str | bool]:
        file, line = self.position
        return {
            "operation": self.operation,
            "file": file,
            "line": float(line),
            "text": linecache.getline(file, line).strip() if file else "",
            "registered": self.registered,
            "p": self.p,
        }


class _Dropouts(TorchFunctionMode):
    """Notes the dropouts that are active."""

    def __init__(self, own: set[int]) -> None:
        super().__init__()
        self.active: list[_Active] = []
        self._own = own

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        p = _probability(name, args, kwargs)
        if p > 0:
            layer = _layer()
            known = layer is not None and id(layer) in self._own
            self.active.append(_Active(name, user_position(Replay.run_entry.__code__), known, p))
        return func(*args, **kwargs)


def _probability(name: str, args: Any, kwargs: Any) -> float:
    """With which probability a call drops; 0 for calls that do not."""
    if name in DROPOUTS:
        training = args[2] if len(args) > 2 else kwargs.get("training", True)
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        return float(p) if training else 0.0
    if name == ATTENTION:
        return float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))
    return 0.0


def _layer() -> nn.Module | None:
    """The dropout layer that is running, if one of torch's own is."""
    frame = sys._getframe(1)
    for _ in range(8):
        held = frame.f_locals.get("self")
        if isinstance(held, _DropoutNd):
            return held
        if frame.f_back is None:
            return None
        frame = frame.f_back
    return None


def _run(step: TrainingStep, copies: Copies, seed: int) -> tuple[list[Tensor], list[_Active]]:
    """The outputs of the model calls of the first iteration, in evaluation mode and with a random state of our own."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    own = {id(child) for module in step.modules for child in copies.of(module).modules()}
    replay, watch = Replay(copies), _Dropouts(own)
    found: list[Tensor] = []
    made: set[int] = set()
    for entry in step.iterations[0].backwards[0].entries:
        if entry.module is None or not made.issuperset(entry.inputs()):
            continue  # what the loop does with the outputs is no affair of the model's
        made.update(entry.outputs)
        with watch, torch.no_grad():
            result = _call(replay, entry, seed)
        found.extend(t.detach().double() for t in tensors(result) if t.is_floating_point())
    return found, watch.active


def _call(replay: Replay, entry: Entry, seed: int) -> list[Tensor]:
    replay.run_entry(replace(entry, modes=(False,) * len(entry.modes), context=seeded(entry, seed)))
    return [replay.value(number) for number in entry.outputs]


def seeded(entry: Entry, seed: int) -> Context | None:
    """The surroundings of a call with random states that a seed made."""
    if entry.context is None:
        return None
    torch.manual_seed(seed)
    cuda = None if entry.context.cuda_random is None else torch.cuda.get_rng_state_all()
    return replace(
        entry.context,
        cpu_random=torch.get_rng_state(),
        cuda_random=cuda,
        numpy_random=np.random.RandomState(seed).get_state(),
        python_random=random.Random(seed).getstate(),
    )


def difference(one: list[Tensor], other: list[Tensor]) -> float:
    """The largest mean difference of two lists of outputs, over their mean magnitude."""
    pairs = [(a, b) for a, b in zip(one, other, strict=False) if a.shape == b.shape and a.numel()]
    shares = [float((a - b).abs().mean() / a.abs().mean().clamp_min(1e-12)) for a, b in pairs]
    return max(shares, default=0.0)
