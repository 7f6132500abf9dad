"""Treatments of inputs that a model does not read: a small reader of them, added to what the model gives."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from netdoctor.capture.step import Iteration
from netdoctor.capture.tape import Backward, Slot
from netdoctor.capture.tree import tensors
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment
from netdoctor.experiments.usage import PREFIX, constants, exchanged, first_call, loss_of, with_input

PER_NUMBER = 4  # distinct samples to each number that a reader learns per output: so few cannot be learned by heart
RATE = 0.03  # of Adam, for standardised features: a reader is to be done in the steps of a trial
STAYS = 50.0  # % of the loss: what is read for half of the loss is not ignored
LISTED = 3  # inputs that a note names


class Reader(nn.Module):
    """A linear function of standardised numbers, or of one-hot tokens at their positions: (batch, ...) → (batch, outputs).

    Whole numbers of too many kinds are taken as numbers. Raises LookupError where there are too few samples even so.
    """

    def __init__(self, seen: Tensor, outputs: int) -> None:
        super().__init__()
        rows = seen.reshape(seen.shape[0], -1)
        most, values = len(torch.unique(rows, dim=0)) // PER_NUMBER, rows.double()
        self.start, self.kinds = int(values.min()), int(values.max() - values.min()) + 1
        self.tokens = not seen.is_floating_point() and rows.shape[1] * self.kinds <= most
        self.mean, self.scale = values.mean(0), values.std(0).clamp_min(1e-12)
        features = rows.shape[1] * (self.kinds if self.tokens else 1)
        if features > most:
            raise LookupError("too few samples for so many features")
        self.weight = nn.Parameter(torch.zeros(features, outputs, device=seen.device))
        self._optimizer = torch.optim.Adam([self.weight], lr=RATE)
        self.weight.register_post_accumulate_grad_hook(self._learn)

    def _learn(self, _: Tensor) -> None:
        self._optimizer.step()
        self._optimizer.zero_grad()

    def forward(self, given: Tensor) -> Tensor:
        """What is added to the outputs of these samples."""
        rows = given.reshape(given.shape[0], -1)
        if self.tokens:
            places = torch.arange(rows.shape[1], device=rows.device) * self.kinds
            return self.weight[(rows.long() - self.start).clamp(0, self.kinds - 1) + places].sum(1)
        return ((rows.double() - self.mean) / self.scale).to(self.weight.dtype) @ self.weight


def read_ignored(case: Case) -> Treatment | None:
    """A reader of the finding's input. The loss with it, of that with the input of other samples, tells whether it is read."""
    arms = [(name, arm) for name, arm in case.recording.arms.items() if name.startswith(PREFIX)]
    number = next((n for n, (_, arm) in enumerate(arms) if _named(n, arm.facts) in case.finding.places), None)
    if number is None or not arms[number][1].facts.get("whole"):
        return None
    chosen = number

    def stays(bench: Bench) -> float:
        pairs = [_with_and_without(bench, iteration.backwards[0], chosen) for iteration in bench.iterations]
        given, others = (sum(values) for values in zip(*pairs, strict=True))
        return 100 * given / others if given >= 0 and others > 0 else math.nan

    quantity = f"loss with the true {case.finding.places[0]}, of that with those of other samples"
    return Treatment(_reading(case, [chosen]), measure=Measure(quantity, stays, STAYS, "%"))


def _named(number: int, facts: Any) -> str:
    return str(facts.get("argument", "")) or f"input {number + 1}"


def _with_and_without(bench: Bench, backward: Backward, number: int) -> tuple[float, float]:
    constant, copies = constants(backward)[number], bench.sandbox.copies
    return loss_of(copies, backward), loss_of(copies, with_input(backward, constant, exchanged(constant.tensor)))


def read_all(case: Case) -> Treatment | None:
    """A reader of each input of a model that depends on none of them; the loss tells."""
    count = len(constants(case.step.iterations[0].backwards[0]))
    return Treatment(_reading(case, list(range(count)))) if count else None


def _reading(case: Case, numbers: list[int]) -> Any:
    def apply(bench: Bench) -> None:
        entry = first_call(bench.iterations[0].backwards[0])
        module = None if entry is None or entry.module is None else bench.copy_of(entry.module)
        if entry is None or module is None or any(isinstance(item, Slot) for item in entry.meanings()):
            raise LookupError("what the model is given is made on the way")
        readers: dict[int, Reader] = {}

        def add(_: nn.Module, args: Any, kwargs: Any, made: Any) -> Any:
            if not isinstance(made, Tensor) or not 0 < made.dim() <= 2 or not made.is_floating_point():
                raise LookupError("there is no single output to add to")
            given = [t for t in tensors((args, kwargs)) if t.dim() > 0 and t.numel()]
            for number in numbers:
                if number not in readers:
                    readers[number] = Reader(_seen(bench.iterations, number), made.shape[1] if made.dim() > 1 else 1)
                made = made + readers[number](given[number]).reshape(made.shape).to(made.dtype)
            return made

        module.register_forward_hook(add, with_kwargs=True)
        bench.notes.append("a linear reader of it, added to the model's output")

    return apply


def _seen(iterations: list[Iteration], number: int) -> Tensor:
    return torch.cat([constants(iteration.backwards[0])[number].tensor.detach() for iteration in iterations])


TREATMENTS: dict[str, Maker] = {"use-input": read_ignored, "use-the-input": read_all}
