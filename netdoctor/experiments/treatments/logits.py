"""Logits with a usual factor before their cross-entropy."""

from __future__ import annotations

from typing import Any

from netdoctor.checks.loss.comparisons import CROSS_ENTROPY
from netdoctor.checks.loss.logit_scale import largest_scale, wanted
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment, first_argument


def scale_logits(case: Case) -> Treatment | None:
    """The logits of the cross-entropy whose factor is the largest, as with the factor that the fix begins with; where the factor
    is learned it is learned from there."""
    found = largest_scale(case.recording)
    if found is None:
        return None
    operation, ratio = found.pair.operation, wanted(found) / found.size
    at = (operation.file, operation.line)

    def smaller(func: Any, args: Any, kwargs: Any) -> Any:
        given = {name: value for name, value in kwargs.items() if name != "input"}
        return func(first_argument(args, kwargs) * ratio, *args[1:], **given)

    def apply(bench: Bench) -> None:
        modules = [child for module in bench.sandbox.modules() for child in module.modules()]
        exchange_operations(bench, [Exchange(m, frozenset({CROSS_ENTROPY}), smaller, at) for m in (None, *modules)])

    return Treatment(apply)


TREATMENTS: dict[str, Maker] = {"scale-logits": scale_logits}
