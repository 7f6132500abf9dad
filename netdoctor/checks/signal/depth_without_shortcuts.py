"""A deep plain chain that wears its gradient out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.signal import initialisation
from netdoctor.checks.signal.profile import Profile, gradients
from netdoctor.finding import Evidence, Finding, Location, Severity
from netdoctor.recording import Recording, Stat

_JOINS = frozenset({"add", "__add__", "__radd__", "add_", "__iadd__", "cat", "concat", "addcmul", "lerp"})


@dataclass(frozen=True)
class DepthWithoutShortcuts(Check):
    """Many weight layers in a plain chain, and a gradient that grows or shrinks along it.

    What it is: past some depth a plain stack gets worse with each layer, even on the training data.
    Why it hurts: the gradient is a product over all layers; a shortcut adds a path that is not.
    How it is decided: more than 15 weight layers, no sum or concatenation inside the model in the captured step, and
    1e2 between the gradients (relative to the weights) at both ends. Advice only.
    When it stays silent: residual, dense and highway nets; shallower chains; chains whose gradient is kept.
    Fix: identity shortcuts around each pair of layers.
    Sources: He et al. 2016 (two papers on residual learning and identity mappings); Srivastava et al. 2015 (highway).
    """

    name = "depth-without-shortcuts"
    needs = frozenset({Stat.RMS})

    layers: int = 16  # He et al. 2016: plain nets get worse between 18 and 34 layers
    decades: float = 2.0  # well outside of what matched initialisation leaves (under 1)

    def judge(self, recording: Recording) -> Iterator[Finding]:
        graph = recording.graph
        if graph is None or any(o.inside and o.name in _JOINS and len(o.inputs) > 1 for o in graph.operations):
            return
        steep = [p for p in gradients(recording, self.layers) if abs(p.total) >= self.decades]
        if steep:
            yield self._finding(max(steep, key=lambda p: abs(p.total)))

    def _finding(self, found: Profile) -> Finding:
        first, count = found.layers[0], len(found.layers)
        ratio = 10 ** abs(found.total)
        return Finding(
            check=self.name,
            title=f"{count} weight layers in a plain chain change the gradient by {ratio:.1e}",
            severity=Severity.ADVICE,
            explanation=f"Each layer from {found.layers[-1].spoken} to {first.spoken} scales it by {10**-found.slope:.2g}.",
            location=Location.at(first.source, first.path, step=0),
            evidence=(Evidence("gradient's change over the depth", ratio, ">", 10**self.decades),),
            fixes=(initialisation.SHORTCUTS, initialisation.fix(Recording(layers=list(found.layers)), found.layers)),
            places=tuple(layer.name for layer in found.layers),
        )
