"""How many directions do a layer's activations really use, on the captured batches and with the weights as trained?"""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netdoctor.capture.step import Copies, Replay, TrainingStep, refuse_overwritten
from netdoctor.errors import why_it_failed
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.recording import Arm, Recording

NAME = "redundancy/rank"
WIDE = 64  # units: less is not worth saving
TIMES = 4  # rows per unit: fewer bound the rank by themselves
MOST_ROWS, MOST_UNITS = 8192, 1024


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "redundancy/rank": curves by the path of each wide dense layer, [effective rank, units, rank within reach].

    The effective rank of centred activations is exp(entropy of the normalised singular values): Roy and Vetterli, The
    Effective Rank, 2007. A layer gives no more directions than come in: within reach is the effective rank of its inputs, at
    most its units. Layers of fewer than 64 units, and those met by fewer than 4 rows per unit, are left out.
    """
    began = time.perf_counter()
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {}
    try:
        with quiet():
            copies = Copies(step.modules, step.leaves)
            handles = _attach(step, copies, rows)
            if not handles:
                return {}
            for iteration in step.iterations:
                if budget.left > 0:
                    _run(copies, iteration.backwards[0])
            for handle in handles:
                handle.remove()
            found = {path: _ranks(parts) for path, parts in rows.items()}
    except Exception as error:
        return {NAME: Arm(NAME, np.empty(0), failure=why_it_failed(error))}
    curves = {path: np.asarray(pair) for path, pair in found.items() if pair is not None}
    return {
        NAME: Arm(NAME, np.empty(0), time.perf_counter() - began, {"says": f"{len(curves)} wide layers"}, {}, curves)
    }


def _attach(step: TrainingStep, copies: Copies, rows: dict[str, list[tuple[Tensor, Tensor]]]) -> list[Any]:
    handles: list[Any] = []
    for top in step.modules:
        for path, module in top.named_modules():
            copied = copies.of(module)
            if isinstance(copied, nn.Linear) and WIDE <= copied.out_features <= MOST_UNITS and path:
                handles.append(copied.register_forward_hook(partial(_keep, rows.setdefault(path, []))))
    return handles


def _keep(kept: list[tuple[Tensor, Tensor]], _: nn.Module, given: Any, output: Tensor) -> None:
    if given and sum(len(out) for _, out in kept) < MOST_ROWS:
        wide = given[0].detach().reshape(-1, given[0].shape[-1])
        stride = max(1, math.ceil(wide.shape[1] / MOST_UNITS))  # of very wide inputs every few columns
        kept.append((wide[:, ::stride].double(), output.detach().reshape(-1, output.shape[-1]).double()))


def _run(copies: Copies, backward: Any) -> None:
    refuse_overwritten(backward)
    with torch.no_grad():
        entries = [replace(e, context=e.context and replace(e.context, grad=False)) for e in backward.entries]
        Replay(copies).loss(replace(backward, entries=entries))


def _ranks(kept: list[tuple[Tensor, Tensor]]) -> tuple[float, float, float] | None:
    if not kept:
        return None
    given, rows = (torch.cat(parts)[:MOST_ROWS] for parts in zip(*kept, strict=True))
    units = rows.shape[1]
    if len(rows) < TIMES * units or not bool(rows.isfinite().all()):
        return None
    rank, reach = _rank(rows), _rank(given)
    return None if rank is None or reach is None else (rank, float(units), min(float(units), reach))


def _rank(rows: Tensor) -> float | None:
    values = torch.linalg.svdvals(rows - rows.mean(0))
    total = float(values.sum())
    return float(torch.special.entr(values / total).sum().exp()) if total > 0 else None
