"""One row of the table of safe forms, and the phrases that several rows share."""

from __future__ import annotations

from dataclasses import dataclass

from netdoctor.checks.numerics.operations import Condition
from netdoctor.checks.numerics.rewriting import Edit
from netdoctor.recording import Origin


@dataclass(frozen=True, slots=True)
class Form:
    """The operations and the condition it is for, why they made NaN or Inf, what helps, and how to write it.

    `why`, `says`, `code` and the edit are templates over `safe_forms.words`. No operations means any. A row with
    `ordinary` is for operations that are safe on sane values: when they overflow, the values had exploded before.
    """

    operations: frozenset[str]
    when: Condition
    why: str
    says: str
    code: str
    edit: Edit | None = None
    ordinary: bool = False


def row(
    names: str, when: Condition, why: str, says: str, code: str, edit: Edit | None = None, ordinary: bool = False
) -> Form:
    """A form for the operations named in one string."""
    return Form(frozenset(names.split()), when, why, says, code, edit, ordinary)


def always(_: Origin) -> bool:
    """Fits every origin of the row's operations."""
    return True


MASK_LATER = " A torch.where or a mask after it does not help: there the gradient is 0 times infinity, which is NaN."
CLAMP = Edit(0, "{x}.clamp_min({eps})")
CLAMP_TOP = Edit(0, "{x}.clamp(max={top})")
FINITE_MASK = Edit(0, "{x}.clamp_min(torch.finfo(torch.{dtype}).min)")
EVEN = "scores = scores.masked_fill(mask, torch.finfo(scores.dtype).min)  # in place of -inf"
