"""Optimizer steps while BatchNorm or Dropout are in evaluation mode."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.structure.gradients import owned, reached_anywhere
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Event, Recording

NORMS = frozenset({"batch_norm", "instance_norm"})
SYMPTOMS = """
loss-not-decreasing loss-diverging unstable-loss cannot-overfit-tiny-batch exploding-activations overfitting
exploding-gradients vanishing-activations vanishing-gradients batchnorm-drift train-eval-shift dead-relu
learning-rate-too-high non-finite-activation non-finite-gradient non-finite-parameter initial-loss
"""
DROPOUTS = frozenset({"dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"})


@dataclass(frozen=True)
class EvalModeInTraining(Check):
    """The model is trained in evaluation mode, though it has BatchNorm or Dropout layers that then do not work.

    What it is: `model.eval()` was called, for an evaluation as a rule, and no `model.train()` came after it; or the
    model came from a loader in evaluation mode.
    Why it hurts: BatchNorm normalises by running statistics that no longer follow the weights, so training loses what
    keeps it stable; Dropout does not drop, so the model overfits.
    How it is decided: losses that were made in evaluation mode, by a model that holds BatchNorm or Dropout in the
    gradient's way and has parameters that an optimizer trains; at least 4, and most of all since the first of them.
    When it stays silent: evaluation without backward; models without such layers; frozen backbones; single layers that
    are kept in evaluation mode while the model trains; models that are in training mode for most of their losses.
    Fix: `model.train()` at the start of each epoch.
    Sources: PyTorch's notes on train and eval; 37 reasons why your neural network is not working; advice A39, E-N8.
    """

    name = "eval-mode-in-training"
    explains = frozenset(SYMPTOMS.split())

    share: float = 0.6  # of the passes since the first: a GAN may evaluate its critic in every other one
    passes: int = 4  # fewer could be a probe before training

    def judge(self, recording: Recording) -> Iterator[Finding]:
        late = float(recording.facts.get("eval_mode_passes", 0.0))
        total = late + float(recording.facts.get("train_mode_passes", 0.0))
        layers = _layers(recording)
        if late < self.passes or late < self.share * total or not layers:
            return
        step = int(float(recording.facts.get("eval_mode_from", 0.0)))
        event = _switch(recording, step)
        name = str(recording.facts.get("eval_mode_module", "")) or "model"
        name = name if name.isidentifier() else "model"
        kinds = " and ".join(sorted({"BatchNorm" if o.name in NORMS else "Dropout" for o in layers}))
        code = f"{name}.train()"
        yield Finding(
            self.name,
            f"{late:.0f} of {total:.0f} training passes since step {step} ran in evaluation mode",
            Severity.ERROR,
            f"{name} holds {kinds} (such as {layers[0].module or layers[0].name}), which work differently in evaluation "
            "mode: BatchNorm uses old running statistics, Dropout drops nothing.",
            Location.at(event.source if event else None, layers[0].module or None, step=step),
            (
                Evidence("training passes in evaluation mode", late, "≥", self.passes),
                Evidence("of all training passes since then", 100 * late / total, "≥", 100 * self.share, "%"),
            ),
            (Fix("train-mode", "Switch back before the training loop goes on, once per epoch.", code, Reach.RUN),),
            first_step=step,
            share=late / total,
        )


def _layers(recording: Recording) -> list[Operation]:
    """BatchNorm and Dropout operations in the gradient's way, when an optimizer trains something."""
    reach = reached_anywhere(recording)
    if not any(owned(recording, p) and p.name in reach for p in recording.parameters.values()):
        return []
    return [o for graph in graphs(recording)[:1] for o in graph.named_behind(NORMS | DROPOUTS) if _matters(graph, o)]


def _matters(graph: StepGraph, operation: Operation) -> bool:
    if operation.name in NORMS:
        weights = [graph.values[i] for i in operation.inputs if graph.values[i].origin == "parameter"]
        frozen = bool(weights) and not any(value.requires_grad for value in weights)
        return not frozen and any(graph.values[i].requires_grad for i in operation.outputs)
    drops = operation.attributes.get("p", operation.attributes.get("1", 0.0))
    return operation.name in DROPOUTS and drops != 0 and any(graph.values[i].requires_grad for i in operation.inputs)


def _switch(recording: Recording, step: int) -> Event | None:
    """The last call of `eval()` at or before the step."""
    there = [e for e in recording.events if e.kind == "mode" and e.detail == "eval" and e.step <= step]
    return there[-1] if there else None
