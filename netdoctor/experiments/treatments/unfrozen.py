"""Treatment of parameters that were set to train and that no optimizer holds: on a copy it is given them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from netdoctor.capture.step import Action, Iteration, Replay, TrainingStep, preserved_random_state, refuse_overwritten
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments.loop import as_it_ended
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment


def hold_unfrozen(case: Case) -> Treatment | None:
    """The parameters that the finding names in an optimizer, with its own options.

    Both arms start with the captured part of the training, where that begins after they were unfrozen, else from the
    trained weights. None where the captured steps ran without them: what a fixed body made is a constant of these,
    through which no gradient comes. Then nothing can be shown, and the fix is told to be untried.
    """
    found = [p for name in case.finding.places if (p := case.places.parameter(name)) is not None]
    meant = [p for p in found if p.requires_grad]
    free = all(id(p) in case.step.starts and case.step.starts[id(p)][1].requires_grad for p in meant)
    if case.step.begins and not free:
        raise CannotReplayError("a later part, in which they are frozen: the first one shows as much")
    start, holder = Sandbox if free else as_it_ended, _holder(case, meant)
    if holder is None or not _reached(case.step, start, meant):
        if case.step.late is not None and not case.step.begins:
            raise CannotReplayError("the later part may run with them")
        return None

    def apply(bench: Bench) -> None:
        copies = [c for c in map(bench.sandbox.copies.of, meant) if isinstance(c, Tensor)]
        bench.sandbox.optimizers[holder].add_param_group({"params": copies})
        clear = Action("zero", parameters=tuple(meant))
        bench.iterations = [Iteration([clear, *it.actions], it.bytes) for it in bench.iterations]

    says = "" if free else "the trained weights as the start"
    return Treatment(apply, start, control=start, says=says)


def _holder(case: Case, meant: list[Tensor]) -> int | None:
    """The only optimizer, or the first one that holds other parameters of the same model; None where there is none."""
    if len(case.step.optimizers) == 1 and meant:
        return 0
    for model in case.places.tops:
        own = {id(p) for p in model.parameters()}
        if not any(id(p) in own for p in meant):
            continue
        for number, start in enumerate(case.step.optimizers):
            if any(id(p) in own for group in start.parameters for p in group):
                return number
    return None


def _reached(step: TrainingStep, start: Callable[[TrainingStep], Sandbox], meant: list[Tensor]) -> bool:
    """Whether the loss of the first captured step has a gradient for any of them, now that they want one."""
    try:
        backward, copies = step.iterations[0].backwards[0], start(step).copies
        refuse_overwritten(backward)
        with preserved_random_state():
            loss = Replay(copies).loss(backward)
        copied = [c for p in meant if isinstance(c := copies.of(p), Tensor)]
        return any(g is not None for g in torch.autograd.grad(loss, copied, allow_unused=True))
    except (CannotReplayError, RuntimeError, IndexError):
        return False


TREATMENTS: dict[str, Maker] = {"hold-unfrozen": hold_unfrozen}
