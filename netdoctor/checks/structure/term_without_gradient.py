"""A term of the loss that has no gradient, though it is made of what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import line
from netdoctor.checks.loss.symptoms import NO_LEARNING
from netdoctor.checks.structure.cut_lines import attached
from netdoctor.checks.structure.dead_terms import DeadTerm, dead_terms
from netdoctor.checks.structure.gradients import listed, modules
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording
from netdoctor.trend import judge


@dataclass(frozen=True)
class TermWithoutGradient(Check):
    """A term is added to the loss, but its numbers carry no gradient: it trains nothing.

    What it is: a term of the loss is made of what was computed under `torch.no_grad()`, or went through `.detach()` or
    `.item()`: the log-probabilities that a rollout stored, an entropy or a penalty that was kept as a number.
    Why it hurts: the printed loss moves with the term, while the weights are trained by the other terms alone.
    How it is decided: on the captured step. The loss is a sum; one of its terms depends on parameters by value, an
    optimizer holds them, they get a gradient from other terms, and the term itself requires none.
    When it stays silent: what only weighs another term (baselines, advantages, targets); a number that belongs to a live
    term (straight-through forms, a loss over itself, the largest score of a log-sum-exp, a teacher's entropy); constants,
    frozen or averaged models, a coefficient of 0; a term with a `backward` of its own. Parameters that no term trains are
    the matter of detached-graph. One term's `.detach()`, or a loss that falls well all the same, is a warning.
    Fix: compute the term from the model once more, with gradient; or take it out.
    Sources: PyTorch's autograd mechanics notes; REINFORCE (Williams 1992) needs the gradient of log pi.
    """

    name = "term-without-gradient"
    explains = NO_LEARNING

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = list(dead_terms(recording))
        yield from (self._finding(recording, term) for term in found)

    def _finding(self, recording: Recording, term: DeadTerm) -> Finding:
        cut, where = term.cut, modules(recording, term.cut.names)
        total = sum(p.requires_grad for p in recording.parameters.values())
        source = line(recording, term.operation)
        way = "was computed under torch.no_grad()" if not _with_graph(term) else f"went through {cut.way}"
        return Finding(
            self.name,
            f"a term of the loss has no gradient: it {way}",
            Severity.WARNING if _with_graph(term) or judge(recording).learning else Severity.ERROR,
            f"What this term is made of {way}{_places(term)}. Its number is a part of the loss and depends on {listed(where)}, but "
            "training takes it for a constant: the weights are moved by the other terms alone.",
            Location.at(source, None, term.operation.name, step=0),
            (Evidence("parameters that the term is made of and does not train", len(cut.names), ">", 0.0),),
            (self._fix(term),),
            first_step=0,
            places=cut.names,
            share=len(cut.names) / max(1, total),
        )

    def _fix(self, term: DeadTerm) -> Fix:
        if not _with_graph(term):
            says = (
                "Compute the term anew in the update, from the model and outside of torch.no_grad(): for a policy, the "
            )
            says += "log-probability of the stored actions. Or take it out of the loss."
            return Fix("attach-graph", says, "", Reach.RUN)
        return Fix("attach-graph", *attached(term.cut, term.cut.operation.text), Reach.RUN)


def _with_graph(term: DeadTerm) -> bool:
    return term.cut.operation.grad_enabled and all(made.grad_enabled for made in term.made)


def _places(term: DeadTerm) -> str:
    """Where the factors of the term were made, if on other lines than the term."""
    made = {o.line: o.text for o in term.made if (o.file, o.line) != (term.operation.file, term.operation.line)}
    told = [f"line {number} ({text})" for number, text in sorted(made.items())]
    return f" at {' and '.join(told)}" if told else ""
