"""Can the model learn a handful of the user's own samples by heart? If not, what keeps it from doing so?"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.step import Copies, Replay, TrainingStep
from netdoctor.errors import CannotReplayError, why_it_failed
from netdoctor.experiments.adam import Adam
from netdoctor.experiments.blocking import broadcast, classify, idle
from netdoctor.experiments.loss_terms import (
    BINARY_LOSSES,
    CLASS_LOSSES,
    CLASSES,
    DIFFERENCES,
    OTHER,
    PENALTY,
    REGRESSION,
    Term,
    watched_terms,
)
from netdoctor.experiments.sandbox import Budget, Run, Sandbox, quiet
from netdoctor.experiments.score import Fit, fits
from netdoctor.experiments.side_effects import units
from netdoctor.experiments.tiny_batch import TinyBatch, cut, input_rows, sample
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.experiments.unblocking import Treatment, treatments
from netdoctor.experiments.width import bends, wider
from netdoctor.graph import StepGraph
from netdoctor.recording import Arm

STEPS = 200  # torchtest2 and pytest-torch give as many; TheDeepChecker up to 1000
LEAST_STEPS = 50  # in fewer steps a sound model may not get there (cannot-overfit-tiny-batch asks for as many)
LOOK_EVERY = 10  # steps between looks at the predictions: a look costs as much as some steps
NEAR = 2.0  # times the floor: the look waits until the loss is this low
SHARE = 0.4  # of the remaining budget for one arm
RATES = (1e-3, 1e-2, 1e-4)  # Adam's; the likeliest first
FACTORS = (
    0.1,
    10.0,
    0.01,
    100.0,
    0.001,
    1000.0,
    1e-4,
    1e4,
    1e5,
    1e6,
)  # of the script's own learning rate, nearest first
LOST = 0.95  # of the start: what a loss of unknown kind must lose, if its floor is 0
HALF = 0.5  # of the start: a loss of unknown kind that lost as much is being learned
TURNED = BINARY_LOSSES | CLASS_LOSSES | DIFFERENCES | {"gather", "square", "pow", "abs"}  # which a minus sign turns
IGNORED = 1e-6  # relative change of the outputs under which they do not depend on the input (float32 resolves 1.2e-7)
Facts = dict[str, float | str | bool]


def overfit(step: TrainingStep, budget: Budget, graph: StepGraph | None = None) -> dict[str, Arm]:
    """The arms "overfit/own", "overfit/adam R" and, when none of those fits, "overfit/without X" and "overfit/with X".

    At most 8 samples of the first captured batch are repeated for up to 200 steps, until they are fitted or the
    budget is spent. Facts: `kind` ("classes", "regression", "other"), `reached`, `start`, `best`, `floor`, `constant`
    (losses; NaN where unknown), `samples`, `accuracy` (share of right targets), `lr`, `falls` (share of the start
    that was lost), `ended` (see `Run`); and of the first arm `conflicting`, `gradient`, `unreached`, `cut`,
    `input_ignored`, `output_spread`, `broadcast`, `idle` where they could be taken, and `class` and `why`
    (`blocking.classify`) where it does not fit. Every failure is an arm with its reason; only KeyboardInterrupt comes
    through.
    """
    with quiet():
        try:
            experiment = _Experiment(step, budget, graph)
        except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
            return {"overfit/own": _failed("overfit/own", error)}
        arms = experiment.run()
        name, why = classify(arms, graph is None or bends(graph))
        if name:
            own = arms["overfit/own"]
            arms["overfit/own"] = replace(own, facts={**own.facts, "class": name, "why": why})
        return arms


def _failed(name: str, error: Exception) -> Arm:
    text = why_it_failed(error)
    return Arm(name, np.empty(0), failure=text[:200])


@dataclass(frozen=True, slots=True)
class _Setting:
    """An optimizer: the script's own (`rate` None) at `factor` times its learning rate, or Adam at a rate."""

    rate: float | None = None
    factor: float = 1.0

    @property
    def name(self) -> str:
        if self.rate is not None:
            return f"adam {self.rate:g}"
        return "own" if self.factor == 1.0 else f"own lr x{self.factor:g}"

    def sandbox(self, step: TrainingStep) -> Sandbox:
        rate = self.rate
        if rate is None:
            return Sandbox(step, lr_factor=self.factor)
        return Sandbox(step, optimizer=lambda ps: Adam(ps, lr=rate))


@dataclass(slots=True)
class _State:
    """How well a copy fits the tiny batch now: the loss (mean over its iterations), and the fits of all its terms."""

    value: float = 0.0
    fits: list[Fit] = field(default_factory=list)
    terms: list[Term] = field(default_factory=list)


class _Experiment:
    def __init__(self, step: TrainingStep, budget: Budget, graph: StepGraph | None) -> None:
        self._step, self._budget = step, budget
        self._wider = [] if graph is None else list(wider(graph))
        self._operations = frozenset(() if graph is None else (operation.name for operation in graph.operations))
        copies = step.copies()
        self._batch: TinyBatch = cut(step, copies)
        self._start = self._look(copies)
        self._refuse_bottomless()
        self._refuse_slow()
        self._trained: Sandbox | None = None

    def _refuse_bottomless(self) -> None:
        """A loss of unknown kind that starts below zero has no floor that it could be held to."""
        if self._kind(reached=False) == OTHER and -math.inf < self._start.value <= 0:
            turned = [term.name for term in self._start.terms if term.name in TURNED]
            if turned:
                raise CannotReplayError(f"wrong sign: what makes {turned[0]} larger makes this loss smaller")
            raise CannotReplayError("the loss may fall below zero, so its floor is not known")

    def _refuse_slow(self) -> None:
        """A step is some three forward passes; training that does not get anywhere in the budget is not begun."""
        copies, times = self._step.copies(), []
        for _ in range(3):  # the fastest: other programs only ever make it slower
            began = time.perf_counter()
            Replay(copies).loss(self._batch.iterations[0].backwards[0])
            times.append(time.perf_counter() - began)
        seconds = 3 * min(times)
        if seconds * LEAST_STEPS > self._budget.left:
            left = f"{max(0.0, self._budget.left):.0f} s"
            raise CannotReplayError(f"{LEAST_STEPS} steps of {seconds:.2g} s do not fit in the {left} that are left")

    def run(self) -> dict[str, Arm]:
        """All arms, the script's own optimizer first."""
        arms: dict[str, Arm] = {}
        settings = [_Setting(), *(_Setting(rate) for rate in RATES)]
        for setting in settings:
            if self._budget.left <= 0:
                return arms
            arm = self._attempt(f"overfit/{setting.name}", setting)
            arms[arm.name] = self._with_first_facts(arm) if setting.rate is None else arm
            if self._answered(arm):
                if setting.rate is not None and arm.facts.get("reached"):
                    self._scale_own_rate(arms)
                return arms
        ran = [(arms[f"overfit/{s.name}"], s) for s in settings if not arms[f"overfit/{s.name}"].failure]
        known = [arm for arm, _ in ran if arm.facts["kind"] != OTHER]
        if ran and known:
            self._unblock(arms, min(ran, key=lambda pair: _left(pair[0]))[1])
        return arms

    def _scale_own_rate(self, arms: dict[str, Arm]) -> None:
        """Another optimizer fits the samples and the script's own does not: is that its learning rate alone?"""
        for factor in FACTORS:
            if self._budget.left <= 0 or arms["overfit/own"].failure:
                return
            arm = self._attempt(f"overfit/own lr x{factor:g}", _Setting(factor=factor))
            arms[arm.name] = arm
            if arm.facts.get("reached"):
                return

    def _answered(self, arm: Arm) -> bool:
        """Whether other optimizers would tell nothing more.

        Either it is fitted, or the very first loss is not finite, which none can mend, or a loss whose floor nobody knows
        lost half of itself.
        """
        falls = float(arm.facts.get("falls", math.nan))
        bottomless = arm.facts.get("kind") == OTHER and falls >= HALF
        return bool(arm.facts.get("reached")) or bottomless or not math.isfinite(self._start.value)

    def _unblock(self, arms: dict[str, Arm], setting: _Setting) -> None:
        penalised = any(term.kind == PENALTY for term in self._start.terms)
        for treatment in (*treatments(penalised, self._operations), *self._wider):
            if self._budget.left <= 0:
                return
            arm = self._attempt(f"overfit/{treatment.name}", setting, treatment)
            if arm.failure != _UNCONCERNED:
                arms[arm.name] = arm

    # --- one arm ---------------------------------------------------------------------------------------------------

    def _attempt(self, name: str, setting: _Setting, treatment: Treatment | None = None) -> Arm:
        try:
            sandbox = setting.sandbox(self._step)
            surroundings: AbstractContextManager[object] = nullcontext()
            if treatment is not None:
                if not treatment.concerns(sandbox, self._batch.iterations):
                    return Arm(name, np.empty(0), failure=_UNCONCERNED)
                treatment.apply(sandbox, self._batch.iterations)
                surroundings = treatment.during()
            with surroundings:
                run, state = self._train(sandbox)
        except Exception as error:  # the user's code failed on the copy; that is an answer, not a fault
            return _failed(name, error)
        if setting == _Setting() and treatment is None:
            self._trained = sandbox
        return Arm(name, np.asarray(run.losses), run.seconds, self._facts(run, state, sandbox))

    def _train(self, sandbox: Sandbox) -> tuple[Run, _State]:
        """Repeat the tiny batch until it is fitted.

        The random states are those of the capture in every step: dropout keeps the same units each time, which makes
        learning by heart easier, and the loss comparable from step to step.
        """
        state = self._start

        def fitted(losses: list[float]) -> bool:
            nonlocal state
            if len(losses) % LOOK_EVERY or not self._promising(losses):
                return False
            state = self._look(sandbox.copies)
            return self._reached(state, losses)

        run = sandbox.run(self._batch.iterations, STEPS, self._budget.share(SHARE * self._budget.left), fitted)
        if run.ended in ("finished", "out of time"):
            state = self._look(sandbox.copies)
        return run, state

    def _promising(self, losses: list[float]) -> bool:
        """Whether the loss is low enough for a closer look; always, where other terms move it too."""
        if any(term.kind in (OTHER, PENALTY) for term in self._start.terms):
            return True
        kind = self._kind(reached=True)
        return _level(losses, len(self._batch.iterations)) <= NEAR * self._limits(kind)[0]

    def _look(self, copies: Copies) -> _State:
        """The fits and terms of all iterations of the tiny batch, as they are now."""
        state = _State()
        for iteration in self._batch.iterations:
            for backward in iteration.backwards:
                value, terms = watched_terms(copies, backward)
                state.value += value / len(self._batch.iterations)
                state.terms.extend(terms)
                state.fits.extend(fits(terms, self._batch.samples))
        return state

    def _reached(self, state: _State, losses: list[float], ended: bool = False) -> bool:
        known = [term for term in self._start.terms if term.kind in (CLASSES, REGRESSION)]
        if known and len(state.fits) == len(self._start.fits) == len(known):
            pairs = zip(state.fits, self._start.fits, strict=True)
            return all(now.settled(then.measure) if ended else now.reached(then.measure) for now, then in pairs)
        cycle = len(self._batch.iterations)
        return min(losses) >= 0 and _level(losses, cycle) <= (1 - LOST) * _level(losses[:cycle], cycle)

    def _kind(self, reached: bool) -> str:
        """The kind of the loss; "other" also where a term of unknown floor keeps a known one from its own."""
        kinds = [term.kind for term in self._start.terms]
        known = [kind for kind in kinds if kind in (CLASSES, REGRESSION)]
        if len(self._start.fits) != len(known) or not known or (OTHER in kinds and not reached):
            return OTHER
        return CLASSES if CLASSES in known else REGRESSION

    def _facts(self, run: Run, state: _State, sandbox: Sandbox) -> Facts:
        cycle = len(self._batch.iterations)
        finite = bool(run.losses) and math.isfinite(run.losses[-1])
        reached = finite and self._reached(state, run.losses, ended=True)
        start = _level(run.losses[:cycle], cycle) if run.losses else math.nan
        levels = [_level(run.losses[: number + 1], cycle) for number in range(len(run.losses))]
        best = min([*levels, state.value] if finite else levels, default=math.nan)
        kind = self._kind(reached)
        floor, constant = self._limits(kind)
        floor = max(floor, best) if reached else floor  # targets between 0 and 1 leave cross-entropy a floor of its own
        rate = sandbox.optimizers[0].param_groups[0].get("lr", math.nan) if sandbox.optimizers else math.nan
        facts: Facts = {
            "kind": kind,
            "reached": reached,
            "start": start,
            "best": best,
            "floor": floor,
            "constant": constant,
            "samples": float(self._batch.samples),
            "lr": float(rate),
            "ended": run.ended,
            "falls": 1 - best / start if start > 0 else math.nan,
        }
        if kind == CLASSES:
            facts["accuracy"] = min(fit.right for fit in state.fits if fit.kind == CLASSES)
        return facts

    def _limits(self, kind: str) -> tuple[float, float]:
        """(floor, loss of the best constant), in units of the loss that backward was called on."""
        known = self._start.fits
        measure = sum(fit.measure for fit in known)
        if kind == OTHER or not measure > 0:
            return (1 - LOST) * self._start.value, math.nan
        unit = self._start.value / measure  # the loss's own weight and reduction
        return unit * sum(fit.floor(fit.measure) for fit in known), unit * sum(fit.constant for fit in known)

    # --- what the first arm also tells -----------------------------------------------------------------------------

    def _with_first_facts(self, arm: Arm) -> Arm:
        facts: Facts = {}
        if self._batch.conflicting:
            facts["conflicting"] = ", ".join(map(str, self._batch.conflicting))
        for measure in (self._gradient, self._dependence, self._blocked):
            try:
                facts.update(measure())
            except Exception:  # these facts are extras; without them the arm says what it says
                continue
        return replace(arm, facts={**arm.facts, **facts})

    def _gradient(self) -> Facts:
        """Root mean square of the first gradient; share of trainable tensors without any, then and in the last step.

        `cut`: the share of those that are no part of the graph.
        """
        sandbox = _Setting(RATES[0]).sandbox(self._step)
        for backward in self._batch.iterations[0].backwards:
            Replay(sandbox.copies).loss(backward).backward()
        parameters = sandbox.trainable()
        gradients = [p.grad.double() for p in parameters if p.grad is not None and p.grad.layout is torch.strided]
        squares = sum(float(gradient.square().sum()) for gradient in gradients)
        count = sum(p.numel() for p in parameters)
        cut = sum(p.grad is None for p in parameters) / max(1, len(parameters))
        later = parameters if self._trained is None else self._trained.trainable()
        # What starts behind a zero-initialised weight gets its gradient a step later.
        unreached = sum(_is_unreached(p) and _is_unreached(q) for p, q in zip(parameters, later, strict=True))
        return {
            "gradient": math.sqrt(squares / max(1, count)),
            "unreached": unreached / max(1, len(parameters)),
            "cut": cut,
        }

    def _blocked(self) -> Facts:
        """What lets nothing through in the trained copy, and shapes that are compared although they differ."""
        found: Facts = {}
        sandbox = self._trained or Sandbox(self._step)
        if self._start.terms and (shapes := broadcast(self._start.terms)):
            found["broadcast"] = shapes
        if names := idle(units(Bench(sandbox, self._batch.iterations))):
            found["idle"] = names
        return found

    def _dependence(self) -> Facts:
        """Whether the trained copy's outputs depend on its inputs: they are exchanged between the samples."""
        batch, copies = self._batch, (self._trained or Sandbox(self._step)).copies
        iteration = batch.iterations[0]
        if len(batch.iterations) > 1 or batch.size < 2:
            return {}
        given = input_rows(iteration, batch.size)
        if given is None or bool((given == given[0]).all()):
            return {}  # samples that are all the same say nothing
        entries = iteration.backwards[0].entries
        learned = [e for e in entries if e.module is not None and e.context is not None and e.context.grad]
        turned = sample(iteration, batch.size, batch.dimension, (*range(1, batch.size), 0), learned or entries[:1])
        before, after = (_prediction(watched_terms(copies, it.backwards[0])[1]) for it in (iteration, turned))
        if before is None or after is None or before.shape != after.shape:
            return {}
        scale = float(before.square().mean().sqrt())
        if not 0 < scale < math.inf:
            return {}
        change = float((after - before).abs().max()) / scale
        rows = before.reshape(batch.size, -1) if before.numel() % batch.size == 0 else before.reshape(1, -1)
        spread = float(rows.std(0).square().mean().sqrt()) if len(rows) > 1 else math.nan
        return {"input_ignored": change < IGNORED, "output_spread": spread / scale}


_UNCONCERNED = "there is nothing to take out"


def _is_unreached(parameter: Tensor) -> bool:
    return parameter.grad is None or not bool(parameter.grad.detach().abs().sum())


def _prediction(terms: list[Term]) -> Tensor | None:
    found = (term.prediction.double() for term in terms if term.prediction is not None)
    return next(found, None)


def _level(losses: list[float], cycle: int) -> float:
    """The mean of the last losses over one cycle through the tiny batch's iterations."""
    return float(np.mean(losses[-cycle:]))


def _left(arm: Arm) -> float:
    """The share of the start that is left, infinite where the run broke down."""
    falls = float(arm.facts.get("falls", math.nan))
    return 1 - falls if math.isfinite(falls) else math.inf
