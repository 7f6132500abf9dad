"""Short looks at a copy of the model, each with one question and an arm of its own; none of them trains for long."""

from __future__ import annotations

from collections.abc import Callable

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments import (
    along_time,
    bounding,
    conflicts,
    copying,
    curvature,
    custom_backward,
    determinism,
    final,
    last_batch,
    leakage,
    offsets,
    opposition,
    redundancy,
    regularisation,
    single_sample,
    stability,
    underflow,
    unfitted,
    usage,
)
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Fault, Recording

Look = Callable[[Recording, TrainingStep, Budget], dict[str, Arm]]
QUESTIONS: dict[str, Look] = {
    "the model as trained, on the captured batches": final.outcome,
    "who pushes scores which way": opposition.look,
    "running statistics of single batches": last_batch.look,
    "the same batch twice in evaluation mode": determinism.repeat,
    "the same sample in other company": leakage.leakage,
    "inputs that are the target": copying.look,
    "which token each position learns": offsets.look,
    "second derivatives of a smooth model": curvature.look,
    "derivatives with a graph": bounding.look,
    "gradients on their way back through time": along_time.look,
    "steps on their own batch": stability.look,
    "steps on one sample at a time": single_sample.look,
    "going on without regularisation": regularisation.look,
    "gradients of a scaled loss": underflow.look,
    "what of the inputs is read": usage.usage,
    "the same input with different targets": conflicts.conflicts,
    "custom backward passes beside finite differences": custom_backward.compare,
    "how many directions wide layers use": redundancy.look,
    "samples that cannot be taught": unfitted.look,
}


def ask(recording: Recording, step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms of all questions, as far as the time goes; each may take half of what is left. One that fails is passed over."""
    arms: dict[str, Arm] = {}
    for question, look in QUESTIONS.items():
        if budget.left <= 0:
            break
        say(question)
        try:
            arms.update(look(recording, step, budget.share(budget.left / 2)))
        except Exception as error:
            recording.faults.append(Fault(question, f"{type(error).__name__}: {error}"[:300]))
    return arms
