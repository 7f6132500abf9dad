"""Is it any easier to learn the true pairs of inputs and targets than the same pairs shuffled?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.functions import plain
from netdoctor.capture.step import TrainingStep
from netdoctor.capture.tape import Entry
from netdoctor.checks.data.mixing import labelled
from netdoctor.errors import why_it_failed
from netdoctor.experiments.loss_terms import BINARY_LOSSES, CLASS_LOSSES, DIFFERENCES
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.treatment import Bench, with_constants
from netdoctor.recording import Arm, Recording

STEPS = 240  # ten to forty passes over the captured samples: enough to learn much of them by heart
SAMPLES = 256  # as many as make true pairs clearly easier than shuffled ones, few enough to be learned
RATES = ("0.001", "0.01", "0.0001")  # Adam's, of the overfit experiment; the likeliest first
ARMS = ("true", "shuffled", "shuffled again")
_COMPARING = CLASS_LOSSES | BINARY_LOSSES | DIFFERENCES | {"sub", "rsub"}


def trials(recording: Recording, step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "pairing/true", "pairing/shuffled" and "pairing/shuffled again", on the captured iterations.

    All start alike and see the same inputs in the same order; in the shuffled ones the targets of each batch are
    permuted, once. They are trained with that Adam which fitted a tiny batch, at 1e-3 where the
    script's own optimizer did. No arm where nothing fitted it, or the targets are no labels.
    """
    fitted = [rate for rate in RATES if _reached(recording, f"adam {rate}")]
    if not fitted and _reached(recording, "own"):
        fitted = [RATES[0]]  # the sweep ends with the first setting that fits, the script's own
    if not fitted or len(step.iterations) < 2 or not labelled(recording):
        return {}
    arms: dict[str, Arm] = {}
    for number, name in enumerate(ARMS):
        if budget.left <= 0:
            break
        say(f"learning {name} pairs")
        share = budget.share(budget.left / (len(ARMS) - number))
        arms[f"pairing/{name}"] = _arm(recording, step, f"pairing/{name}", float(fitted[0]), number, share)
        if arms[f"pairing/{name}"].failure:
            break
    return arms


def _reached(recording: Recording, setting: str) -> bool:
    arm = recording.arms.get(f"overfit/{setting}")
    return arm is not None and not arm.failure and bool(arm.facts.get("reached"))


def _enough(recording: Recording, step: TrainingStep) -> int:
    """How many iterations hold `SAMPLES` samples; at least 6, as a batch may say little."""
    size = max([facts.shape[0] for facts in recording.inputs], default=1)
    return min(len(step.iterations), max(6, -(-SAMPLES // size)))


def _arm(recording: Recording, step: TrainingStep, name: str, rate: float, seed: int, budget: Budget) -> Arm:
    try:
        with quiet():
            sandbox = Sandbox(step, optimizer=lambda ps: torch.optim.Adam(ps, lr=rate))
            bench = Bench(sandbox, step.iterations[: _enough(recording, step)])
            moved = [0]
            if seed:
                bench.rewrite(lambda entry: _shuffled(entry, seed, moved))
                if not moved[0]:
                    return Arm(name, np.empty(0), failure="the targets could not be told from the rest")
            run = bench.sandbox.run(bench.iterations, STEPS, budget)
    except Exception as error:  # the user's code failed on the copy: an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    return Arm(name, np.asarray(run.losses), run.seconds, {"lr": rate, "ended": run.ended})


def _shuffled(entry: Entry, seed: int, moved: list[int]) -> Entry:
    """The entry of a loss with its target permuted along the batch; any other as it is."""
    if entry.module is not None or plain(entry.name) not in _COMPARING:
        return entry

    def permuted(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] < 2:
            return tensor
        moved[0] += 1
        generator = torch.Generator().manual_seed(1000 * seed + moved[0])
        return tensor[torch.randperm(tensor.shape[0], generator=generator).to(tensor.device)]

    return with_constants(entry, permuted)
