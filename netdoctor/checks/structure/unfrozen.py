"""Parameters that were set to train after their optimizer was built from those that trained by then."""

from __future__ import annotations

import re

from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Optimizer, Recording

KIND = "unfrozen"  # of the events: the first step with a gradient, and the parameter's name
_MODEL, _NAME = re.compile(r"([A-Za-z_][\w.]*)\.(?:named_)?parameters\(\)"), re.compile(r"([\w.]+)\s*=(?!=)")


def unfrozen(check: str, recording: Recording) -> Finding | None:
    """The finding that parameters got gradients after they were unfrozen, and no step moved them; None where there are none."""
    events = [event for event in recording.events if event.kind == KIND]
    if not events:
        return None
    step, names = min(event.step for event in events), tuple(dict.fromkeys(event.detail for event in events))
    stepping = [o for o in recording.optimizers if o.span and o.span[0] <= step <= o.span[1]]
    if not stepping:
        return None
    optimizer, where = stepping[-1], modules(recording, names) or list(names)
    variable = str(recording.facts.get("model_variable", "model"))
    count = len(names) + len(optimizer.parameters)
    return Finding(
        check,
        f"{len(names)} of {count} parameters were unfrozen and are in no optimizer: {listed(where)}",
        Severity.ERROR,
        f"They were frozen when {optimizer.type} got its parameters and began to step. By step {step} they require a gradient "
        "and get one, but no optimizer holds them, so that their weights stay as they were.",
        Location.at(optimizer.source, where[0], step=step),
        (Evidence("unfrozen parameters in no optimizer", len(names), ">", 0.0),),
        (
            Fix(
                "hold-unfrozen",
                "Give them to the optimizer when they are unfrozen.",
                _code(optimizer, variable),
                Reach.RUN,
            ),
        ),
        Certainty.MEASURED,
        first_step=0,  # the optimizer lacks them from the beginning, and what was tried from there on shows it
        places=names,
        share=len(names) / count,
    )


def _code(optimizer: Optimizer, variable: str) -> str:
    """Lines that add what the optimizer does not hold yet, with the user's names where its own line tells them."""
    text = optimizer.source.text if optimizer.source is not None else ""
    name, model = _NAME.match(text), _MODEL.search(text) if "requires_grad" in text else None
    held, of = (name[1] if name else "optimizer"), (model[1] if model else variable)
    return (
        f"held = {{id(p) for group in {held}.param_groups for p in group['params']}}\n"
        f"{held}.add_param_group({{'params': [p for p in {of}.parameters() if id(p) not in held]}})"
    )
