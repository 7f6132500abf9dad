"""Logits brought to a standard deviation of 1 before their cross-entropy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from netdoctor.checks.loss.comparisons import CROSS_ENTROPY
from netdoctor.checks.loss.logit_scale import largest_scale
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment, first_argument


@dataclass(slots=True)
class _Smaller:
    """A cross-entropy of smaller logits: its first call decides by how much, so that their scale can be learned from there."""

    std: float = 0.0

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        logits = first_argument(args, kwargs)
        self.std = self.std or float(logits.detach().float().std())
        given = {name: value for name, value in kwargs.items() if name != "input"}
        return func(logits / self.std, *args[1:], **given)


def scale_logits(case: Case) -> Treatment | None:
    """The logits of the cross-entropy whose factor is the largest."""
    found = largest_scale(case.recording)
    if found is None:
        return None
    operation = found.pair.operation
    at = (operation.file, operation.line)

    def apply(bench: Bench) -> None:
        modules = [child for module in bench.sandbox.modules() for child in module.modules()]
        change = _Smaller()
        exchange_operations(bench, [Exchange(m, frozenset({CROSS_ENTROPY}), change, at) for m in (None, *modules)])

    return Treatment(apply)


TREATMENTS: dict[str, Maker] = {"scale-logits": scale_logits}
