"""What makes the scores of a softmax large, by the captured graph."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from netdoctor.checks.numerics.operations import canonical
from netdoctor.graph import Operation, StepGraph

_SHAPES = (
    "view reshape unsqueeze squeeze expand expand_as transpose permute flatten unflatten getitem contiguous T mT repeat"
)
_CASTS = "float to half bfloat16 double type_as clone dropout neg clamp clamp_min clamp_max"
_MASKS = frozenset({"masked_fill", "where", "tril", "triu"})
_SUMS = frozenset({"add", "iadd", "radd", "sub", "isub", "rsub"})
_FACTORS = frozenset({"mul", "rmul", "imul", "multiply", "div", "truediv", "idiv", "divide", "true_divide"})
_THROUGH = frozenset(f"{_SHAPES} {_CASTS}".split()) | _MASKS | _SUMS | _FACTORS
_PRODUCTS = frozenset({"matmul", "bmm", "mm", "einsum", "baddbmm"})
_NOISE = frozenset(
    ["rand", "randn", "rand_like", "randn_like", "exponential", "uniform", "normal", "empty_like", "sample", "rsample"]
)
_OF_NOISE = frozenset({"log", "log1p", "neg", "clamp", "add", "mul", "sub", "clamp_min"})
SAME = 0.02  # relative: a factor is sqrt(d), or 1/sqrt(d)
LARGE = 1.1  # a factor that makes scores larger


@dataclass(frozen=True, slots=True)
class Factor:
    """One number that scores are multiplied with, by which operation; `divides`: the line divides by 1/size."""

    operation: Operation
    size: float
    divides: bool


@dataclass(frozen=True, slots=True)
class Scores:
    """What goes into one softmax. `width` is the length of the vectors whose products the scores are, 0 where they are none.

    `std` is over all finite scores of the first step, `kind` one of "unscaled", "inverted", "temperature", "large".
    """

    std: float
    product: Operation | None
    width: int
    factors: tuple[Factor, ...]
    masked: bool
    noisy: bool

    @property
    def kind(self) -> str:
        """Which fault the factors show."""
        worst = max(self.factors, key=lambda factor: factor.size, default=None)
        if worst is not None and worst.size > LARGE:
            upside_down = self.width > 1 and abs(worst.size / math.sqrt(self.width) - 1) < SAME
            return "inverted" if upside_down else "temperature"
        scaled = any(factor.size < 1 / LARGE for factor in self.factors)
        return "unscaled" if self.width > 1 and not scaled and self.product is not None else "large"

    @property
    def culprit(self) -> Operation | None:
        """The operation whose line is to be changed; None: the softmax's own."""
        if self.kind in ("inverted", "temperature"):
            return max(self.factors, key=lambda factor: factor.size).operation
        return self.product if self.kind == "unscaled" else None

    @property
    def cause(self) -> str:
        """What makes them large, in one sentence."""
        root = f"sqrt({self.width})"
        if self.kind == "inverted":
            return f"The products of vectors of length {self.width} are multiplied by {root}, where they should be divided by it."
        if self.kind == "temperature":
            size = max(factor.size for factor in self.factors)
            return f"They are multiplied by {size:.3g} (divided by {1 / size:.3g})."
        if self.kind == "unscaled":
            return f"Products of vectors of length {self.width} grow with {root}, and are not divided by it."
        return "What they are made of is too large: the weights, or what these are given."


def scores_of(graph: StepGraph, operation: Operation) -> Scores:
    """What is known of the scores of a softmax."""
    value = graph.values[operation.inputs[0]]
    factors: list[Factor] = []
    product: Operation | None = None
    masked = not value.finite
    noisy = False
    queue, seen = deque([operation.inputs[0]]), set[int]()
    while queue:
        made = graph.producer(queue.popleft())
        if made is None or made.index in seen:
            continue
        seen.add(made.index)
        name = made.name.strip("_")
        masked = masked or name in _MASKS or (name in _SUMS and _fixed(graph, made))
        noisy = noisy or (name in _SUMS and any(_random(graph, v) for v in made.inputs))
        if name in _PRODUCTS and product is None and all(graph.values[v].origin != "parameter" for v in made.inputs):
            product = made
            queue.extend(made.inputs)
        elif name in _THROUGH:
            factor = _factor(graph, made) if name in _FACTORS else None
            factors += [] if factor is None else [factor]
            queue.extend(v for v in made.inputs if graph.values[v].trained)
    return Scores(value.std, product, 0 if product is None else _width(graph, product), tuple(factors), masked, noisy)


def _factor(graph: StepGraph, operation: Operation) -> Factor | None:
    divides = canonical(operation.name) == "div"
    numbers = [
        float(v) for v in operation.attributes.values() if isinstance(v, int | float) and not isinstance(v, bool)
    ]
    for value in (graph.values[index] for index in operation.inputs[1:]):
        if math.prod(value.shape) == 1:
            numbers.append(value.mean)
    if len(numbers) != 1 or not abs(numbers[0]) > 0 or operation.attributes.get("reflected"):
        return None
    return Factor(operation, abs(1 / numbers[0] if divides else numbers[0]), divides)


def _fixed(graph: StepGraph, operation: Operation) -> bool:
    """Whether a tensor that does not depend on parameters is added: a mask of large negative numbers, as a rule."""
    return any(not graph.values[v].trained and math.prod(graph.values[v].shape) > 1 for v in operation.inputs)


def _random(graph: StepGraph, value: int) -> bool:
    """Whether a tensor is noise, as the Gumbel distribution's -log(-log(u)) is."""
    for _ in range(8):
        made = graph.producer(value)
        if made is None:
            return False
        name = made.name.strip("_")
        if name in _NOISE:
            return True
        if name not in _OF_NOISE or not made.inputs:
            return False
        value = made.inputs[0]
    return False


def _width(graph: StepGraph, product: Operation) -> int:
    """The length of the vectors whose products are taken; 0 where it is not known."""
    shapes = [graph.values[v].shape for v in product.inputs[-2:]]
    if len(shapes) < 2 or not shapes[0]:
        return 0
    if product.name.strip("_") != "einsum":
        return shapes[0][-1]
    return shapes[0][-1] if shapes[1] and shapes[0][-1] == shapes[1][-1] else 0
