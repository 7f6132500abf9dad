"""Treatments of what a model must not see: judged by whether it still sees it, not by the loss, which may rise by right."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from netdoctor.capture.functions import function_name
from netdoctor.experiments.leakage import SAMPLES, positions_of, samples_of
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment, first_argument

_SCALED = "scaled_dot_product_attention"


def batch_dimension(case: Case) -> Treatment | None:
    """`batch_first` the other way round in the finding's layer, and in all of its kind: an encoder stacks copies of one."""
    original = case.places.module(case.finding.location.module or "")
    if original is None or not isinstance(getattr(original, "batch_first", None), bool):
        return None

    def apply(bench: Bench) -> None:
        wrong = original.batch_first
        alike: Any = [child for child in _all(bench) if type(child) is type(original) and child.batch_first == wrong]
        for module in alike:
            module.batch_first = not wrong

    arm = case.recording.arms.get(SAMPLES)
    if arm is not None and arm.facts.get("inside"):  # the output shows nothing of it, before and after; the loss does
        return Treatment(apply)
    return Treatment(apply, holds=lambda bench: not samples_of(case.recording, bench.sandbox.copies, case.step))


def causal_mask(case: Case) -> Treatment | None:
    """What comes later masked out of every softmax over positions, and of every fused attention."""
    if case.finding.check != "causal-leak":
        return None

    def apply(bench: Bench) -> None:
        names = frozenset({"softmax", _SCALED})
        exchange_operations(bench, [Exchange(module, names, _masked) for module in _all(bench)])

    return Treatment(apply, holds=lambda bench: not positions_of(bench.sandbox.copies, case.step))


def _all(bench: Bench) -> Iterator[nn.Module]:
    return (child for module in bench.sandbox.modules() for child in module.modules())


def _masked(func: Any, args: Any, kwargs: Any) -> Any:
    if function_name(func) == _SCALED:
        named = {k: v for k, v in kwargs.items() if k not in ("attn_mask", "is_causal")}
        return func(*args[:3], **named, is_causal=True)
    scores = first_argument(args, kwargs)
    if scores.dim() < 3 or scores.shape[-1] != scores.shape[-2]:
        return func(*args, **kwargs)
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
    hidden = scores.masked_fill(later, -torch.inf)
    return func(hidden, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})


TREATMENTS: dict[str, Maker] = {"batch-dimension": batch_dimension, "causal-mask": causal_mask}
