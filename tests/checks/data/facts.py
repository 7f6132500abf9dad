"""Hand-made facts of inputs and targets, and recordings around them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from netdoctor.capture.data import column_facts
from netdoctor.data import TensorFacts
from tests.checks.builders import Builder


def facts(rows: ArrayLike, name: str = "x", **fields: Any) -> TensorFacts:
    """The facts of these rows (rows, columns), as if every sampled step had shown them."""
    values = np.asarray(rows, dtype=np.float64)
    shape = fields.pop("shape", values.shape)
    defaults: dict[str, Any] = {"dtype": "float32", "batches": tuple(range(8)), "file": "train.py", "line": 9}
    steps = np.arange(len(fields.get("batches", defaults["batches"])))
    integral = bool((values == np.round(values)).all())
    given = defaults | fields
    dtype = given.pop("dtype")
    spread = float(values.mean()), float(values.std())
    return TensorFacts(name, shape, dtype, steps, len(values), *spread, integral, column_facts(values), **given)


def rows(mean: float = 0.0, std: float = 1.0, columns: int = 4, count: int = 400) -> np.ndarray:
    """Rows of exactly this mean and standard deviation over all."""
    values = np.random.default_rng(0).standard_normal((count, columns))
    return (values - values.mean()) / values.std() * std + mean


def reading(given: TensorFacts, before: str = "", after: str = "", **loss: Any) -> Builder:
    """A recording whose model gives an input to `before` (if any), a linear layer, `after`, then to a cross-entropy."""
    build = Builder(steps=60)
    low, high = float(given.columns.low.min()), float(given.columns.high.max())
    x = build.value(given.shape, given.dtype, low=low, high=high, mean=given.mean, std=given.std)
    entering = x
    if before == "div":
        out = {"low": low / 255, "high": high / 255, "mean": given.mean / 255, "std": given.std / 255}
        entering = build.operation("div", x, module="net", out=out)
    elif before:
        entering = build.operation(before, x, build.weight("norm.weight", (4,)), module="norm")
    hidden = build.operation("linear", entering, build.weight("0.weight"), module="0", shape=(32, 10))
    if after:
        hidden = build.operation(after, hidden, module="1")
    target = build.value((32,), "int64")
    build.backward(build.operation("cross_entropy", hidden, target, shape=(), reduction="mean"))
    build.facts(loss_family="cross_entropy", classes=10.0, loss_lower_bound=0.0)
    build.recording.inputs = [given if given.value is not None else _at(given, x)]
    build.loss(loss.get("loss", stuck))
    return build


def _at(given: TensorFacts, value: int) -> TensorFacts:
    return replace(given, value=value)


def stuck(step: int) -> float:
    """A loss at ln 10, with some noise."""
    return float(np.log(10) + 0.01 * np.sin(7.0 * step))


def learned(step: int) -> float:
    """A loss that falls from ln 10 to a tenth of it."""
    return float(np.log(10) * (0.1 + 0.9 * 0.9**step))
