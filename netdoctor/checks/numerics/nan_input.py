"""The check `nan-input`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from netdoctor.check import Check
from netdoctor.checks.numerics.birth import birth
from netdoctor.checks.numerics.wording import CONSEQUENCES, joined, location, samples_of, severity
from netdoctor.finding import Evidence, Finding, Fix
from netdoctor.recording import Origin, Recording, Stat


@dataclass(frozen=True)
class NanInput(Check):
    """The batch holds NaN or Inf before any layer ran.

    What it is: an input of the model, or the target of the loss, is non-finite as it comes from the data.

    Why it hurts: one such value makes the loss NaN, and the optimizer writes NaN into the weights.

    How it is decided: the first step whose loss or gradient is non-finite is replayed; the first non-finite value was
    already there in a tensor that the captured step did not make. Samples and columns are those that hold it.

    When it stays silent: infinities that do no harm, as masks of -inf that a softmax consumes: the loss stays finite.

    Fix: fill in or leave out the samples, in the data set rather than in the loop.

    Sources: peers.md c4 (data as a class of its own); UMLAUT's rule on NaN inputs; advice A30, E7.
    """

    name: ClassVar[str] = "nan-input"
    breaks: ClassVar[bool] = True
    needs: ClassVar[frozenset[Stat]] = frozenset({Stat.NONFINITE})
    explains: ClassVar[frozenset[str]] = CONSEQUENCES | {
        "non-finite-activation",
        "non-finite-gradient",
        "non-finite-parameter",
        "train-eval-shift",
        "recurrent-gradients",
    }

    def judge(self, recording: Recording) -> Iterator[Finding]:
        """One finding when the first non-finite value came with the batch."""
        origin = birth(recording)
        if origin is None or origin.phase != "input":
            return
        name = origin.inputs[0].name if origin.inputs else ""
        what = name if " " in name else f"the batch's {name}" if name else "the batch"
        plural = "s" if len(origin.columns) > 1 else ""
        columns = f" in column{plural} {_listed(origin.columns)}" if origin.columns else ""
        yield Finding(
            self.name,
            f"{what} holds {origin.kind}{columns} at step {origin.step}, before any layer ran",
            severity(recording, origin),
            joined(
                f"{what[0].upper()}{what[1:]} is non-finite as it comes from the data; every layer passes it on.",
                f"Affected columns: {_listed(origin.columns)}." if origin.columns else "",
                samples_of(origin),
            ),
            location(origin),
            (Evidence(f"non-finite values in {what}", _count(origin), ">", 0.0),),
            (
                Fix(
                    "clean-input",
                    "Leave the samples out, or fill in the missing values, where the data is loaded.",
                    _code(origin, name),
                ),
            ),
            first_step=origin.step,
        )


def _count(origin: Origin) -> float:
    known = sum(item.nans + item.infs for item in origin.inputs)
    return float(known or max(len(origin.samples), 1))


def _listed(columns: tuple[int, ...]) -> str:
    return ", ".join(map(str, columns[:16])) + (", …" if len(columns) > 16 else "")


def _code(origin: Origin, name: str) -> str:
    x = name if name.isidentifier() else "x"
    flat = bool(origin.inputs) and len(origin.inputs[0].shape) == 1
    return (
        f"finite = torch.isfinite({x}){'' if flat else '.flatten(1).all(dim=1)'}\n"
        f"print((~finite).nonzero().flatten())  # the samples to look at\n"
        f"{x} = {x}[finite]  # and the same rows of everything that goes with it\n"
        f"# or fill in: {x} = torch.where(torch.isfinite({x}), {x}, {x}[finite].mean(dim=0))"
    )
