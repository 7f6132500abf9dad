"""The check `unaligned-width`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.loss.comparisons import graphs
from netdoctor.checks.structure.gradients import listed
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.graph import Operation, StepGraph
from netdoctor.recording import Recording

_PRODUCTS = frozenset({"linear", "matmul", "mm", "addmm", "conv1d", "conv2d", "conv3d"})
_HALF = frozenset({"float16", "bfloat16"})


@dataclass(frozen=True)
class UnalignedWidth(Check):
    """Wide layers in half precision on a GPU have sizes that are no multiples of 8.

    What it is: a vocabulary of 50,257 tokens, 100 hidden units: numbers that are round in the decimal system only.
    Why it hurts: tensor cores work on tiles of 8 half-precision numbers; a product of other sizes is padded, or runs
    on slower kernels, and takes up to a few times as long.
    How it is decided: products of the captured step that come out in half precision, on a CUDA device, whose weight has
    an input or output width of at least `wide` that is no multiple of `tile`. Advice only.
    When it stays silent: on CPUs; in float32; narrow sizes such as ten classes or three colours, which cost little.
    Fix: the next multiple of 8; logits of the tokens that were added are cut off, or never the target.
    Sources: NVIDIA, Matrix Multiplication Background User's Guide, and Train With Mixed Precision; advice A35.
    """

    name = "unaligned-width"

    tile: int = 8  # half-precision numbers in 16 bytes
    wide: int = 64  # below this a layer's time is not spent in its product

    def judge(self, recording: Recording) -> Iterator[Finding]:
        if "cuda" not in recording.header.device:
            return
        found = {
            o.module: width for graph in graphs(recording) for o in graph.operations if (width := self._off(graph, o))
        }
        if not found:
            return
        places = sorted(found, key=lambda path: -found[path])
        path, width = places[0], found[places[0]]
        layer, better = recording.layer_at(path), -(-width // self.tile) * self.tile
        yield Finding(
            self.name,
            f"{path or 'a product'}: a width of {width:,} in half precision is no multiple of {self.tile}",
            Severity.ADVICE,
            f"Tensor cores work on tiles of {self.tile}; so it is in {listed(places)}."
            if path
            else "Tensor cores work on tiles.",
            Location.at(layer.source if layer else None, path or None, step=0),
            (Evidence(f"remainder of the width by {self.tile}", width % self.tile, ">", 0),),
            (Fix("align-width", f"Take {better:,} in place of {width:,}.", f"{better}", Reach.MODEL),),
            places=tuple(places),
        )

    def _off(self, graph: StepGraph, operation: Operation) -> int:
        """The widest size of an operation's weight that fits no tile, 0 where all do."""
        if operation.name not in _PRODUCTS or not any(graph.values[i].dtype in _HALF for i in operation.outputs):
            return 0
        weights = [v for i in operation.inputs if (v := graph.values[i]).origin == "parameter" and len(v.shape) >= 2]
        return max((w for v in weights for w in v.shape[:2] if w >= self.wide and w % self.tile), default=0)
