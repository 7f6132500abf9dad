"""Do the labels of pairs mean what the loss takes them for? One copy learns with them as they are, one with them turned."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Iteration, Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward
from netdoctor.checks.loss.pair_labels import (
    AS_THEY_ARE,
    DIFFERENCE,
    LABEL,
    SIGN,
    TRIPLET,
    TURNED,
    PairSite,
    pair_sites,
)
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.adam import Adam
from netdoctor.experiments.held_out import FEWEST, RATES, evaluating
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments.operations import exchange_on_line
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.recording import Arm, Recording

STEPS, EVERY = 240, 30  # training steps, and how often the held-out batches are asked
SHUFFLES = 4  # of the labels of each held-out batch
ENOUGH = 0.4  # of the loss saved by the labels as they are: they mean what they say, and nothing else is asked
PAIRS = 64  # held out, at least: with fewer what labels save is known to no better than a quarter


def look(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "pair labels/as they are", where the loss compares pairs or triplets of embeddings, and "pair labels/turned",
    where the first one learned little.

    Both train with Adam from the weights of the start on two thirds of the captured batches. Losses are those of the others,
    in evaluation mode, every `EVERY` steps. Facts: "loss" (the lowest held-out loss), "saved" (by which part the held-out loss
    is under that with the labels of each batch shuffled: at the lowest loss, the highest of all for the labels as they are),
    "at first" (the same before training), "pairs" (held out), "lr", "kind", "operation", "module", "file", "line", "text",
    "low", "high" (of the first place where labels enter).
    """
    sites = [] if recording.graph is None else pair_sites(recording.graph)
    if not sites or len(step.iterations) < FEWEST or step.lost:
        return {}
    about = _facts(sites)
    own = _arm(AS_THEY_ARE, step, sites, about, budget.share(budget.left / 2))
    if own.failure or float(own.facts["saved"]) >= ENOUGH:
        return {AS_THEY_ARE: own}
    return {AS_THEY_ARE: own, TURNED: _arm(TURNED, step, sites, about, budget, own.steps)}


def _facts(sites: list[PairSite]) -> dict[str, float | str | bool]:
    first = sites[0]
    made = first.operation
    known = {"kind": first.kind, "operation": made.name, "module": made.module, "file": made.file, "text": made.text}
    return {**known, "line": float(made.line), "low": first.low, "high": first.high}


def _arm(
    name: str,
    step: TrainingStep,
    sites: list[PairSite],
    about: dict[str, float | str | bool],
    budget: Budget,
    most: int = STEPS,
) -> Arm:
    """The better of the learning rates: of the labels as they are that which they save most by, else the lowest loss.

    `most` are the steps of each: the turned labels have no more of them than the others had.
    """
    runs: list[Arm] = []
    for number, rate in enumerate(RATES):
        try:
            with quiet(), ExitStack() as stack:
                share = budget.share(budget.left / (len(RATES) - number))
                runs.append(_Course(name, step, sites, rate, stack, share).run(about, most))
        except Exception as error:  # the user's code failed on the copy: an answer, not a fault
            runs.append(Arm(name, np.empty(0), failure=why_it_failed(error)))
        if name == AS_THEY_ARE and float(runs[-1].facts.get("saved", 0.0)) >= ENOUGH:
            break
    done = [arm for arm in runs if not arm.failure]
    if not done:
        return runs[0]
    if name == TURNED:
        return min(done, key=lambda arm: float(arm.facts["loss"]))
    best = max(done, key=lambda arm: float(arm.facts["saved"]))
    return replace(best, facts={**best.facts, "loss": min(float(arm.facts["loss"]) for arm in done)})


def _places(sites: list[PairSite]) -> Iterable[PairSite]:
    """Each operation of a line with each pair of values once: what is turned twice is as it was."""
    places = {(s.operation.name, s.operation.file, s.operation.line, s.kind, s.low, s.high): s for s in sites}
    return places.values()


class _Course:
    """A copy that learns, and is asked now and then what the labels save it of the loss of batches that it did not see."""

    def __init__(
        self, name: str, step: TrainingStep, sites: list[PairSite], rate: float, stack: ExitStack, budget: Budget
    ) -> None:
        self.name, self.rate, self.budget = name, rate, budget
        self.sandbox = Sandbox(step, optimizer=lambda ps: Adam(ps, lr=rate))
        self.labels = _Labels(name == TURNED)
        bench = Bench(self.sandbox, step.iterations, stack)
        for site in _places(sites):
            line = site.operation.file, site.operation.line
            exchange_on_line(bench, frozenset({site.operation.name}), self.labels.change(site), line)
        cut = len(bench.iterations) - len(bench.iterations) // 3
        self.train: list[Iteration] = bench.iterations[:cut]
        self.held: list[Backward] = [evaluating(iteration.backwards[0]) for iteration in bench.iterations[cut:]]
        for backward in self.held:
            refuse_overwritten(backward)

    def run(self, about: dict[str, float | str | bool], most: int) -> Arm:
        losses: list[float] = []
        saved: list[float] = []
        for number in range(most + 1):
            if self.budget.left <= 0:
                break
            if number % EVERY == 0:
                loss, part = self._asked()
                losses.append(loss)
                saved.append(part)
                if self.name == AS_THEY_ARE and part >= ENOUGH:
                    break
            if not np.isfinite(self.sandbox.iterate(self.train[number % len(self.train)])):
                break
        if len(losses) < 2 and not (saved and saved[0] >= ENOUGH):
            return Arm(self.name, np.empty(0), failure="no time was left for it")
        at = int(np.nanargmin(losses))
        part = saved[at] if self.name == TURNED else float(np.nanmax(saved))
        says = f"held-out loss {losses[at]:.3g}; {max(0.0, 100 * part):.0f} % of it saved by the labels"
        facts: dict[str, float | str | bool] = {
            "loss": losses[at],
            "saved": part,
            "at first": saved[0],
            "pairs": float(self.labels.rows(self.held)),
        }
        steps: dict[str, float | str | bool] = {
            "lr": self.rate,
            "steps": float(EVERY * (len(losses) - 1)),
            "says": says,
        }
        return Arm(self.name, np.asarray(losses), self.budget.spent, {**about, **facts, **steps})

    @torch.no_grad()
    def _asked(self) -> tuple[float, float]:
        """The mean held-out loss, and by which part it is under that with shuffled labels."""
        loss = self._loss(None)
        other = float(np.mean([self._loss(seed) for seed in range(SHUFFLES)]))
        scale = max(abs(loss), abs(other))
        return loss, (other - loss) / scale if scale > 0 else 0.0

    def _loss(self, shuffle: int | None) -> float:
        self.labels.shuffle = shuffle
        try:
            return float(np.mean([self._of(backward) for backward in self.held]))
        finally:
            self.labels.shuffle = None

    def _of(self, backward: Backward) -> float:
        self.labels.senses.clear()
        loss = float(Replay(self.sandbox.copies).loss(backward))
        if len(self.labels.senses) > 1:
            raise CannotReplayError("what tells pairs alike or different cannot be told from another mask of them")
        return loss


@dataclass(slots=True)
class _Labels:
    """How the labels of a copy's loss are read: turned or as they are, and shuffled by a seed or in their order."""

    turned: bool
    shuffle: int | None = None
    counted: int = 0  # pairs of the last batch
    senses: set[bytes] = field(
        default_factory=set
    )  # of a pass: what its labels tell apart, whichever value stands for what

    def rows(self, held: list[Backward]) -> int:
        return self.counted * len(held)

    def change(self, site: PairSite) -> Callable[..., Any]:
        """What is done to the calls of an operation, see `Exchange`."""
        how = {LABEL: self._labelled, TRIPLET: self._triplet, DIFFERENCE: self._difference, SIGN: self._sign}[site.kind]
        return lambda func, args, kwargs: how(site, func, args, dict(kwargs))

    def _labelled(self, site: PairSite, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        def turned(thing: Any) -> Any:
            if not isinstance(thing, Tensor) or thing.requires_grad or thing.numel() < 2:
                return thing
            low, high = (thing == site.low), (thing == site.high)
            if not bool((low | high).all()):
                return thing
            self.counted = thing.numel()
            if bool(low.any()) and bool(high.any()):
                self.senses.add((low ^ low.flatten()[0]).flatten().cpu().numpy().tobytes())
            if self.turned:
                thing = ~thing if thing.dtype == torch.bool else torch.where(low, site.high, site.low).to(thing.dtype)
            return thing if self.shuffle is None else thing.flatten()[self._order(thing)].view_as(thing)

        return func(*map(turned, args), **{name: turned(value) for name, value in kwargs.items()})

    def _triplet(self, site: PairSite, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("anchor", "positive", "negative"), args[:3], strict=False)) | kwargs
        one, two = self._exchanged(given["positive"], given["negative"])
        given |= {"positive": one, "negative": two}
        return func(given.pop("anchor"), given.pop("positive"), given.pop("negative"), *args[3:], **given)

    def _difference(self, site: PairSite, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        result = func(*args, **kwargs)
        of_pairs = isinstance(args[-1], Tensor) and result.dim() and result.numel() == len(result) and not kwargs
        return self._exchanged(result, site.offset - result)[0] if of_pairs else result

    def _sign(self, site: PairSite, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        given = dict(zip(("input1", "input2", "target"), args[:3], strict=False)) | kwargs
        given["target"] = self._exchanged(given["target"], -given["target"])[0]
        return func(given.pop("input1"), given.pop("input2"), given.pop("target"), *args[3:], **given)

    def _exchanged(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        """Both, in exchange for one another where they are turned; in half of the rows the other way where they are shuffled."""
        self.counted = len(one)
        if self.turned:
            one, two = two, one
        if self.shuffle is None:
            return one, two
        other = (self._order(one[..., 0] if one.dim() > 1 else one) % 2 == 0).view(-1, *(1,) * (one.dim() - 1))
        return torch.where(other, two, one), torch.where(other, one, two)

    def _order(self, like: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.shuffle or 0)
        return torch.randperm(like.numel(), generator=generator).to(like.device)
