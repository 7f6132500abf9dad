"""The check `recurrent-dropout`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation
from netdoctor.recording import Recording

RECURRENT = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu"})


@dataclass(frozen=True)
class RecurrentDropout(Check):
    """A recurrent layer is given a dropout that has no effect.

    What it is: `nn.LSTM(..., dropout=p)` drops between stacked layers, so with one layer there is nothing to drop.
    Why it hurts: the model is not regularised as it seems to be.
    How it is decided: on the captured step an LSTM, GRU or RNN of one layer runs with a dropout above 0. Advice only.
    When it stays silent: two layers or more; no dropout; modules of dropout before and after it.
    Fix: nn.Dropout on what goes into it and on what comes out.
    Sources: PyTorch's documentation of nn.LSTM (dropout); Zaremba et al. 2014; advice A8.
    """

    name = "recurrent-dropout"

    layers: int = 2  # from two on there is something between them

    def judge(self, recording: Recording) -> Iterator[Finding]:
        seen: set[str] = set()
        for graph in graphs(recording)[:1]:
            for operation in graph.named(RECURRENT):
                layers, p = _options(operation)
                if p > 0 and 0 < layers < self.layers and operation.module not in seen:
                    seen.add(operation.module)
                    yield self._finding(recording, operation, p)

    def _finding(self, recording: Recording, operation: Operation, p: float) -> Finding:
        layer = recording.layer_at(operation.module)
        name = operation.module or operation.name
        code = f"self.dropout = nn.Dropout({p:g})\noutput, state = self.{name}(self.dropout(x))\noutput = self.dropout(output)"
        return Finding(
            self.name,
            f"the dropout of {p:g} in {name} has no effect: it has one layer",
            Severity.ADVICE,
            "A recurrent module drops between its layers, and there is only one.",
            Location.at(layer.source if layer else None, operation.module, operation.name, step=0),
            (Evidence("dropout of a single recurrent layer", p, ">", 0.0),),
            (Fix("outer-dropout", "Drop what goes in and what comes out.", code, Reach.MODEL),),
            Certainty.INFERRED,
            places=(name,),
        )


def _options(operation: Operation) -> tuple[int, float]:
    """(layers, dropout) of a call of torch's recurrent functions: the bias flag, then the number of layers, then the rate.

    Packed input comes with one more tensor in front, so they are found as the first flag and what follows it.
    """
    values = [operation.attributes.get(str(position)) for position in range(10)]
    flag = next((at for at, value in enumerate(values) if isinstance(value, bool)), None)
    if flag is None or flag + 2 >= len(values):
        return 0, 0.0
    layers, p = values[flag + 1], values[flag + 2]
    return (layers, float(p)) if isinstance(layers, int) and isinstance(p, int | float) else (0, 0.0)
