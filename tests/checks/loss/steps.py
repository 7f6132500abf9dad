"""Captured steps of one model and one loss, by hand."""

from __future__ import annotations

from typing import Any

from tests.checks.builders import Builder

BATCH, CLASSES = 32, 10


class Step(Builder):
    """A linear layer "head", what comes after it, and a loss. Values are indices in the graph."""

    def __init__(self, steps: int = 40) -> None:
        super().__init__(steps)
        self.linear("head", units=CLASSES, fan_in=16)
        self.optimizer("SGD")
        self.x = self.value((BATCH, 16), low=-3.0, high=3.0)

    def scores(self, shape: tuple[int, ...] = (BATCH, CLASSES), low: float = -2.0, high: float = 2.5) -> int:
        """The layer's output."""
        weight = self.weight("head.weight", (shape[-1], 16))
        return self.operation("linear", self.x, weight, shape=shape, module="head", out={"low": low, "high": high})

    def then(self, name: str, value: int, low: float = 0.0, high: float = 1.0, **options: Any) -> int:
        """An operation in the loop's own code, with the range of what it makes."""
        options.setdefault("line", 7)
        return self.operation(name, value, out={"low": low, "high": high}, **options)

    def labels(self, shape: tuple[int, ...] = (BATCH,), **fields: Any) -> int:
        """Class indices."""
        return self.value(shape, "int64", **{"low": 0.0, "high": CLASSES - 1.0, "integral": True, **fields})

    def numbers(self, shape: tuple[int, ...], low: float = -1.0, high: float = 1.0, **fields: Any) -> int:
        """A float target."""
        return self.value(shape, "float32", low=low, high=high, **{"mean": 0.0, "std": 0.5, **fields})

    def loss_of(self, name: str, prediction: int, target: int, text: str = "", **options: Any) -> Step:
        """Compare, and call backward on the result."""
        options.setdefault("reduction", "mean")
        self.backward(self.operation(name, prediction, target, shape=(), line=9, text=text, **options))
        return self


def judged(check: Any, step: Builder) -> list[Any]:
    """What the check says."""
    return list(check.judge(step.done()))
