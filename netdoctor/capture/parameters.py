"""Per-parameter statistics of a sampled step: the weight, its gradient, and how far the optimizer moved it."""

from __future__ import annotations

import math
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
    view: Tensor | None = None


def site_of(names: ModuleNames, parameter: Tensor, role: Role) -> Site:
    """Where what is measured of a parameter belongs."""
    owner = names.parameter_owner(parameter)
    module, layer = ("", "") if owner is None else (names.key_of(owner), type(owner).__name__)
    return Site(module, layer, role, 0, names.parameter_key(parameter))


class ParameterRecorder:
    """Measures parameters around an optimizer's step, under the names that they have by then."""

    def __init__(self, recorder: Recorder, names: ModuleNames) -> None:
        self._recorder = recorder
        self._names = names
        self._probes: dict[int, _Probe] = {}
        self._version = -1
        self._before: list[tuple[_Probe, Tensor]] = []

    def gradients(self, parameters: list[Tensor]) -> float | None:
        """Measure the gradients, as they are before they are clipped or used. Gives the 2-norm over all of them, where all were
        measured here and now."""
        recorder, found, squares = self._recorder, [], 0.0
        whole = True
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            probe, values = self._probe(parameter), statistics.floats(gradient)
            if probe is None or values is None or (probe.gradient and probe.gradient[-1][0] == recorder.step):
                whole = False  # nothing to measure, or measured when it was clipped
                continue
            rows = statistics.brief_rows(values) if values.dim() >= 2 and recorder.brief(values) else None
            if rows is not None:
                probe.gradient.append((recorder.step, rows.moments))
                recorder.put_in(probe.idle_rows, rows.idle)
                squares += rows.moments.squares
                continue
            found.append((probe.gradient, values))
            if values.dim() >= 2:
                recorder.put_in(probe.idle_rows, statistics.rows_without_gradient(values))
                if recorder.step < FIRST_STEPS:
                    recorder.put(probe.gradient_site, Stat.DISTINCT_ROWS, statistics.distinct_rows(values))
        recorder.put_scales(found)
        for place, _ in found:
            step, moments = place[-1] if place else (-1, None)
            whole = whole and step == recorder.step and moments is not None
            squares += 0.0 if moments is None else moments.squares * moments.scale**2
        return math.sqrt(squares) if whole and squares >= 0 else None

    def weights(self, parameters: list[Tensor]) -> None:
        """Measure the weights before the optimizer moves them, and keep a sample of each."""
        recorder, found = self._recorder, []
        for parameter in parameters:
            probe, values = self._probe(parameter), statistics.floats(parameter)
            if probe is None or values is None:
                continue
            if values.dim() < 2:  # of a bias its mean matters too
                recorder.put_moments_in(probe.weight, values)
            else:
                found.append((probe.weight, values))
                if recorder.step < FIRST_STEPS:  # rows that start alike are seen by then
                    recorder.put(probe.weight_site, Stat.DISTINCT_ROWS, statistics.distinct_rows(values))
            if parameter.grad is not None:
                self._before.append((probe, self._sample(probe, parameter).to(torch.float32, copy=True)))
        recorder.put_scales(found)

    def updates(self) -> None:
        """Measure how far the kept samples moved, as the root mean square over their entries."""
        before, self._before = self._before, []
        pairs = [
            (p, self._sample(p, tensor).float(), old) for p, old in before if (tensor := p.parameter()) is not None
        ]
        if not pairs:
            return
        norms = torch._foreach_norm(torch._foreach_sub([new for _, new, _ in pairs], [old for _, _, old in pairs]))
        for (probe, _, old), norm in zip(pairs, norms, strict=True):
            scale = max(1, old.numel()) ** 0.5
            self._recorder.put_in(probe.update, norm.item() / scale if norm.device.type == "cpu" else norm / scale)

    def release(self) -> None:
        """Let go of all parameters."""
        self._probes.clear()
        self._before.clear()

    def _sample(self, probe: _Probe, parameter: Tensor) -> Tensor:
        """About 1024 entries of a parameter: a view that is kept from step to step while the parameter stays where it is."""
        view = probe.view
        if view is None or view.data_ptr() != parameter.data_ptr():
            view = probe.view = statistics.strided(parameter, probe.stride)
        return view

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
        if not self._names.parameter_key(parameter):
            return None
        recorder, names = self._recorder, self._names
        weight, gradient = site_of(names, parameter, Role.WEIGHT), site_of(names, parameter, Role.WEIGHT_GRADIENT)
        return _Probe(
            weakref.ref(parameter),
            statistics.sample_stride(parameter),
            recorder.moment_rows(weight),
            recorder.moment_rows(gradient),
            recorder.rows(site_of(names, parameter, Role.UPDATE), Stat.RMS),
            recorder.rows(gradient, Stat.UNIT_ZERO_GRADIENT),
            weight,
            gradient,
        )
