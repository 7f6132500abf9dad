"""What layers gave in a sampled step, and the gradients with respect to it: measured one by one, or many of one shape at once.

A kernel costs more to call than to run on a few thousand numbers, and a layer asks for a dozen of them. So small outputs are held
until the backward call begins and small gradients until the step is over, and all of one shape are measured by the same kernels.
What is changed in place meanwhile cannot be told any more: an output is held only after one of its place was seen to stay as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture import many, statistics
from netdoctor.capture.recorder import FIRST_STEPS, MomentRows, Recorder, ValueRows
from netdoctor.recording import Kind, Site, Stat

_RECTIFIED = frozenset({"relu", "relu6"})  # their outputs are never negative
_RELU_LIKE = frozenset({"relu", "relu6", "threshold"})
Sums = NDArray[np.float32]  # over the samples of a batch; the shape of one sample
HELD = 4_194_304  # numbers of all tensors that are held at a time (16 MB)


@dataclass(slots=True)
class Probe:
    """Where the numbers of one layer go, and what is asked of it; looked up once."""

    site: Site
    kind: Kind
    name: str
    unit_dim: int
    moments: MomentRows
    gradients: MomentRows
    spread: ValueRows
    samples: ValueRows
    active: ValueRows
    stays: bool | None = None  # its output is not changed in place before the backward call; None: not known


# A tensor that is still to be measured: the probe of an output or the rows of a gradient, its values, and how often it had been
# changed in place when it came.
_HeldOutput = tuple[Probe, Tensor, int]
_HeldGradient = tuple[MomentRows, Tensor, int]


@dataclass(slots=True)
class OutputRecorder:
    """Measures outputs of layers, and gradients with respect to them, for the recorder."""

    recorder: Recorder
    _outputs: list[_HeldOutput] = field(default_factory=list)
    _asked: list[_HeldOutput] = field(default_factory=list)  # measured already; do they stay as they are?
    _gradients: list[_HeldGradient] = field(default_factory=list)
    _numbers: int = 0

    def forget(self) -> None:
        """Let go of what is held: its step is over."""
        self._outputs, self._asked, self._gradients, self._numbers = [], [], [], 0

    def output(self, probe: Probe, output: Tensor) -> None:
        """A layer gave this."""
        values = output.detach() if _is_plain(output) else statistics.floats(output)
        if values is None:
            return
        if probe.stays and self._may_hold(values):
            self._outputs.append((probe, values, values._version))
        else:
            if probe.stays is None and self._may_hold(values):
                self._asked.append((probe, values, values._version))
            self._measure(probe, values)
        if output.requires_grad and (node := output.grad_fn) is not None:
            # On the node that made it: half the cost of a hook on the tensor, and it stays right when the tensor is changed in
            # place.
            node.register_prehook(self._follower(probe.gradients, output.output_nr))

    def _may_hold(self, values: Tensor) -> bool:
        if values.dtype is not torch.float32 or not values.is_cpu or values.is_inference() or values.dim() < 1:
            return False
        size = values.numel()
        if size > many.SMALL or self._numbers + size > HELD:
            return False
        self._numbers += size
        return True

    # --- one by one --------------------------------------------------------------------------------------------------

    def _measure(self, probe: Probe, values: Tensor) -> None:
        recorder, batch = self.recorder, None
        if values.dim() >= 2 and values.shape[0] >= 2 and recorder.brief(values):
            batch = statistics.brief_batch(values)
        if batch is None:
            recorder.put_moments_in(probe.moments, values)
            spread = statistics.batch_spread(values)
        else:
            recorder.put_row(probe.moments, batch.moments)
            spread = batch.spread
        if spread is not None:
            recorder.put_in(probe.spread, spread)
        if probe.kind in (Kind.ACTIVATION, Kind.SOFTMAX) and values.dim():
            self._measure_units(probe, values, None if batch is None else batch.sums.numpy())

    def _measure_units(self, probe: Probe, values: Tensor, sums: Sums | None) -> None:
        recorder, rectified = self.recorder, probe.name in _RECTIFIED
        recorder.put_in(probe.samples, float(values.numel() // max(1, values.shape[probe.unit_dim])))
        if sums is not None and rectified and probe.unit_dim % values.dim():
            recorder.put_in(probe.active, statistics.sums_active(sums[None], probe.unit_dim)[0])
        elif probe.name in _RELU_LIKE:
            recorder.put_in(probe.active, statistics.units_active(values, probe.unit_dim, rectified))
        bounded = statistics.saturated(values, probe.name, probe.unit_dim)
        if bounded is not None:
            recorder.put(probe.site, Stat.SATURATED_SHARE, bounded[0])
            recorder.put(probe.site, Stat.UNIT_SATURATED, bounded[1])

    def _follower(self, rows: MomentRows, number: int) -> Callable[[tuple[Tensor | None, ...]], None]:
        """A hook before a node of the graph, which measures the gradient of its output of this number."""

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            gradient = gradients[number]
            if gradient is None:
                return
            try:
                plain = not gradient.requires_grad and _is_plain(gradient)
                values = gradient if plain else statistics.floats(gradient)
                if values is None:
                    return
                if self._may_hold(values):
                    self._gradients.append((rows, values, values._version))
                else:
                    self.recorder.put_moments_in(rows, values, mean=False)
            except (
                Exception
            ):  # a hook that raises would stop the user's backward; the missing track is seen by every reader
                return

        return hook

    # --- many at once ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Measure the outputs that are held: a backward call is about to run, or the step is over."""
        asked, outputs, self._asked, self._outputs = self._asked, self._outputs, [], []
        for probe, values, version in asked:
            probe.stays = values._version == version and probe.stays is not False
        groups: dict[torch.Size, list[tuple[Probe, Tensor]]] = {}
        for probe, values, version in outputs:
            if values._version == version:
                groups.setdefault(values.shape, []).append((probe, values))
            else:
                probe.stays = False
        for group in groups.values():
            self._measure_alike(group)

    def finish(self) -> None:
        """Measure the gradients that are held: the step is over."""
        self.settle()
        whole = [(rows, values) for rows, values, version in self._gradients if values._version == version]
        if whole:
            self.recorder.put_scales(whole)
        self.forget()

    def _measure_alike(self, group: list[tuple[Probe, Tensor]]) -> None:
        """Outputs of one shape, (samples, ...)."""
        values = [held for _, held in group]
        if len(group) == 1 or values[0].dim() < 2 or values[0].shape[0] < 2:
            for probe, held in group:
                self._measure(probe, held)
            return
        recorder, probes = self.recorder, [probe for probe, _ in group]
        moments, spreads, sums = many.batches(values, extremes=recorder.step < FIRST_STEPS)
        recorder.put_each([probe.moments for probe in probes], moments)
        recorder.put_each([probe.spread for probe in probes], spreads)
        rectified: dict[int, list[int]] = {}
        for at, probe in enumerate(probes):
            if probe.kind is Kind.ACTIVATION and probe.name in _RECTIFIED and probe.unit_dim % values[0].dim():
                rectified.setdefault(probe.unit_dim % values[0].dim(), []).append(at)
            elif probe.kind in (Kind.ACTIVATION, Kind.SOFTMAX):
                self._measure_units(probe, values[at], sums[at])
        for unit_dim, members in rectified.items():
            samples = float(values[0].numel() // max(1, values[0].shape[unit_dim]))
            recorder.put_each([probes[at].samples for at in members], [samples] * len(members))
            active = statistics.sums_active(sums[members], unit_dim)
            recorder.put_each([probes[at].active for at in members], active)


def _is_plain(tensor: Tensor) -> bool:
    """Whether these are dense float32 numbers on the CPU, as most are: they are measured as they lie there."""
    if type(tensor) is not Tensor or tensor.dtype is not torch.float32 or not tensor.is_cpu:
        return False
    return tensor.layout is torch.strided and not tensor.is_nested and tensor.numel() > 0
