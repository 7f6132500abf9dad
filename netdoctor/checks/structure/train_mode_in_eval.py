"""Evaluation while Dropout or BatchNorm are still in training mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.structure.eval_mode_in_training import DROPOUTS
from netdoctor.checks.structure.gradients import listed
from netdoctor.data import Evaluation
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording, SourceLine

CLASSIFYING = frozenset({"cross_entropy", "nll", "bce", "margin", "hinge"})
PASSED_ON = """def train(self, mode=True):
    super().train(mode)
    ...  # what is its own
    return self"""


@dataclass(frozen=True)
class TrainModeInEval(Check):
    """The model is evaluated in training mode, though it has BatchNorm or Dropout layers, which then act as in training.

    What it is: no `model.eval()` before the evaluation, or a `model.train()` that came too early; or a `train(self, mode)`
    of the model's own that does not pass `mode` on, after which `model.eval()` leaves it in training mode.
    Why it hurts: Dropout goes on dropping, BatchNorm normalises by the batch that it is given and takes the evaluation's
    data into its running statistics. The numbers are wrong, and with them early stopping and the choice of a model.
    How it is decided: passes that no loss is trained on, whose results the script compares with targets (a loss, or
    `==`), while the model and one of its BatchNorm or Dropout layers are in training mode: most of those of one line.
    When it stays silent: passes that are only sampled from, or that make targets for the training; comparisons that are
    no accuracy of a classifier (rewards of a policy); re-estimation of running statistics; models without such layers.
    Where the same batch is passed again and again the dropout is taken for a sampling on purpose (Monte Carlo dropout):
    advice.
    Fix: `model.eval()` before the evaluation, `model.train()` after it; `super().train(mode)` in a method of one's own.
    Sources: PyTorch's notes on train and eval; Gal and Ghahramani, 2016 (Monte Carlo dropout); advice A39, E-N8.
    """

    name = "train-mode-in-eval"
    explains = frozenset({"train-eval-shift", "batchnorm-drift", "overfitting"})  # which are read off these passes

    share: float = 0.5  # of the passes of one line: one that forgets to switch does so each time, but the first perhaps

    def judge(self, recording: Recording) -> Iterator[Finding]:
        classifier = recording.facts.get("loss_family") in CLASSIFYING
        for evaluation in recording.evaluations:
            if not evaluation.losses.size and not classifier:
                continue
            layers = self._layers(recording, evaluation)
            if layers and evaluation.train_mode >= max(1, self.share * evaluation.passes):
                yield self._finding(evaluation, layers)
                return

    def _layers(self, recording: Recording, evaluation: Evaluation) -> tuple[str, ...]:
        """Layers in training mode; functional dropouts of the captured step too, which follow `self.training`."""
        if evaluation.layers or recording.graph is None:
            return evaluation.layers
        found = [o for o in recording.graph.named(DROPOUTS) if o.attributes.get("training", True)]
        return tuple(dict.fromkeys(o.module or o.name for o in found if o.inside and o.attributes.get("p", 0.5) != 0))

    def _finding(self, evaluation: Evaluation, layers: tuple[str, ...]) -> Finding:
        sampling = 2 * evaluation.repeated >= evaluation.passes
        name = evaluation.module if evaluation.module.isidentifier() else "model"
        override = evaluation.override
        says = f"{listed(list(layers))} work as in training there"
        says += ", perhaps on purpose: the same batch is passed again and again." if sampling else ": what it measures "
        says += "" if sampling else "is not what the model gives in evaluation mode."
        step = int(evaluation.steps[0]) if len(evaluation.steps) else None
        code = f"{name}.eval()\nwith torch.no_grad():\n    ...  # evaluate\n{name}.train()"
        fix = Fix("eval-mode", "Switch to evaluation mode for the evaluation.", code, Reach.RUN)
        measured = 100 * evaluation.train_mode / evaluation.passes
        at = SourceLine(evaluation.file, evaluation.line, evaluation.text) if evaluation.file else None
        if override is not None:
            says = f"{override.name} does not pass on the mode that eval() asks for, so {says}"
            at = SourceLine(override.file, override.line, override.text)
            fix = Fix("eval-mode", "Let the base class have the mode that was asked for.", PASSED_ON, Reach.RUN)
        return Finding(
            self.name,
            f"{evaluation.train_mode} of {evaluation.passes} evaluation passes ran in training mode"
            + (", though eval() was called" if override is not None else ""),
            Severity.ADVICE if sampling else Severity.WARNING,
            says,
            Location.at(at, layers[0], step=step),
            (Evidence("evaluation passes in training mode", measured, "≥", 100 * self.share, "%"),),
            (fix,),
            first_step=step,
            places=layers,
            share=evaluation.train_mode / evaluation.passes,
        )
