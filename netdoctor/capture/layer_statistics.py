"""What layers gave in a sampled step, and the gradients with respect to it: measured one by one, or many of one shape at once.

A kernel costs more to call than to run on a few thousand numbers, and a layer asks for a dozen of them. So small outputs are held
until the backward call begins and small gradients until the step is over, and all of one shape are measured by the same kernels.
What is changed in place meanwhile cannot be told any more: an output is held only after one of its place was seen to stay as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

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


@dataclass(slots=True)
class _Held:
    """A tensor that is still to be measured, and how often it had been changed in place when it came."""

    to: Any  # the probe of an output, the rows of a gradient
    values: Tensor
    version: int

    @property
    def whole(self) -> bool:
        return self.values._version == self.version


@dataclass(slots=True)
class OutputRecorder:
    """Measures outputs of layers, and gradients with respect to them, for the recorder."""

    recorder: Recorder
    _outputs: list[_Held] = field(default_factory=list)
    _asked: list[_Held] = field(default_factory=list)  # measured already; do they stay as they are?
    _gradients: list[_Held] = field(default_factory=list)
    _numbers: int = 0

    def forget(self) -> None:
        """Let go of what is held: its step is over."""
        self._outputs, self._asked, self._gradients, self._numbers = [], [], [], 0

    def output(self, probe: Probe, output: Tensor) -> None:
        """A layer gave this."""
        values = statistics.floats(output)
        if values is None:
            return
        if probe.stays and self._may_hold(values):
            self._outputs.append(_Held(probe, values, values._version))
        else:
            if probe.stays is None and self._may_hold(values):
                self._asked.append(_Held(probe, values, values._version))
            self._measure(probe, values)
        if output.requires_grad and output.grad_fn is not None:
            self._follow_gradient(probe.gradients, output)

    def _may_hold(self, values: Tensor) -> bool:
        if not values.is_cpu or values.dtype is not torch.float32 or values.is_inference() or values.dim() < 1:
            return False
        if values.numel() > many.SMALL or self._numbers + values.numel() > HELD:
            return False
        self._numbers += values.numel()
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
            recorder.put_in(probe.active, statistics.sums_active(sums, probe.unit_dim))
        elif probe.name in _RELU_LIKE:
            recorder.put_in(probe.active, statistics.units_active(values, probe.unit_dim, rectified))
        bounded = statistics.saturated(values, probe.name, probe.unit_dim)
        if bounded is not None:
            recorder.put(probe.site, Stat.SATURATED_SHARE, bounded[0])
            recorder.put(probe.site, Stat.UNIT_SATURATED, bounded[1])

    def _follow_gradient(self, rows: MomentRows, output: Tensor) -> None:
        recorder, number = self.recorder, output.output_nr

        def hook(gradients: tuple[Tensor | None, ...]) -> None:
            try:
                gradient = gradients[number]
                values = None if gradient is None else statistics.floats(gradient)
                if values is None:
                    return
                if self._may_hold(values):
                    self._gradients.append(_Held(rows, values, values._version))
                else:
                    recorder.put_moments_in(rows, values, mean=False)
            except (
                Exception
            ):  # a hook that raises would stop the user's backward; the missing track is seen by every reader
                return

        # On the node that made it: half the cost of a hook on the tensor, and it stays right when the tensor is changed in place.
        node: Any = output.grad_fn
        node.register_prehook(hook)

    # --- many at once ------------------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Measure the outputs that are held: a backward call is about to run, or the step is over."""
        asked, outputs, self._asked, self._outputs = self._asked, self._outputs, [], []
        for held in asked:
            held.to.stays = held.whole and held.to.stays is not False
        groups: dict[torch.Size, list[_Held]] = {}
        for held in outputs:
            if held.whole:
                groups.setdefault(held.values.shape, []).append(held)
            else:
                held.to.stays = False
        for group in groups.values():
            self._measure_alike(group)

    def finish(self) -> None:
        """Measure the gradients that are held: the step is over."""
        self.settle()
        whole = [held for held in self._gradients if held.whole]
        if whole:
            self.recorder.put_scales([(held.to, held.values) for held in whole])
        self.forget()

    def _measure_alike(self, group: list[_Held]) -> None:
        """Outputs of one shape, (samples, ...)."""
        values = [held.values for held in group]
        if len(group) == 1 or values[0].dim() < 2 or values[0].shape[0] < 2:
            for held in group:
                self._measure(held.to, held.values)
            return
        found = many.batches(values, extremes=self.recorder.step < FIRST_STEPS)
        for held, moments, spread, sums in zip(group, *found, strict=True):
            self.recorder.put_row(held.to.moments, moments)
            self.recorder.put_in(held.to.spread, spread)
            if held.to.kind in (Kind.ACTIVATION, Kind.SOFTMAX):
                self._measure_units(held.to, held.values, sums)
