"""Which experiments are worth their time for this recording, in which order, within one budget."""

from __future__ import annotations

from collections.abc import Callable

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.data.harm import State, harm
from netdoctor.experiments import batchnorm, learning_rate, overfit, pairing, scaling
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Recording
from netdoctor.trend import judge


def conduct(recording: Recording, step: TrainingStep, seconds: float, say: Callable[[str], None]) -> None:
    """Run the experiments that the recording asks for, and add their arms to it as they finish.

    Overfitting a tiny batch comes first: it tells a broken model from a broken training. Learning rates are tried only where
    the loss does not fall by itself. Ctrl-C ends the experiments; the arms that are done stay.
    """
    budget = Budget(seconds)
    learning = judge(recording).learning
    _add(
        recording,
        "overfit",
        lambda: overfit.overfit(step, budget.share(seconds * 0.4), recording.graph),
        say,
        "overfitting a tiny batch",
    )
    if not learning:
        share = budget.share(seconds * 0.4)
        _add(recording, "trial", lambda: learning_rate.trials(step, share, say), say, "trying learning rates")
    if not learning or harm(recording).state is not State.WORKS:
        rest = budget.share(seconds * 0.2)
        _add(recording, "scaling", lambda: scaling.trials(recording, step, rest, say), say, "standardising the data")
    if harm(recording).state in {State.HURT, State.SLOW}:
        part = budget.share(seconds * 0.2)
        _add(recording, "pairing", lambda: pairing.trials(recording, step, part, say), say, "shuffling the targets")
    _add(
        recording, "batchnorm", lambda: batchnorm.bypass(step, budget.share(seconds * 0.3)), say, "bypassing BatchNorm"
    )


def _add(
    recording: Recording, name: str, work: Callable[[], dict[str, Arm]], say: Callable[[str], None], what: str
) -> None:
    say(what)
    recording.arms.update(work())
