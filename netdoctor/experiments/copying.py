"""Is a model that goes along a sequence given, at each position, the very token that it must predict there?"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.source import source_line
from netdoctor.capture.step import Copies, Iteration, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant
from netdoctor.checks.structure.causal_leak import CausalLeak
from netdoctor.checks.structure.copied_target import COPIES
from netdoctor.errors import why_it_failed
from netdoctor.experiments.passes import ROUNDING, differ
from netdoctor.experiments.replacing import other_future
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.tokens import LONG, Given, class_terms, constants_of, rewritten, targets_of, tokens_of
from netdoctor.recording import Arm, Recording

BATCHES = 3  # captured ones in all of which the tokens must be the targets
SHARE = 0.3  # of the positions get another token: the others still look like a text
Facts = dict[str, float | str | bool]


@dataclass(frozen=True, slots=True)
class Match:
    """Given tokens that are the targets. `lay` brings what has the targets' layout into that of the tokens."""

    given: Given
    lay: Callable[[Tensor], Tensor]


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "leakage/copies"; none unless whole-number inputs are the targets of a cross-entropy, position by position.

    Asked of the trained model in evaluation mode. Facts: `causal` (later tokens change no earlier prediction, and earlier ones
    do change later ones), `right` (share of positions that are predicted right), `follows` (of the positions that were given
    another token: it is predicted there), `others` (inputs beside it), `alone` (`right` with all of these taken from other
    samples), `shifted` (one of them is the target shifted by one), and the call: `keyword` or `place` (of `arguments`), `looped`
    (once per position), `file`, `line`, `text`.
    """
    if recording.origin is not None or step.lost or not step.iterations:
        return {}
    began = time.perf_counter()
    try:
        with quiet():
            found = matches(step)
            facts = [_asked(step, match) for match in found if budget.left > 0]
    except Exception as error:  # what fails on the copy is an answer, not a fault
        return {COPIES: Arm(COPIES, np.empty(0), failure=why_it_failed(error))}
    worst = max(facts, key=lambda one: (bool(one["causal"]), float(one["follows"])), default=None)
    return {} if worst is None else {COPIES: Arm(COPIES, np.empty(0), time.perf_counter() - began, worst)}


# --- which input is the target ---------------------------------------------------------------------------------------


def matches(step: TrainingStep) -> list[Match]:
    """The given tokens of the first batch that are the targets, in all of the first batches."""
    iterations = step.iterations[:BATCHES]
    if not all(any(True for _ in tokens_of(iteration.backwards[0])) for iteration in iterations):
        return []
    copies = Copies(step.modules, step.leaves)
    per_batch = [list(_matching(copies, iteration)) for iteration in iterations]
    common = set.intersection(*({match.given.key for match in matches} for matches in per_batch))
    return [match for match in per_batch[0] if match.given.key in common]


def _matching(copies: Copies, iteration: Iteration) -> Iterator[Match]:
    backward = iteration.backwards[0]
    refuse_overwritten(backward)
    target, counted = targets_of(class_terms(copies, backward))
    if target is None or int(counted.sum()) < LONG or len(target[counted].unique()) < LONG:
        return
    for given in tokens_of(backward):
        for lay in _layouts(given.value, target):
            there = lay(counted)
            if bool((given.value == lay(target))[there].all()):
                yield Match(given, lay)
                break


def _layouts(given: Tensor, target: Tensor) -> Iterator[Callable[[Tensor], Tensor]]:
    """The ways in which targets may lie beside tokens: in the same order, or samples and positions exchanged."""
    shape = given.shape
    if given.dim() != 2 or min(shape) < 2 or max(shape) < LONG or given.numel() != target.numel():
        return
    yield lambda one: one.reshape(shape)
    yield lambda one: one.reshape(shape[::-1]).t()


# --- what the trained model makes of it ------------------------------------------------------------------------------


def _asked(step: TrainingStep, match: Match) -> Facts:
    backward = step.iterations[0].backwards[0]
    copies, tokens = Copies(step.modules, step.leaves), match.given.value
    target, counts = targets_of(class_terms(copies, backward))
    assert target is not None
    counted = match.lay(counts)
    as_it_is = _scores(copies, backward, match)
    other, changed = _others(tokens, counted)
    guess = _scores(copies, match.given.replaced(backward, other), match).argmax(-1)
    facts: Facts = {"right": _share(as_it_is.argmax(-1) == tokens, counted), "follows": _share(guess == other, changed)}
    facts["causal"] = any(_causal(copies, backward, match, as_it_is, axis) for axis in (1, 0))
    beside = [given for given in _beside(backward, match.given) if _varies(given)]
    facts["others"] = float(len(beside))
    facts["shifted"] = any(_is_shifted(given, tokens, axis) for given in (c.tensor for c in beside) for axis in (0, 1))
    if beside:
        strange = rewritten(backward, lambda item: _rolled(item) if any(item is one for one in beside) else item)
        facts["alone"] = _share(_scores(copies, strange, match).argmax(-1) == tokens, counted)
    says = f"of the positions that were given another token, {100 * float(facts['follows']):.0f} % predict that one"
    copies_it = facts["causal"] and not facts["shifted"] and float(facts["follows"]) >= CausalLeak.follows
    facts["verdict"] = "failed" if copies_it else "passed"
    return {**facts, **_call(match.given), "says": says}


def _scores(copies: Copies, backward: Backward, match: Match) -> Tensor:
    """What the model says of each class, laid out as the tokens are: (..., classes)."""
    terms = class_terms(copies, backward)
    parts = [term.prediction.detach().movedim(1, -1) for term in terms if term.prediction is not None]
    whole = parts[0] if len(parts) == 1 else torch.stack(parts, 1)
    flat = whole.reshape(-1, whole.shape[-1])
    order = match.lay(torch.arange(len(flat), device=flat.device))
    return flat[order]


def _share(right: Tensor, which: Tensor) -> float:
    return float(right[which].float().mean()) if bool(which.any()) else 0.0


def _others(tokens: Tensor, counted: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens of which some that count are others of the batch, where that is so). Draws the same each time."""
    generator = torch.Generator().manual_seed(7)
    flat = tokens.reshape(-1)
    drawn = flat[torch.randperm(flat.numel(), generator=generator).to(flat.device)].reshape(tokens.shape)
    chosen = (torch.rand(tokens.shape, generator=generator) < SHARE).to(tokens.device)
    known = torch.isin(drawn, tokens[counted])  # what fills up short sequences is no token to be predicted
    changed = chosen & counted & known & (drawn != tokens)
    return torch.where(changed, drawn, tokens), changed


def time_axis(copies: Copies, backward: Backward, match: Match) -> int | None:
    """The dimension of the tokens along which each prediction depends on earlier ones and on no later ones; None without."""
    before = _scores(copies, backward, match)
    return next((axis for axis in (1, 0) if _causal(copies, backward, match, before, axis)), None)


def _causal(copies: Copies, backward: Backward, match: Match, before: Tensor, axis: int) -> bool:
    """Whether along this axis later tokens change no earlier prediction, and earlier tokens change later ones."""
    tokens = match.given.value
    length = tokens.shape[axis]
    if length < LONG:
        return False
    for last in sorted({0, length // 2 - 1, length - 2}):
        new = other_future(tokens, last, axis)
        after = _scores(copies, match.given.replaced(backward, new), match)
        early = [scores.narrow(axis, 0, last + 1) for scores in (before, after)]
        if not bool((new != tokens).any()) or differ(*early) > ROUNDING:
            return False
    past = tokens.flip(axis)
    past = other_future(past, 0, axis).flip(axis)  # all but the last position
    after = _scores(copies, match.given.replaced(backward, past), match)
    return differ(*(scores.narrow(axis, length - 1, 1) for scores in (before, after))) > ROUNDING


# --- what else it is given -------------------------------------------------------------------------------------------


def _beside(backward: Backward, given: Given) -> list[Constant]:
    """All other data that models and embeddings are given."""
    calls = [e for e in backward.entries if e.module is not None or e.name == "embedding"]
    own = {id(constant) for constant in given.constants}
    return [c for entry in calls for c in constants_of(entry) if id(c) not in own]


def _varies(constant: Constant) -> bool:
    tensor = constant.tensor
    if tensor.dim() == 0 or tensor.shape[0] < 2 or tensor.dtype == torch.bool:
        return False
    return bool((tensor != tensor[:1]).any())


def _is_shifted(given: Tensor, tokens: Tensor, axis: int) -> bool:
    """Whether this input is the target one position later, as a decoder is taught that goes on from its own past."""
    if given.is_floating_point() or given.dim() != 2 or given.shape != tokens.shape:
        return False
    length = tokens.shape[axis]
    same = given.narrow(axis, 1, length - 1) == tokens.narrow(axis, 0, length - 1)
    return length >= LONG and bool(same.float().mean() > 0.9)  # sequences that are filled up may differ at their ends


def _rolled(constant: Constant) -> Constant:
    new = constant.tensor.detach().roll(max(1, constant.tensor.shape[0] // 2), 0)
    return Constant(new, new._version)


def _call(given: Given) -> Facts:
    """Where the tokens are given, and as which argument."""
    entry, constant = given.entry, given.constants[0]
    names = [key for key, value in entry.kwargs.items() if value is constant]
    places = [place for place, value in enumerate(entry.args) if value is constant]
    source = source_line(*entry.position)
    facts: Facts = {"keyword": names[0] if names else "", "place": float(places[0]) if places else -1.0}
    facts["looped"], facts["arguments"] = len(given.constants) > 1, float(len(entry.args))
    if source is not None:
        facts |= {"file": source.file, "line": float(source.line), "text": source.text}
    return facts
