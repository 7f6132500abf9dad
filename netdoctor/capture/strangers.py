"""What a loss is made of where its operations could not be followed: leaves of autograd's graph that no optimizer holds."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.optim import Optimizer

from netdoctor.capture.products import leaves
from netdoctor.capture.source import holder_name, variable_name

_STEPS = 3  # the first ones tell
_MOST = 4  # names


def note(
    facts: dict[str, float | str | bool], step: int, losses: list[Tensor], optimizers: Iterable[Optimizer]
) -> None:
    """Count the leaves behind these losses that an optimizer holds (`leaves_held`) and those that none does (`leaves_elsewhere`,
    named in `leaves_named`)."""
    held = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if step >= _STEPS or not held:
        return
    found = {id(leaf): leaf for loss in losses for leaf in leaves(loss)}
    elsewhere = [leaf for key, leaf in found.items() if key not in held]
    facts["leaves_held"] = float(facts.get("leaves_held", 0)) + len(found) - len(elsewhere)
    if elsewhere and not facts.get("leaves_elsewhere"):
        names = [name for leaf in elsewhere[:_MOST] if (name := variable_name(leaf) or holder_name(leaf))]
        facts |= {"leaves_elsewhere": len(elsewhere), "leaves_named": ", ".join(names)}
