"""Captured steps of small models, by hand: a body, a head, a loss, an optimizer."""

from __future__ import annotations

from typing import Any

from netdoctor.recording import Role, Stat
from tests.checks.builders import Builder

BATCH = 32


class Model(Builder):
    """Linear layers in a chain; `chain` runs some of them and ends in a loss."""

    def layers(self, *names: str, optimizer: int | None = 0, **fields: Any) -> Model:
        """Parameters of linear layers, held by this optimizer."""
        for name in names:
            self.linear(name, optimizer=optimizer, **fields)
        return self

    def stepping(self, **options: Any) -> Model:
        """An optimizer over the parameters that were said to be held by number 0, and their gradients."""
        held = [n for n, p in self.recording.parameters.items() if p.optimizer == 0]
        self.optimizer("SGD", parameters=held or ["parameter0"], **options)
        return self

    def with_gradient(self, *names: str) -> Model:
        """Gradients that were seen when the optimizer stepped."""
        for name in names:
            self.of_parameter(name, Stat.RMS, 1e-3, Role.WEIGHT_GRADIENT)
        return self

    def run(self, value: int, name: str, shape: tuple[int, ...] = (BATCH, 16), **options: Any) -> int:
        """One linear layer."""
        weight = self.weight(f"{name}.weight") if "weight" not in options else options.pop("weight")
        options.setdefault("module_type", "Linear")
        return self.operation("linear", value, weight, shape=shape, module=name, **options)

    def compare(self, value: int) -> Model:
        """A cross-entropy at the end."""
        labels = self.value((BATCH,), "int64", low=0.0, high=9.0, integral=True)
        self.backward(self.operation("cross_entropy", value, labels, shape=(), reduction="mean", line=20))
        return self


def judged(check: Any, build: Builder) -> list[Any]:
    """What the check says."""
    return list(check.judge(build.done()))
