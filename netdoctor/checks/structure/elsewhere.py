"""Losses of operations that could not be followed, none of whose gradients goes to what the optimizers hold."""

from __future__ import annotations

import re

from netdoctor.checks.structure.gradients import ever_had_gradient, reached_anywhere
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

_PARAMETERS = re.compile(r"[\w.]+\.parameters\(\)")
_IN_DICT = re.compile(r"\['[^']*'\]$")
STEPS = 8  # of an optimizer, none of whose parameters ever had a gradient


def trained_elsewhere(check: str, recording: Recording) -> Finding | None:
    """What is said of optimizers that step in vain, while the loss is made of other tensors; None where they do not."""
    count, held = (int(recording.facts.get(name, 0)) for name in ("leaves_elsewhere", "leaves_held"))
    stepping = [optimizer for optimizer in recording.optimizers if optimizer.steps >= STEPS]
    if not count or held or not stepping or reached_anywhere(recording):
        return None
    kept = [name for optimizer in stepping for name in optimizer.parameters]
    if any(ever_had_gradient(recording, name) for name in kept):
        return None
    named, optimizer = str(recording.facts.get("leaves_named", "")), stepping[0]
    text = optimizer.source.text if optimizer.source is not None else ""
    more = f" ({named}{', ...' if count > len(named.split(', ')) else ''})" if named else ""
    return Finding(
        check,
        f"none of the {len(kept)} parameters in the optimizer ever gets a gradient: the loss is made of other tensors",
        Severity.ERROR,
        f"The gradient goes to {count} tensors that no optimizer holds{more}, such as copies of the parameters that were "
        "made before the optimizer was. What the optimizer holds never changes, and neither do they.",
        Location.at(optimizer.source, step=0),
        (Evidence("tensors behind the loss in an optimizer", held, "=", 0.0), Evidence("in none", count, ">", 0.0)),
        (
            Fix(
                "all-parameters",
                "Give the optimizer the tensors that the loss is made of.",
                _code(named, count, text),
                Reach.RUN,
            ),
        ),
        Certainty.MEASURED,
        first_step=0,
        share=1.0,
    )


def _code(named: str, count: int, text: str) -> str:
    """The optimizer's line with these tensors: the values of the dictionary that they are in, or a list of them."""
    names = named.split(", ") if named else []
    holders = {_IN_DICT.sub("", name) for name in names}
    if len(holders) == 1 and all(map(_IN_DICT.search, names)):
        tensors = f"{holders.pop()}.values()"
    else:
        tensors = f"[{named}]" if len(names) == count else ""
    return _PARAMETERS.sub(lambda _: tensors, text, count=1) if tensors and _PARAMETERS.search(text) else ""
