"""The check `unnormalised-target`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data import scale_trial as trial
from netdoctor.checks.data.harm import Harm, State, harm, of_scale
from netdoctor.checks.data.symptoms import OF_SCALE
from netdoctor.data import TensorFacts
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Reach, Severity
from netdoctor.recording import Recording


@dataclass(frozen=True)
class UnnormalisedTarget(Check):
    """A regression's targets are far from zero mean and unit scale, and training is hurt.

    What it is: the model is to predict prices of 200,000 while its outputs start near 0.
    Why it hurts: the first errors, and with them the gradients, are as large as the targets: plain gradient descent
    explodes, and an optimizer that normalises its steps (Adam) crawls towards the mean, a learning rate at a time.
    How it is decided: the targets of a squared, absolute or Huber loss over the sampled steps: root mean square above
    30, while the loss explodes, or does not get under that of a constant prediction, or only crawls. On a copy the same
    steps are run with standardised targets: where that trains, it is proven (and a scale of 10 is enough); where it
    makes no difference, the check is silent.
    When it stays silent: training works; the targets of a model (DQN, GAN); losses of classes.
    Fix: subtract the mean and divide by the standard deviation; undo both on what the model predicts.
    Sources: Bishop, Neural Networks for Pattern Recognition, 1995, section 8.2; advice B7, C1.
    """

    name = "unnormalised-target"
    arms = frozenset({"scaling/target", "scaling/both", "scaling/control"})
    explains = OF_SCALE | {"initial-loss"}

    large: float = 30.0  # Adam at 1e-3 needs tens of thousands of steps for an output bias of this size
    proven: float = 10.0  # with a trial that trains, less is enough

    def judge(self, recording: Recording) -> Iterator[Finding]:
        family = str(recording.facts.get("loss_family"))
        state = harm(recording)
        if family not in {"mse", "l1", "huber"} or state.state not in {State.HURT, State.SLOW}:
            return
        if not of_scale(recording):
            return
        for facts in recording.targets:
            if facts.rows and facts.classes is None and facts.rms > self.proven:
                yield from self._found(facts, state, recording)
                return

    def _found(self, facts: TensorFacts, state: Harm, recording: Recording) -> Iterator[Finding]:
        answer, tried = trial.verdict(recording, "target", state)
        cured = answer is trial.Says.CURED
        if answer is trial.Says.NO_EFFECT or (facts.rms <= self.large and not cured):
            return
        says = f"Outputs start near 0, so the first errors are as large as the targets. {state.words}"
        code = trial.standardise(facts, "target") + "\n# and back: prediction * std + mean"
        yield Finding(
            self.name,
            f"the target is not normalised: mean {facts.mean:.4g}, standard deviation {facts.std:.3g}",
            Severity.ERROR if state.state is State.HURT else Severity.WARNING,
            says,
            trial.location(facts, operation=facts.name),
            (Evidence("root mean square of the target", facts.rms, ">", self.proven if cured else self.large),),
            (
                Fix(
                    "standardise-target",
                    f"Train on the standardised target.{trial.beside(tried)}",
                    code,
                    Reach.RUN,
                    tried,
                ),
            ),
            Certainty.PROVEN if cured else Certainty.MEASURED,
            0,
            share=1.0,
        )
