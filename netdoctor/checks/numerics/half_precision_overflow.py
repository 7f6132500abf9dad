"""The check `half-precision-overflow`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs, line
from netdoctor.checks.signal.consequences import NO_TRAINING, NON_FINITE
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph, Value
from netdoctor.recording import Origin, Recording

LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
SAFE_EXP, SAFE_INPUT = 88.0, 1e15  # exp, or products and squares, of less are finite in float32
_GROWING = """
linear addmm matmul mm bmm baddbmm conv1d conv2d conv3d add iadd sub mul imul pow square sum mean exp norm cumsum einsum to
half type relu scaled_dot_product_attention var std logsumexp type_as gelu silu
"""
GROWING = frozenset(_GROWING.split())


@dataclass(frozen=True)
class HalfPrecisionOverflow(Check):
    """A value is too large for half precision, and would be an ordinary number in float32.

    What it is: float16 ends at 65504: sums over many positions, squares, exp of more than 11, wide dot products.
    Why it hurts: it becomes Inf, then NaN, and the step is lost or the weights are.
    How it is decided: an error when the first Inf was made in float16 (or bfloat16) by an operation that grows its
    inputs, from finite inputs for which float32 has room (under 1e15, under 88 for exp). A warning when, on a captured
    step, such an operation makes values beyond an eighth of the largest from inputs within it.
    When it stays silent: ordinary magnitudes; masks (masked_fill with -65504 and sums with one); scaled losses and
    gradients, which GradScaler looks after; divisions by zero and logarithms, which overflow in any precision.
    Fix: that operation in float32, or its inputs scaled down.
    Sources: Micikevicius et al. 2018 (mixed precision training); PyTorch's list of operations that autocast keeps in
    float32.
    """

    name = "half-precision-overflow"
    explains = NON_FINITE - {name} | NO_TRAINING

    near: float = 0.125  # of the largest: one or two doublings more, as another batch brings them, and it is Inf

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if recording.origin is not None:
            if _only_in_half(recording.origin):
                yield self._overflowed(recording.origin)
            return
        for graph in graphs(recording):
            for operation in graph.named_behind(GROWING):
                value = self._too_near(graph, operation)
                if value is not None:
                    yield self._near(recording, operation, value)
                    return

    def _too_near(self, graph: StepGraph, operation: Operation) -> Value | None:
        inputs = [graph.values[i] for i in operation.inputs]
        made = [graph.values[i] for i in operation.outputs if graph.values[i].dtype in LARGEST]
        beyond = [v for v in made if _size(v) >= self.near * LARGEST[v.dtype]]
        grown = beyond and all(_size(v) < self.near * LARGEST[beyond[0].dtype] for v in inputs)
        return beyond[0] if grown else None

    def _overflowed(self, origin: Origin) -> Finding:
        dtype = origin.output.dtype if origin.output is not None else "float16"
        high = max((max(abs(x.low), abs(x.high)) for x in origin.inputs), default=0.0)
        says = f"Its inputs go up to {high:.3g}; {dtype} ends at {LARGEST[dtype]:.5g}, where float32 has room."
        at = Location.at(origin.source, origin.module or None, origin.operation, origin.step, origin.samples)
        title = f"{origin.operation} overflows in {dtype} at step {origin.step}"
        number = Evidence("largest input", high, "<", SAFE_INPUT)
        return self._finding(title, Severity.ERROR, says, at, number, origin.step)

    def _near(self, recording: Recording, operation: Operation, value: Value) -> Finding:
        largest = LARGEST[value.dtype]
        title = f"{operation.name} makes values of {_size(value):.3g}, and {value.dtype} ends at {largest:.5g}"
        at = Location.at(line(recording, operation), operation.module or None, operation.name, step=0)
        number = Evidence("of the largest number", 100 * _size(value) / largest, "≥", 100 * self.near, "%")
        return self._finding(
            title, Severity.WARNING, "A batch or an update that makes it larger is Inf.", at, number, 0
        )

    def _finding(self, title: str, grade: Severity, says: str, at: Location, number: Evidence, step: int) -> Finding:
        code = "with torch.autocast(x.device.type, enabled=False):\n    x = x.float()  # and this operation in here"
        fix = Fix("float32-operation", "Compute it in float32, or scale its inputs down.", code, Reach.MODEL)
        return Finding(self.name, title, grade, says, at, (number,), (fix,), first_step=step, share=1.0)


def _size(value: Value) -> float:
    return max(abs(value.low), abs(value.high))  # NaN, where there are no finite values, compares false


def _only_in_half(origin: Origin) -> bool:
    """Whether the first Inf is one of half precision alone."""
    if origin.phase != "forward" or origin.kind != "Inf" or origin.output is None or origin.output.dtype not in LARGEST:
        return False
    limit = SAFE_EXP if origin.operation in ("exp", "logsumexp") else SAFE_INPUT
    sound = all(x.nans == x.infs == 0 and max(abs(x.low), abs(x.high)) < limit for x in origin.inputs)
    return origin.operation in GROWING and sound
