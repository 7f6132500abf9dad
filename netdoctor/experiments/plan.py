"""Which experiments are worth their time for this recording, in which order, within one budget."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.data.harm import State, harm
from netdoctor.checks.training.decayed import decay_of
from netdoctor.checks.training.decayed import trial as decayed_trial
from netdoctor.checks.training.learning_rate_too_high import LearningRateTooHigh
from netdoctor.checks.training.lr_trials import rescue_on_few, works
from netdoctor.checks.training.over_regularised import OverRegularised
from netdoctor.checks.training.slow_rate import OWN
from netdoctor.errors import CannotReplayError
from netdoctor.experiments import (
    alignment,
    batchnorm,
    blanking,
    classes,
    decaying,
    learning_rate,
    masks,
    noise,
    overfit,
    pair_labels,
    pairing,
    positions,
    questions,
    range_test,
    rereading,
    revival,
    rounding,
    scaling,
    sharpness,
    side_terms,
    width,
)
from netdoctor.experiments.pace import QUICK, is_slow, least_seconds, lighter, seconds_per_step, tiny_pace
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments import TREATMENTS
from netdoctor.finding import Severity
from netdoctor.recording import Arm, Fault, Recording
from netdoctor.report import Report
from netdoctor.trend import judge

FOR_TRIALS = 0.25  # of the budget: kept for the trials of the fixes, however slow the experiments are
FIRST_TRIALS = 0.75  # of it, where steps are slow and what was only watched names a cause with a fix to be tried
NO_TRIALS = 0.1  # of it, where steps are slow and the experiments begin with what would be tried, and
ONE_TRIAL = 1 / 3  # at most where there is no such cause: the experiments look for one, and its first fix has two arms
_OF_RATE = frozenset({"lower-learning-rate", "raise-learning-rate", "lower-lr"})
_ARMS = 3  # that must fit: the script as it is, and the two nearest learning rates
Say = Callable[[str], None]


def kept_for_trials(step: TrainingStep, seconds: float, so_far: Callable[[], Report]) -> float:
    """The share of the budget that the experiments leave to the trials of the fixes.

    The most promising comes first: where time is short, and the recording alone names a cause (`so_far` is what it
    shows), the trial of that cause's fix; else the search for a cause.
    """
    if not is_slow(seconds_per_step(step), (1 - FOR_TRIALS) * seconds, _ARMS):
        return FOR_TRIALS
    grave = [f for f in so_far().findings if f.severity is not Severity.ADVICE]
    named = [fix.treatment for f in grave[:1] for fix in f.fixes]
    tried_anyway = bool(_OF_RATE.intersection(named))  # what the experiments begin with, and nothing else is needed
    if TREATMENTS.keys() & set(named) and not tried_anyway:
        return FIRST_TRIALS
    return NO_TRIALS if tried_anyway else max(NO_TRIALS, min(ONE_TRIAL, least_seconds(step) / seconds))


def conduct(recording: Recording, step: TrainingStep, seconds: float, say: Say) -> None:
    """Run the experiments that the recording asks for, and add their arms to it as they finish.

    Overfitting a tiny batch comes first: it tells a broken model from a broken training. Learning rates are tried only where
    the loss does not fall by itself; they come first where steps are so slow that little else would fit, and on a few
    samples then. Ctrl-C ends the experiments; the arms that are done stay.
    """
    budget, pace = Budget(seconds), seconds_per_step(step)
    learning = judge(recording).learning
    slow = is_slow(pace, seconds, _ARMS)
    if step.changed:
        most = budget.share(seconds * 0.1)
        _add(recording, lambda: rereading.look(step, most), say, "reading the same item of the dataset again")
    if slow and not learning:
        few, limit = lighter(step, pace, budget.left, _ARMS), budget.share(0.9 * budget.left)
        _add(
            recording,
            lambda: learning_rate.trials(few, limit, say, QUICK, learning_rate.likely(recording), _ARMS),
            say,
            "trying learning rates on few samples",
        )
    if tiny_pace(step, pace) * overfit.LEAST_STEPS < budget.left:
        share = budget.share(seconds * 0.4)
        _add(recording, lambda: overfit.overfit(step, share, recording.graph), say, "overfitting a tiny batch")
    else:
        recording.arms["overfit/own"] = _no_time(overfit.LEAST_STEPS, pace)
    if not slow:
        _ask(recording, step, budget, seconds, say)
    elif budget.left > pace:
        _add(recording, lambda: sharpness.first_step(recording, step), say, "looking at the scores of a softmax")
    if not slow or budget.left > 3 * pace:  # a profile costs a step, and there is no short form of it
        _add(recording, lambda: batchnorm.bypass(step, budget.share(seconds * 0.3)), say, "bypassing BatchNorm")


def _ask(recording: Recording, step: TrainingStep, budget: Budget, seconds: float, say: Say) -> None:
    """What needs whole batches, and so more time than there is where steps are slow."""
    learning = judge(recording).learning
    most = budget.share(seconds * 0.3)  # first: what a wrong mask hides is the cause of much that the others would find
    _add(recording, lambda: masks.look(recording, step, most), say, "turning the masks of attention round")
    most = budget.share(seconds * 0.25)  # as turned labels do: a copy is asked where pairs are told alike or different
    _add(recording, lambda: pair_labels.look(recording, step, most), say, "turning the labels of pairs round")
    tenth, fifth = partial(budget.share, seconds * 0.1), partial(budget.share, seconds * 0.2)
    third = budget.share(seconds * 0.3)
    _add(recording, lambda: decaying.look(recording, step, third), say, "training with a weak weight decay")
    if not learning:
        _turn(recording, step, budget.share(seconds * 0.25), say)
        if not _by_decay(recording):
            _rates(recording, step, budget, seconds, say)
    elif learning_rate.hasty(recording) and rescue_on_few(recording, up=False) is not None:
        _lower(recording, step, budget.share(seconds * 0.4), say)
    _add(recording, lambda: questions.ask(recording, step, fifth(), say), say, "asking the model")
    if learning:  # what it left of the loss is known by now, and spares most trainings of it
        _turn(recording, step, budget.share(seconds * 0.4), say)
    _add(
        recording,
        lambda: revival.look(recording, step, budget.share(seconds * 0.3)),
        say,
        "going on with a living learning rate",
    )
    whole_steps = budget.share(seconds * 0.3)
    _add(recording, lambda: rounding.look(recording, step, whole_steps), say, "keeping weights in float32")
    _add(recording, lambda: side_terms.look(recording, step, fifth()), say, "training with little of a side term")
    most = budget.share(seconds * 0.4)
    _add(recording, lambda: sharpness.look(recording, step, most), say, "training with smaller scores of a softmax")
    # A training that works is asked little else, and positions that are missing show only after some hundred steps.
    longest = budget.share(seconds * 0.6) if learning else fifth()
    _add(recording, lambda: positions.order(recording, step, longest), say, "permuting the positions")
    if harm(recording).state in {State.HURT, State.SLOW}:
        _add(recording, lambda: width.widen(recording, step, fifth()), say, "widening the model")
    _add(recording, lambda: classes.compare(recording, step, tenth()), say, "taking numbers for classes")
    if learning and not works(judge(recording), LearningRateTooHigh.learning):
        _rates(recording, step, budget, seconds, say)
    elif learning and learning_rate.hasty(recording) and OWN not in recording.arms:
        _lower(recording, step, budget.share(0.5 * budget.left), say)
    if not learning or harm(recording).state is not State.WORKS or judge(recording).kind != "converged":
        _add(recording, lambda: scaling.trials(recording, step, fifth(), say), say, "standardising the data")
    if harm(recording).state in {State.HURT, State.SLOW}:
        _add(recording, lambda: blanking.compare(step, tenth(), say), say, "blanking the inputs")
        _add(recording, lambda: noise.measure(recording, step, tenth()), say, "comparing gradients")
        most = budget.share(seconds * 0.4)  # the last: three arms that learn by heart
        _add(recording, lambda: pairing.trials(recording, step, most, say), say, "shuffling the targets")


def _by_decay(recording: Recording) -> bool:
    """Whether a weak decay alone trains at the script's own rate, which is then not at fault. A usual decay may be held too
    strong by that."""
    most = max(map(decay_of, recording.optimizers), default=0.0)
    check = OverRegularised()
    return most > check.usual and decayed_trial(recording, check.gained, check.times) is not None


def _turn(recording: Recording, step: TrainingStep, budget: Budget, say: Say) -> None:
    """Targets on a grid, turned: before the learning rates where the loss does not fall, as these leave no time for it."""
    _add(recording, lambda: alignment.trials(recording, step, budget, say), say, "turning the targets")


def _rates(recording: Recording, step: TrainingStep, budget: Budget, seconds: float, say: Say) -> None:
    """Other learning rates: first where the loss does not fall, for nothing else stands behind so many of those."""
    share = budget.share(seconds * 0.4)
    _add(recording, lambda: learning_rate.trials(step, share, say), say, "trying learning rates")
    if not works(judge(recording), LearningRateTooHigh.learning):
        more = budget.share(seconds * 0.2)
        _add(
            recording,
            lambda: learning_rate.longer(recording, step, more, say),
            say,
            "trying a learning rate for longer",
        )
    _add(recording, lambda: range_test.sweep(step, budget.share(seconds * 0.1)), say, "a learning-rate range test")


def _lower(recording: Recording, step: TrainingStep, budget: Budget, say: Say) -> None:
    """A tenth of the rate of a training that works: first where a tiny batch is fitted with it, and not with the script's own."""
    _add(recording, lambda: learning_rate.slower(step, budget, say), say, "trying a tenth of the learning rate")


def _no_time(steps: int, pace: float) -> Arm:
    why = f"{steps} steps on a few samples do not fit in the time that is left: a step of the script takes {pace:.1f} s"
    return Arm("overfit/own", np.empty(0), failure=why)


def _add(recording: Recording, work: Callable[[], dict[str, Arm]], say: Say, what: str) -> None:
    say(what)
    try:
        recording.arms.update(work())
    except CannotReplayError as error:  # what this one needs of the step is not there any more
        recording.arms[what] = Arm(what, np.empty(0), failure=str(error))
    except Exception as error:  # a fault in one keeps no other from running
        recording.faults.append(Fault(what, f"{type(error).__name__}: {error}"[:300]))
