"""Per-parameter statistics of a sampled step: the weight, its gradient, and how far the optimizer moved it."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from netdoctor.capture import statistics
from netdoctor.capture.naming import ModuleNames
from netdoctor.capture.recorder import FIRST_STEPS, MomentRows, Recorder, ValueRows
from netdoctor.recording import Role, Site, Stat


@dataclass(slots=True)
class _Probe:
    """Where the numbers of one parameter go, looked up once."""

    parameter: weakref.ref[Tensor]
    stride: int
    weight: MomentRows
    gradient: MomentRows
    update: ValueRows
    idle_rows: ValueRows
    weight_site: Site
    gradient_site: Site


class ParameterRecorder:
    """Measures parameters around an optimizer's step, under the names that they have by then."""

    def __init__(self, recorder: Recorder, names: ModuleNames) -> None:
        self._recorder = recorder
        self._names = names
        self._probes: dict[int, _Probe] = {}
        self._version = -1
        self._before: list[tuple[_Probe, Tensor]] = []

    def gradients(self, parameters: list[Tensor]) -> None:
        """Measure the gradients, as they are before they are clipped or used."""
        recorder = self._recorder
        for parameter in parameters:
            gradient = parameter.grad
            probe = None if gradient is None else self._probe(parameter)
            if gradient is None or probe is None or (probe.gradient and probe.gradient[-1][0] == recorder.step):
                continue  # nothing to measure, or measured when it was clipped
            values = statistics.floats(gradient)
            if values is None:
                continue
            recorder.put_moments_in(probe.gradient, values)
            if values.dim() >= 2:
                recorder.put_in(probe.idle_rows, statistics.rows_without_gradient(values))
                if recorder.step < FIRST_STEPS:
                    recorder.put(probe.gradient_site, Stat.DISTINCT_ROWS, statistics.distinct_rows(values))

    def weights(self, parameters: list[Tensor]) -> None:
        """Measure the weights before the optimizer moves them, and keep a sample of each."""
        recorder = self._recorder
        for parameter in parameters:
            probe, values = self._probe(parameter), statistics.floats(parameter)
            if probe is None or values is None:
                continue
            recorder.put_moments_in(probe.weight, values)
            if values.dim() >= 2 and recorder.step < FIRST_STEPS:  # rows that start alike are seen by then
                recorder.put(probe.weight_site, Stat.DISTINCT_ROWS, statistics.distinct_rows(values))
            if parameter.grad is not None:
                self._before.append((probe, statistics.strided_copy(parameter, probe.stride)))

    def updates(self) -> None:
        """Measure how far the kept samples moved, as the root mean square over their entries."""
        before, self._before = self._before, []
        for probe, old in before:
            parameter = probe.parameter()
            if parameter is None:
                continue
            change = statistics.strided(parameter, probe.stride) - old
            self._recorder.put_in(probe.update, torch.linalg.vector_norm(change) / max(1, change.numel()) ** 0.5)

    def _probe(self, parameter: Tensor) -> _Probe | None:
        if self._names.version != self._version:
            self._probes.clear()
            self._version = self._names.version
        probe = self._probes.get(id(parameter))
        if probe is None or probe.parameter() is not parameter:
            probe = self._make(parameter)
            if probe is not None:
                self._probes[id(parameter)] = probe
        return probe

    def _make(self, parameter: Tensor) -> _Probe | None:
        key = self._names.parameter_key(parameter)
        if not key:
            return None
        owner = self._names.parameter_owner(parameter)
        module, layer = ("", "") if owner is None else (self._names.key_of(owner), type(owner).__name__)

        def site(role: Role) -> Site:
            return Site(module, layer, role, 0, key)

        recorder, weight, gradient = self._recorder, site(Role.WEIGHT), site(Role.WEIGHT_GRADIENT)
        return _Probe(
            weakref.ref(parameter),
            statistics.sample_stride(parameter),
            recorder.moment_rows(weight),
            recorder.moment_rows(gradient),
            recorder.rows(site(Role.UPDATE), Stat.RMS),
            recorder.rows(gradient, Stat.UNIT_ZERO_GRADIENT),
            weight,
            gradient,
        )
