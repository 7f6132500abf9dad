"""Second derivatives in a loss, by `torch.autograd.grad` of a gradient, that are 0 because the net is piecewise linear."""

from __future__ import annotations

import ast
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.checks.loss.comparisons import RESHAPES, graphs
from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of
from netdoctor.checks.structure.derivatives import parameters_behind
from netdoctor.graph import Operation, StepGraph, Value
from netdoctor.recording import Recording

# Whose second derivative is 0 wherever it exists.
_PIECEWISE = "relu relu6 leaky_relu prelu rrelu hardtanh threshold hardsigmoid abs clamp clip clamp_min"
PIECEWISE = frozenset(_PIECEWISE.split())
_CURVED = """
tanh sigmoid gelu silu elu celu selu mish softplus softsign logsigmoid hardswish tanhshrink sin cos exp log pow square sqrt softmax
log_softmax layer_norm group_norm instance_norm batch_norm rms_norm norm scaled_dot_product_attention lstm gru rnn_tanh
multi_head_attention_forward atan erf sinc reciprocal div true_divide
"""
CURVED = frozenset(_CURVED.split())
_FEWEST = 8  # numbers that are all 0: fewer may be so by chance
_SCALING = RESHAPES | {"mul", "div", "neg", "true_divide"}
_JOINING = frozenset(
    {"add", "sub", "rsub", "subtract", "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "cat", "stack"}
)
_SUMS = frozenset({"sum", "mean"})
_BUILT = re.compile(r"\b(ReLU6?|LeakyReLU|PReLU|RReLU|Hardtanh|Hardsigmoid|Threshold)\b(\([^()]*\))?")


@dataclass(frozen=True, slots=True)
class Flat:
    """A call of grad that gave nothing but zeros, and the piecewise linear operations that it went through twice.

    `curved` tells that others were among them, whose second derivative is not 0, and `joined` that the zeros stand beside numbers
    that are not, sample by sample, as in an equation's residual.
    """

    operation: Operation
    activations: tuple[Operation, ...]
    curved: bool
    joined: bool


def flat_derivatives(recording: Recording) -> list[Flat]:
    """The second derivatives that a loss is made of and that are 0 throughout, with respect to something that is no weight."""
    return [found for graph in graphs(recording) for found in _flat(graph)]


def _flat(graph: StepGraph) -> Iterator[Flat]:
    for operation in graph.named_behind({"grad"}):
        if len(operation.inputs) < 2 or not operation.outputs or not all(map(_zero, _values(graph, operation.outputs))):
            continue
        first = next((o for o in graph.ancestors(operation.inputs[0]) if o.name == "grad" and len(o.inputs) > 1), None)
        if first is None or any(parameters_behind(graph, o.inputs[1]) for o in (first, operation)):
            continue
        between = list(graph.ancestors(first.inputs[0]))
        sharp = tuple(sorted((o for o in between if o.name in PIECEWISE), key=lambda o: o.index))
        if sharp:
            curved = any(o.name in CURVED for o in between)
            yield Flat(operation, sharp, curved, _joined(graph, operation))


def _values(graph: StepGraph, indices: tuple[int, ...]) -> list[Value]:
    return [graph.values[index] for index in indices]


def _zero(value: Value) -> bool:
    return value.low == value.high == 0 and value.finite and math.prod(value.shape) >= _FEWEST


def _joined(graph: StepGraph, operation: Operation) -> bool:
    queue, seen = deque(operation.outputs), set(operation.outputs)
    while queue:
        for reader in graph.consumers(queue.popleft()):
            others = [graph.values[i] for i in reader.inputs if i not in seen]
            if reader.name in _JOINING and any(math.prod(o.shape) > 1 and not _zero(o) for o in others):
                return True
            summed = reader.name in _SUMS and any(
                graph.values[made].shape for made in reader.outputs
            )  # over coordinates
            if summed or reader.name in _SCALING | _JOINING:
                queue.extend(made for made in reader.outputs if made not in seen)
                seen.update(reader.outputs)
    return False


def smoothed(text: str, activation: Operation, smooth: str, module: str) -> str:
    """The line with smooth functions (`smooth` of torch, or modules of this name) in the place of those of straight pieces; the
    general form where it holds none."""
    if _BUILT.search(text):
        return _BUILT.sub(lambda found: f"{module}()" if found[2] else module, text)
    function = f"torch.{smooth}" if smooth == "tanh" else f"torch.nn.functional.{smooth}"

    def edit(node: ast.expr, line: str) -> str | None:
        call = call_of(node)
        known = call is not None and call[0] in PIECEWISE and bool(call[1])
        return f"{function}({source_of(call[1][0], line)})" if known and call is not None else None

    changed = text
    while (again := rewrite_where(changed, edit)) is not None:
        changed = again
    if changed != text:
        return changed
    built = _BUILT.fullmatch(activation.module_type)
    return (
        f"nn.{module}()  # in place of nn.{built[1]}()" if built else f"{function}(x)  # in place of {activation.name}"
    )
