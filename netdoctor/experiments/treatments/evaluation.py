"""Treatments of how the trained model is evaluated: the modes of its modules, and the statistics of its norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.functions import function_name
from netdoctor.capture.step import Replay
from netdoctor.capture.tape import Entry
from netdoctor.checks.structure import running_statistics
from netdoctor.experiments import company, last_batch
from netdoctor.experiments.determinism import ATTENTION, DROPOUTS, two_passes
from netdoctor.experiments.final import batches, drift_of, frozen_norms, switched, without_graph
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment, as_trained

TWICE = (1, 2)  # seeds of two passes that are to be independent
APART = 0.1  # %: as nondeterministic-eval and cross-sample-leakage ask; rounding stays under a hundredth of it
LOST, DRAWN = 10.0, 5.0  # %, as batchnorm-drift asks
MOVED = 0.1  # deviations, as batchnorm-drift asks


# --- modes -----------------------------------------------------------------------------------------------------------


def eval_mode(_: Case) -> Treatment:
    """A captured batch passed twice, as the script evaluates, and in evaluation mode."""

    def apply(bench: Bench) -> None:
        bench.rewrite(lambda entry: replace(entry, modes=(False,) * len(entry.modes)))

    quantity = "what a sample gets in two evaluations, the second one beside other samples, differs by"
    return _of_the_end(apply, Measure(quantity, _company, APART, "%"))


def _company(bench: Bench) -> float:
    return 100 * company.change(bench.sandbox.copies, bench.iterations[0], TWICE)


def training_flag(_: Case) -> Treatment:
    """Every dropout inside of a module follows that module's mode."""

    def apply(bench: Bench) -> None:
        modules = [child for top in bench.sandbox.modules() for child in top.modules()]
        names = frozenset({*DROPOUTS, ATTENTION})
        exchange_operations(bench, [Exchange(m, names, partial(_following, m)) for m in modules])

    def differ(bench: Bench) -> float:
        return 100 * two_passes(bench.sandbox.step, bench.sandbox.copies)

    return _of_the_end(apply, Measure("outputs of two passes in evaluation mode differ by", differ, APART, "%"))


def _following(module: nn.Module, func: Any, args: Any, kwargs: Any) -> Any:
    if module.training:
        return func(*args, **kwargs)
    if function_name(func) == ATTENTION:
        return func(*args[:4], *((0.0,) if len(args) > 4 else ()), *args[5:], **_without(kwargs, len(args) > 4))
    return args[0] if args else kwargs["input"]


def _without(kwargs: dict[str, Any], given: bool) -> dict[str, Any]:
    return kwargs if given else {**kwargs, "dropout_p": 0.0}


def _of_the_end(apply: Any, measure: Measure) -> Treatment:
    """A treatment of the model as the training left it: nothing is trained."""
    return Treatment(apply, as_trained, control=as_trained, measure=measure, steps=0)


# --- running statistics ----------------------------------------------------------------------------------------------


def new_statistics(_: Case) -> Treatment:
    """Running statistics taken anew from the captured batches, as `torch.optim.swa_utils.update_bn` does."""

    def apply(bench: Bench) -> None:
        last_batch.averaged(bench.sandbox.copies, list(_norms(bench)), bench.iterations)
        bench.notes.append("running statistics taken anew from the captured batches")

    quantity = "of what training gained, lost in evaluation mode"
    return _of_the_end(apply, Measure(quantity, _lost, LOST, "%"))


def _norms(bench: Bench) -> Iterator[_BatchNorm]:
    children = (child for top in bench.sandbox.modules() for child in top.modules())
    return (c for c in children if isinstance(c, _BatchNorm) and c.track_running_stats)


def replay_all(bench: Bench) -> None:
    """One forward pass over all captured batches, in the modes that they were captured in."""
    for iteration in bench.iterations:
        last_batch.passed(bench.sandbox.copies, iteration)


def smaller_momentum(case: Case) -> Treatment | None:
    """Running statistics as a small momentum leaves them: the average over many batches, to which the last one adds little."""
    norms = list(last_batch.hasty_norms(case.step).values())
    if not norms:
        return None
    size, untrained = last_batch.samples(case.recording, case.step), running_statistics.untrained(case.recording)
    untrained = untrained if np.isfinite(untrained) else case.step.iterations[0].backwards[0].value

    def apply(bench: Bench) -> None:
        copied = [copy for copy in map(bench.copy_of, norms) if isinstance(copy, _BatchNorm)]
        last_batch.averaged(bench.sandbox.copies, copied, bench.iterations)
        for norm in copied:
            norm.momentum = running_statistics.smaller(norm.momentum or 0.0, case.recording.steps)
        bench.notes.append("running statistics averaged over the captured batches")

    def lost(bench: Bench) -> float:
        found = last_batch.draw(bench.sandbox.copies, bench.sandbox.step, size, Budget(bench.seconds))
        gained = untrained - found.averaged
        return 100 * (float(np.mean(found.losses)) - found.averaged) / gained if gained > 0 else float("nan")

    quantity = "of what training gained, lost in evaluation mode on average"
    return _of_the_end(apply, Measure(quantity, lost, DRAWN, "%"))


def _lost(bench: Bench) -> float:
    """The loss in evaluation mode above that by the statistics of the batch, in percent of what the latter gained."""
    step, copies = bench.sandbox.step, bench.sandbox.copies
    found = list(batches(step))
    running, own = (
        float(np.mean([float(Replay(copies).loss(without_graph(switched(backward, normed)))) for backward in found]))
        for normed in (False, True)  # in this order: passes with batch statistics move the running ones
    )
    gained = step.iterations[0].backwards[0].value - own
    return 100 * (running - own) / gained if gained > 0 else float("nan")


def freeze_norms(case: Case) -> Treatment | None:
    """Frozen BatchNorms that were loaded with statistics of their own stay in evaluation mode."""
    frozen = [norm for _, norm, _, _ in frozen_norms(case.step)]
    if not frozen:
        return None
    ids = {id(norm) for norm in frozen}

    def kept(entry: Entry) -> Entry:
        if entry.module is None:
            return entry
        pairs = zip(entry.module.modules(), entry.modes, strict=False)
        return replace(entry, modes=tuple(mode and id(child) not in ids for child, mode in pairs))

    def moved(bench: Bench) -> float:
        pairs = [(bench.copy_of(norm), mean, var) for _, norm, mean, var in frozen_norms(case.step)]
        return max(
            (drift_of(c, mean, var) for c, mean, var in pairs if isinstance(c, _BatchNorm)), default=float("nan")
        )

    measure = Measure("running mean of a frozen norm moved, in standard deviations, by", moved, MOVED)
    return Treatment(lambda bench: bench.rewrite(kept), measure=measure)


TREATMENTS: dict[str, Maker] = {
    "eval-mode": eval_mode,
    "training-flag": training_flag,
    "batchnorm-momentum": new_statistics,
    "batchnorm-memory": smaller_momentum,
    "freeze-norms": freeze_norms,
}
