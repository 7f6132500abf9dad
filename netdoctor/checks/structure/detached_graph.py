"""A gradient that is lost between the parameters and the loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import line
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.structure.cut_lines import attached
from netdoctor.checks.structure.cuts import Cut, find
from netdoctor.checks.structure.derivatives import graphless, with_graph, without_graph
from netdoctor.checks.structure.gradients import copies, ever_had_gradient, listed, modules, owned, reached_anywhere
from netdoctor.checks.structure.unbounded import BOUNDS, with_explosion
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation
from netdoctor.recording import Recording, Stat


@dataclass(frozen=True)
class DetachedGraph(Check):
    """The loss is computed from some parameters, but the gradient does not reach them: the graph is cut on the way.

    What it is: `.detach()`, `.data`, `.item()`, numpy, `torch.tensor(...)`, argmax or `torch.no_grad()` between a layer
    and the loss, or a derivative from `torch.autograd.grad` without `create_graph`. The numbers go on, the gradient does not.
    Why it hurts: everything before the cut never learns; an equation's residual is minimised as if its derivatives were fixed.
    How it is decided: on the captured step. Parameters that an optimizer holds got no gradient in any step, no captured
    loss reaches them by gradient, and yet the loss is computed from them; the first operation whose input requires a
    gradient and whose output does not is named. When backward failed because nothing requires a gradient, too.
    A derivative without a graph is named where it is added to, or compared with, what trains the same parameters; it is
    the cause of an explosion where the gradient of a copy grows ten times more without the graph than with it.
    When it stays silent: another path or another loss reaches them (GANs, straight-through estimators); copies of other
    parameters (target networks); parameters in no optimizer; derivatives that move an input or a weight, that scale a loss,
    or that are detached by hand. A backbone under no_grad after weights were loaded is advice.
    Fix: take the cut out; for argmax or rounding, a differentiable stand-in.
    Sources: PyTorch's autograd mechanics notes; Lightning#17212 and pytorch#57776 ask for the names (peers.md d1).
    """

    name = "detached-graph"
    needs = frozenset({Stat.RMS})
    arms = frozenset({BOUNDS})
    explains = NO_LEARNING | NO_SIGNAL | {"missing-optimizer-step", "symmetric-initialization"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        lost = _without_gradient(recording)
        cuts = [found for graph in recording.graphs if lost and (found := find(graph, lost)) is not None]
        cuts = [cut for cut in cuts if not copies(recording, cut.names)]
        others = [cut for cut in cuts if not without_graph(cut.operation)]
        if others:
            yield self._finding(recording, max(others, key=lambda cut: len(cut.names)))
        elif taken := graphless(recording) or [cut.operation for cut in cuts[:1]]:
            yield with_explosion(recording, _of_derivatives(recording, taken))

    def _finding(self, recording: Recording, cut: Cut) -> Finding:
        operation, where = cut.operation, modules(recording, cut.names)
        source = line(recording, operation)
        total = sum(p.requires_grad for p in recording.parameters.values())
        deliberate = bool(recording.facts.get("pretrained")) and not operation.grad_enabled
        failed = "does not require grad" in recording.header.ended
        then = "backward fails" if failed else "they never change"
        return Finding(
            self.name,
            f"{cut.way} cuts {len(cut.names)} of {total} parameters off from the loss: {listed(where)}",
            Severity.ADVICE if deliberate else Severity.ERROR,
            f"Up to here the values require a gradient, from here on they do not. The loss is computed from {listed(where)}"
            f", but no gradient gets back to them, so {then}.",
            Location.at(source, where[0] if where else None, operation.name, step=0),
            (Evidence("parameters cut off", len(cut.names), ">", 0.0),),
            (Fix("attach-graph", *attached(cut, "" if source is None else source.text), Reach.MODEL),),
            first_step=0,
            places=cut.names,
            share=len(cut.names) / max(1, total),
        )


def _of_derivatives(recording: Recording, taken: list[Operation]) -> Finding:
    code = "\n".join(with_graph(operation.text) for operation in taken)
    return Finding(
        DetachedGraph.name,
        "a derivative in the loss was taken without create_graph: it carries no gradient to the weights",
        Severity.ERROR,
        "torch.autograd.grad gives plain numbers unless it is told to build a graph. The loss is made of them too, but "
        "training takes them for constants and moves the weights by the other terms alone.",
        Location.at(line(recording, taken[0]), None, "grad", step=0),
        (Evidence("derivatives without a graph", float(len(taken)), ">", 0.0),),
        (Fix("create-graph", "Let the derivative have a graph of its own.", code, Reach.RUN),),
        first_step=0,
        share=1.0,
    )


def _without_gradient(recording: Recording) -> list[str]:
    """Trainable parameters that should have got a gradient and never did."""
    failed = "does not require grad" in recording.header.ended
    reach = reached_anywhere(recording)
    wanted = [p for p in recording.parameters.values() if p.requires_grad and (failed or owned(recording, p))]
    return [p.name for p in wanted if p.name not in reach and not ever_had_gradient(recording, p.name)]
