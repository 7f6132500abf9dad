"""What is said of batches that come sorted, and of a batch that comes again and again."""

from __future__ import annotations

import re

import numpy as np

from netdoctor.checks.data.mixing import Mixing
from netdoctor.checks.data.scale_trial import location
from netdoctor.checks.generalisation.curves import curves, far_worse
from netdoctor.data import TensorFacts
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

CODE = (
    "loader = DataLoader(dataset, batch_size=batch_size, shuffle=True)\n# or, by hand: order = torch.randperm(len(X))"
)
_WHOLE = re.compile(r"\bDataLoader\((?!.*\bsampler\b|.*\bbatch_sampler\b).*\)$")
DRAW = "rng = np.random.default_rng(seed)  # once, before the loop"
LOOP = "for x, y in loader:\n    loss = criterion(model(x), y)  # the loop's own names, not those of an earlier batch"


def classes(recording: Recording, facts: TensorFacts, mixed: Mixing, poor: float, grade: Severity) -> Finding:
    """Batches that hold fewer classes than random ones would; `poor` is the limit as a share of their entropy."""
    says = f"{100 * mixed.majority:.0f} % of a batch are of one class on average: each update teaches that class "
    says += "and unteaches the others."
    title = f"the data is not shuffled: {np.exp(mixed.entropy):.2g} of {mixed.classes} classes in a batch (mean)"
    evidence = Evidence("entropy of the labels in a batch", mixed.entropy, "<", poor * mixed.expected, "nats")
    at = _line(recording, "loader built")
    return _finding(at or location(facts), title, grade, says, evidence, _shuffle(at, recording))


def values(recording: Recording, facts: TensorFacts, spread: float) -> Finding:
    """Batches of a regression that hold a narrow band of the targets; `spread` is the limit as a share of all."""
    within = 0.0 if facts.within is None else float(np.mean(facts.within))
    says = "The samples come in order, so each update fits one part of the targets' range and spoils the others."
    title = f"the data is not shuffled: a batch has {100 * within / facts.std:.0f} % of the targets' spread"
    evidence = Evidence("standard deviation of the target in a batch", within, "<", spread * facts.std)
    at = _line(recording, "loader built")
    return _finding(at or location(facts), title, Severity.WARNING, says, evidence, _shuffle(at, recording))


def unused(recording: Recording, steps: int) -> Finding:
    """One batch in every step, while a loader hands out others; `steps` is how many of those are asked for."""
    facts = recording.inputs[0]
    says = f"The model was given the same {facts.shape[0]} samples in each of the {len(facts.steps)} measured steps, "
    says += "and what the loader gave in them was not used."
    title = "every step trains on the same batch, though the loader gives another one each time"
    evidence = Evidence("different batches that the loader gave", float(recording.facts["unused_inputs"]), "≥", steps)
    fix = Fix("loop-batch", "Give the model the batch that the loop takes from the loader.", LOOP, Reach.RUN)
    return _finding(location(facts), title, Severity.ERROR, says, evidence, fix)


def again(recording: Recording, steps: int) -> Finding | None:
    """The same batch in each of at least `steps` measured steps, though it was taken anew each time; None otherwise."""
    facts = recording.inputs[0] if recording.inputs else None
    same = all(len(set(given.batches)) == 1 and len(given.batches) >= steps for given in recording.inputs)
    batches, anew = (int(recording.facts.get(name, 0)) for name in ("first_of_batches", "inputs_made_anew"))
    worse = any(far_worse(curve, recording) for curve in curves(recording))
    if facts is None or not same or not (batches > 1 or (batches == 0 and anew >= steps - 1 and worse)):
        return None
    says = f"The model was given the same {facts.shape[0]} samples in each of the {len(facts.steps)} measured steps"
    if batches > 1:
        title = f"every step trains on the first batch: the loader of {batches} is begun anew each time"
        says += ": `next(iter(loader))` in the loop begins with the first batch again."
        evidence = Evidence("batches of the loader, of which only the first is taken", batches, ">", 1.0)
        fix = Fix(
            "next-batch", "Go through the loader.", "for epoch in range(epochs):\n    for x, y in loader:", Reach.RUN
        )
    else:
        title = "every step trains on the same batch, though it is put together anew each time"
        says += (
            ". What draws them draws the same ones again: a generator that is seeded in each call, or a fixed index."
        )
        evidence = Evidence("measured steps with the same batch, made anew", anew + 1, "≥", steps)
        says += " The loss on held-out data gets worse meanwhile."
        fix = Fix(
            "draw-anew", "Make the generator once, outside of the function that draws the batch.", DRAW, Reach.RUN
        )
    at = _line(recording, "loader begun") if batches > 1 else None
    return _finding(at or location(facts), title, Severity.ERROR if worse else Severity.WARNING, says, evidence, fix)


def _line(recording: Recording, kind: str) -> Location | None:
    """Where the training's DataLoader is built ("loader built"), or first asked for a batch ("loader begun"), if it has one."""
    made = next((event.source for event in recording.events if event.kind == kind and event.source), None)
    return None if made is None else Location.at(made)


def _shuffle(at: Location | None, recording: Recording) -> Fix:
    """The fix, in the line that builds the loader where that holds the whole call."""
    if any(event.kind == "loader built" and event.detail == "stream" for event in recording.events):
        says = "Mix what the stream reads: take its parts in turn, or draw from a buffer that holds most of the data."
        return Fix("shuffle", says, "", Reach.RUN)
    text = at.text if at is not None and at.text else ""
    code = CODE
    if "shuffle=False" in text:
        code = text.replace("shuffle=False", "shuffle=True")
    elif _WHOLE.search(text) and "shuffle" not in text:
        code = f"{text[:-1]}, shuffle=True)"
    return Fix("shuffle", "Shuffle the training data anew in each epoch.", code, Reach.RUN)


def _finding(at: Location, title: str, grade: Severity, says: str, evidence: Evidence, fix: Fix) -> Finding:
    return Finding("unshuffled-data", title, grade, says, at, (evidence,), (fix,), first_step=0, share=1.0)
