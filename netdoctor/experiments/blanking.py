"""Does the model get anything out of its inputs? The same steps with every sample's input replaced by the average one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import TrainingStep
from netdoctor.capture.tape import Constant, Entry
from netdoctor.errors import why_it_failed
from netdoctor.experiments.learning_rate import STEPS
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.treatment import Bench, with_constants
from netdoctor.recording import Arm

GIVEN, BLANKED = "inputs/given", "inputs/blanked"


def compare(step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "inputs/given" and "inputs/blanked": the captured steps as they were, and without what tells samples apart.

    Numbers are replaced by their mean over the batch, tokens by those of the first sample, in what the models are
    given; targets stay. Where both lose the same, the model learns nothing from its inputs (Karpathy, A Recipe for
    Training Neural Networks, 2019: the input-independent baseline). Inputs that do not vary make a failure.
    """
    arms: dict[str, Arm] = {}
    for name, blank in ((GIVEN, False), (BLANKED, True)):
        if budget.left <= 0:
            break
        say(name.replace("/", " "))
        arms[name] = _arm(name, step, budget.share(budget.left / 2), blank)
        if arms[name].failure:
            break
    return arms


def _arm(name: str, step: TrainingStep, budget: Budget, blank: bool) -> Arm:
    try:
        with quiet():
            bench = Bench(Sandbox(step), step.iterations)
            if blank:
                changed = [0]
                bench.rewrite(partial(_blank, changed))
                if not changed[0]:
                    return Arm(name, np.empty(0), failure="no input of a model varies over the batch")
            run = bench.sandbox.run(bench.iterations, STEPS, budget)
    except Exception as error:  # the user's code failed on the copy: an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    return Arm(name, np.asarray(run.losses), run.seconds, {"ended": run.ended})


def _blank(changed: list[int], entry: Entry) -> Entry:
    if entry.module is None:
        return entry
    found = entry.meanings()
    sizes = [item.tensor.shape[0] for item in found if isinstance(item, Constant) and item.tensor.dim() > 1]
    return with_constants(entry, partial(_averaged, changed, sizes[0])) if sizes else entry


def _averaged(changed: list[int], size: int, tensor: Tensor) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[0] != size or tensor.dtype == torch.bool or tensor.layout is not torch.strided:
        return tensor
    one = tensor.mean(0, keepdim=True) if tensor.is_floating_point() else tensor[:1]
    changed[0] += not torch.allclose(one.expand_as(tensor), tensor)
    return one.expand_as(tensor).clone()
