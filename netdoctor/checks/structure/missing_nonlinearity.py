"""Two linear layers in a row with nothing between them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.signal import outcome
from netdoctor.checks.structure.linear_pairs import LINEAR, Pair, all_linear, following, matrices
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import StepGraph
from netdoctor.recording import Recording, spoken
from netdoctor.trend import judge


@dataclass(frozen=True)
class MissingNonlinearity(Check):
    """Two linear layers follow each other with no activation between them, so that they are one linear layer.

    What it is: a product of two matrices is a matrix: whatever the second layer adds, the first could do alone.
    Why it hurts: the model is shallower than it looks; without any activation it is a linear model.
    How it is decided: on the operations of the captured step. The output of a linear or convolution layer goes into
    another one of the same part of the model, dropout and reshapes aside, and nowhere else, and is no narrower than
    what it connects. Matrices that no module was seen to use (torch.func, plain tensors) are judged by autograd's graph
    in the same way: nothing but a bias between two products. A warning for two such pairs, for a model without any
    activation, or where training is hurt; else advice.
    When it stays silent: low-rank factorisations, whose middle is narrower; depthwise-separable and one-dimensional
    kernels; attention's projections; residual branches; embeddings; heads on top of another model.
    Fix: an activation between them.
    Sources: UMLAUT (linear-linear stack); peers.md.
    """

    name = "missing-nonlinearity"
    explains = frozenset(
        {"underfitting", "loss-not-decreasing", "cannot-overfit-tiny-batch", "depth-without-shortcuts"}
    )

    pairs: int = 2  # a single one in a training that learns wastes a layer and no more

    def judge(self, recording: Recording) -> Iterator[Finding]:
        for graph in graphs(recording)[:1]:
            pairs = [pair for operation in graph.named(LINEAR) if (pair := following(graph, operation)) is not None]
            if pairs:
                yield self._finding(recording, graph, pairs)
            elif unseen := matrices(recording, graph):
                yield self._of_matrices(recording, unseen)

    def _of_matrices(self, recording: Recording, pairs: list[tuple[str, str]]) -> Finding:
        harmful = len(pairs) >= self.pairs or outcome.hurt(judge(recording))
        (first, second), more = pairs[0], f", and {len(pairs) - 1} more such pairs" if len(pairs) > 1 else ""
        return Finding(
            self.name,
            f"no activation between the products with {first} and {second}{more}",
            Severity.WARNING if harmful else Severity.ADVICE,
            "Two matrices in a row can do no more than one. This is read off what backward goes through, since the "
            "operations themselves run outside of any module or inside of torch.func.",
            Location(first, step=0),
            (Evidence("pairs of matrices without an activation", len(pairs), ">", 0.0),),
            (Fix("activation", f"Put one between {first} and {second}.", "x = torch.tanh(x)", Reach.MODEL),),
            first_step=0,
            places=tuple(one for one, _ in pairs),
        )

    def _finding(self, recording: Recording, graph: StepGraph, pairs: list[Pair]) -> Finding:
        first, second = pairs[0]
        linear = all_linear(graph)
        harmful = linear or len(pairs) >= self.pairs or outcome.hurt(judge(recording))
        source = line(recording, first)
        more = f", and {len(pairs) - 1} more such pairs" if len(pairs) > 1 else ""
        whole = " The model has no activation at all: it is a linear model." if linear else ""
        return Finding(
            self.name,
            f"no activation between {spoken(first.module)} and {spoken(second.module)}{more}",
            Severity.WARNING if harmful else Severity.ADVICE,
            f"Two linear layers in a row can do no more than one.{whole}",
            Location.at(source, first.module or None, first.name, step=0),
            (Evidence("pairs of linear layers without an activation", len(pairs), ">", 0.0),),
            (
                Fix(
                    "activation",
                    f"Put one between {spoken(first.module)} and {spoken(second.module)}.",
                    _code(source),
                    Reach.MODEL,
                ),
            ),
            first_step=0,
            places=tuple(one.module for one, _ in pairs),
        )


def _code(source: object) -> str:
    text = str(getattr(source, "text", ""))
    return f"{text}\nnn.ReLU()," if text.startswith("nn.") and text.endswith(",") else "x = torch.relu(x)"
