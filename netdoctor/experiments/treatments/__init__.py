"""The name of a fix → a small change of a copy. To add one: a function in one of these files, a row in its table."""

from __future__ import annotations

from netdoctor.experiments.treatments import (
    axes,
    batches,
    carried,
    composition,
    connections,
    curvature,
    dependences,
    derivatives,
    evaluation,
    held_out,
    layers,
    logits,
    loop,
    loss_functions,
    losses,
    masking,
    modes,
    optimization,
    precision,
    readers,
    safe_operations,
    samples,
    schedules,
    scores,
    shifting,
    targets,
    unfrozen,
    weights,
)
from netdoctor.experiments.treatments.treatment import Case, Maker, Treatment

TREATMENTS: dict[str, Maker] = {
    **axes.TREATMENTS,
    **weights.TREATMENTS,
    **shifting.TREATMENTS,
    **layers.TREATMENTS,
    **connections.TREATMENTS,
    **curvature.TREATMENTS,
    **dependences.TREATMENTS,
    **derivatives.TREATMENTS,
    **evaluation.TREATMENTS,
    **carried.TREATMENTS,
    **composition.TREATMENTS,
    **loop.TREATMENTS,
    **masking.TREATMENTS,
    **modes.TREATMENTS,
    **held_out.TREATMENTS,
    **optimization.TREATMENTS,
    **precision.TREATMENTS,
    **readers.TREATMENTS,
    **batches.TREATMENTS,
    **losses.TREATMENTS,
    **loss_functions.TREATMENTS,
    **safe_operations.TREATMENTS,
    **samples.TREATMENTS,
    **schedules.TREATMENTS,
    **logits.TREATMENTS,
    **scores.TREATMENTS,
    **targets.TREATMENTS,
    **unfrozen.TREATMENTS,
}


def treatment_of(case: Case) -> Treatment | None:
    """How the case's fix is tried; None where it cannot be.

    A name that no table holds is tried by its code: when that sets weights in place, or builds an optimizer.
    """
    maker = TREATMENTS.get(case.fix.treatment)
    if maker is not None:
        return maker(case)
    return weights.run_code(case) or optimization.optimizer_line(case)
