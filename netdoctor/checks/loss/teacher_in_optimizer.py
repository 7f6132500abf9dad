"""The check `teacher-in-optimizer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.loss.symptoms import NO_LEARNING
from netdoctor.checks.loss.trained_targets import Pair, all_pairs
from netdoctor.checks.structure.gradients import listed, modules, owned
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

DISTRIBUTIONS = frozenset({"kl_div", "cross_entropy"})


@dataclass(frozen=True)
class TeacherInOptimizer(Check):
    """The network that makes the targets is trained by the very loss that it is the target of.

    What it is: a teacher, a target network or an EMA copy lies in the optimizer, and nothing stops the gradient.
    Why it hurts: the teacher is pulled towards its pupil: the loss falls because the target moves, and what the teacher
    knew is lost.
    How it is decided: on the captured step a comparison gets a gradient on both sides, the weights behind the target
    are none of those behind the prediction, an optimizer steps on them, and they are a teacher's: a copy of the
    pupil's, or in evaluation mode while the pupil trains, or the target of a divergence of distributions.
    When it stays silent: targets that are detached or made without gradients; teachers in no optimizer; two encoders
    that are trained towards one another, in training mode and with weights of their own; divergences in both
    directions; shared weights (see `missing-stop-gradient`).
    Fix: detach the target, freeze the teacher, and give the optimizer the pupil alone.
    Sources: Hinton et al. 2015 (distillation); Tarvainen and Valpola 2017 (mean teacher); Mnih et al. 2015 (target net).
    """

    name = "teacher-in-optimizer"
    explains = NO_LEARNING | {"missing-stop-gradient", "exploding-gradients"}

    share: float = 1.0  # of the teacher's weights must lie in an optimizer: less is some trained adapter of it

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = all_pairs(graphs(recording))
        for pair in found:
            why = self._teaches(recording, pair, found)
            if why:
                yield self._finding(recording, pair, why)
                return

    def _teaches(self, recording: Recording, pair: Pair, found: list[Pair]) -> str:
        """Why the target's weights are those of a teacher that is trained by mistake; "" when they are not."""
        held = [recording.parameters[name] for name in pair.target_weights if name in recording.parameters]
        stepped = sum(owned(recording, parameter) for parameter in held) / max(1, len(held))
        if pair.target_weights & pair.weights or not held or stepped < self.share:
            return ""
        twins = {name: p.same_as for name, p in recording.parameters.items() if p.same_as}
        if all(twins.get(n) in pair.weights or n in {twins.get(m) for m in pair.weights} for n in _known(pair, twins)):
            return "it started as a copy of what it teaches"
        modes = [
            {x.training for x in recording.layers if x.weight in side} for side in (pair.weights, pair.target_weights)
        ]
        if modes == [{True}, {False}] and pair.known_target:
            return "it is in evaluation mode while its pupil trains"
        back = any(other.target_weights == pair.weights and other.weights == pair.target_weights for other in found)
        if pair.operation.name in DISTRIBUTIONS and not back:
            return "its outputs are the target of a divergence"
        return ""

    def _finding(self, recording: Recording, pair: Pair, why: str) -> Finding:
        names = sorted(pair.target_weights)
        held = modules(recording, names)
        root = _prefix(held)
        code = f"{root or 'teacher'}.requires_grad_(False)\nwith torch.no_grad():\n    target = {root or 'teacher'}(x)"
        return Finding(
            self.name,
            f"{root or listed(held)} makes the targets and is trained by the loss that compares with them",
            Severity.ERROR,
            f"The loss can fall by moving its own target: {why}.",
            Location.at(line(recording, pair.operation), root or held[0], pair.operation.name, step=0),
            (Evidence("weights behind the target that are trained", len(names), ">", 0.0),),
            (Fix("freeze-teacher", "Freeze it, and leave it out of the optimizer.", code, Reach.RUN),),
            first_step=0,
            places=tuple(held),
            share=1.0,
        )


def _known(pair: Pair, twins: dict[str, str]) -> list[str]:
    """The target's weights of which twins are known; all of them where there are none. Equal biases are no news."""
    known = [n for n in pair.target_weights if n in twins or n in twins.values()]
    return known or list(pair.target_weights)


def _prefix(paths: list[str]) -> str:
    """The path that all of these have in common, whole parts only."""
    parts = [path.split(".") for path in paths]
    alike = takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return ".".join(column[0] for column in alike)
