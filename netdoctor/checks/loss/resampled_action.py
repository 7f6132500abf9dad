"""The check `resampled-action`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.loss.score_terms import Term, noise_terms
from netdoctor.checks.loss.symptoms import NO_LEARNING, NO_SIGNAL
from netdoctor.checks.numerics.rewriting import rewrite_where, source_of
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation
from netdoctor.recording import Recording

_STORING = re.compile(r"\.append\(|\]\s*=[^=]")
_KEEPING = re.compile(r"(?:^|[;:])\s*([A-Za-z_]\w*)\s*=[^=;]*\b(?:sample|multinomial|bernoulli|normal|argmax|choice)\(")
_GENERAL = "actions.append(action)  # the one that is carried out\n...\nlog_prob = dist.log_prob(torch.stack(actions))"


@dataclass(frozen=True)
class ResampledAction(Check):
    """The policy gradient weighs the log-probability of an action that was never carried out.

    What it is: `dist.log_prob(dist.sample())` in the loss, where `dist.log_prob(action)` is meant: the return belongs to
    the action that was carried out, and the log-probability to another one, drawn anew.
    Why it hurts: for an action drawn from the policy itself the expectation of weight · ∇ log π(action) is exactly 0
    where the weight does not depend on that action. The gradient is noise around 0, and the policy does not learn.
    How it is decided: on the captured step, each draw from a trained distribution is followed to its own log-probability
    (recognised by its numbers) and on to the loss. The weight cannot depend on the draw: either it was computed before,
    or the draw is read by nothing else, in torch or out of it, while another draw or choice was carried out.
    When it stays silent: an action that the environment, a critic, a decoder or a reward model reads; rsample and
    Gumbel-softmax; draws from fixed distributions (noise, masks, negatives); a log-probability without a weight that
    differs from sample to sample (estimates of an entropy); whatever is not seen for certain.
    Fix: keep the action where it is drawn, and take its log-probability.
    Sources: Williams 1992 (REINFORCE, its theorem 1); Sutton and Barto, 13.3 (the action A_t is the one that was taken)
    and 13.4 (a baseline adds nothing on average: the same sum is 0).
    """

    name = "resampled-action"
    explains = NO_LEARNING | NO_SIGNAL | {"unstable-loss"}

    def judge(self, recording: Recording) -> Iterator[Finding]:
        found = [term for graph in graphs(recording) for term in noise_terms(graph)]
        if found:
            yield self._finding(recording, found[0])

    def _finding(self, recording: Recording, term: Term) -> Finding:
        source, carried = line(recording, term.log_prob), term.carried
        says = f"The action in this log-probability is drawn anew (line {term.draw.line})"
        if carried is not None:
            says += ", and is not the one that was carried out"
            says += f" (line {carried.line})" if carried.line != term.draw.line else ""
        says += ": its weight was computed before it was drawn. " if term.before else ": nothing else reads it. "
        says += "The ratio compares two different actions, and tells nothing of either. " if term.ratio else ""
        noise = (
            "Which action is good cannot be seen in it"
            if term.ratio
            else "The expectation of its gradient is exactly 0"
        )
        says += f"{noise}: the policy gets noise, and learns nothing from its returns."
        return Finding(
            self.name,
            "the loss weighs the log-probability of an action drawn anew, which earned none of the returns",
            Severity.ERROR,
            says,
            Location.at(source, None, "log_prob", step=term.graph.step),
            (Evidence("log-probabilities of draws that their weight cannot depend on", float(term.count), "≥", 1.0),),
            (Fix("log-prob-of-action", "Use the action that was carried out.", _code(term), Reach.RUN),),
            first_step=term.graph.step,
            share=1.0,
        )


def _code(term: Term) -> str:
    """The user's line with the action in the place of the draw; the general form where it holds none."""
    stored = _STORING.search(term.draw.text) is not None and term.draw.line != term.log_prob.line
    known = "" if term.before else _kept(term.carried)
    text, name = (term.draw if stored else term.log_prob).text, known or ("action" if stored else "actions")

    def edit(node: ast.expr, whole: str) -> str | None:
        call = node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""
        if not isinstance(node, ast.Call) or call != ("sample" if stored else "log_prob"):
            return None
        return name if stored else f"{source_of(node.func, whole)}({name})"

    changed = rewrite_where(text, edit)
    if changed is None or changed == text:
        return _GENERAL
    return changed if known else f"{changed}  # what was carried out: keep it when it is drawn"


def _kept(carried: Operation | None) -> str:
    """The name that the user's line gives the action that is carried out."""
    found = None if carried is None else _KEEPING.search(carried.text)
    return "" if found is None else found[1]
