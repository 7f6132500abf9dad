"""Per-parameter statistics of a sampled step: the weight, its gradient, and how far the optimizer moved it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture import many, statistics
from netdoctor.capture.naming import ModuleNames
from netdoctor.capture.recorder import FIRST_STEPS, MomentRows, Recorder, ValueRows, vanished
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
    plain: bool  # a dense float32 parameter of torch's own kind on the CPU: its values need no further look
    told_apart: bool = False  # once its gradient was not zero, rows that are alike have shown
    view: Tensor | None = None

    def values(self, tensor: Tensor) -> Tensor | None:
        """The parameter or its gradient as `floats` gives it."""
        if self.plain and tensor.dtype is torch.float32 and tensor.layout is torch.strided:
            return tensor.detach() if tensor.requires_grad else tensor
        return statistics.floats(tensor)


def site_of(names: ModuleNames, parameter: Tensor, role: Role) -> Site:
    """Where what is measured of a parameter belongs."""
    owner = names.parameter_owner(parameter)
    module, layer = ("", "") if owner is None else (names.key_of(owner), type(owner).__name__)
    return Site(module, layer, role, 0, names.parameter_key(parameter))


def _is_plain(parameter: Tensor) -> bool:
    """Whether a parameter is as most are."""
    return parameter.dtype is torch.float32 and parameter.is_cpu and type(parameter) is torch.nn.Parameter


def _is_vector(values: Tensor) -> bool:
    """Whether it is measured along with the others of its kind: a call for each would cost more than all of them at once."""
    return values.dim() == 1 and values.dtype is torch.float32 and values.is_cpu and values.numel() <= many.SMALL


def _past(probe: _Probe) -> many.Past:
    rows = probe.idle_rows[-1][1] if probe.idle_rows else None
    return vanished(probe.gradient), rows if isinstance(rows, np.ndarray) else None


def _distinct(probe: _Probe, values: Tensor) -> Tensor:
    """The share of units that differ: the units of a table are its columns."""
    table = probe.weight_site.layer in ("Embedding", "EmbeddingBag") and values.dim() == 2
    return statistics.distinct_rows(values.t() if table else values)


class ParameterRecorder:
    """Measures parameters around an optimizer's step, under the names that they have by then."""

    def __init__(self, recorder: Recorder, names: ModuleNames) -> None:
        self._recorder = recorder
        self._names = names
        self._probes: dict[int, _Probe] = {}
        self._version = -1
        self.sharded = False  # whether of any parameter only a part lies here
        self._moving: list[tuple[_Probe, Tensor]] = []  # the parameters that the optimizer is about to move
        self._before: dict[torch.device, tuple[Tensor, NDArray[np.int64]]] = {}

    def gradients(self, parameters: list[Tensor]) -> float | None:
        """Measure the gradients, as they are before they are clipped or used. Gives the 2-norm over all of them, where all were
        measured here and now."""
        step, found, whole = self._recorder.step, [], True
        for probe, parameter in self._probed(parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            values = None if probe is None else probe.values(gradient)
            if probe is None or values is None or (probe.gradient and probe.gradient[-1][0] == step):
                whole = False  # nothing to measure, or measured when it was clipped
                continue
            found.append((probe, values))
        self._measure_gradients(found)
        squares = 0.0
        for probe, _ in found:
            at, last = probe.gradient[-1] if probe.gradient else (-1, None)
            if last is None or at != step:
                whole = False
            else:
                squares += last.squares * last.scale**2
        return math.sqrt(squares) if found and whole and squares >= 0 else None

    def _measure_gradients(self, found: list[tuple[_Probe, Tensor]]) -> None:
        recorder, first = self._recorder, self._recorder.step < FIRST_STEPS
        vectors, weights, same, others = [], [], [], []
        for each in found:
            values = each[1]
            dims, usual = values.dim(), values.dtype is torch.float32 and values.is_cpu
            if dims >= 2:
                weights.append(each)
            if dims >= 2 and usual:
                same.append(each)
            elif dims == 1 and usual and values.numel() <= many.SMALL:
                vectors.append(each)
            else:
                others.append(each)  # of another precision or device, or 0-dim
        if vectors:
            moments = many.vectors([values for _, values in vectors])
            recorder.put_each([probe.gradient for probe, _ in vectors], moments)
        if first:
            recorder.put_scales([(probe.gradient, values) for probe, values in weights])
            for probe, values in weights:
                if not probe.told_apart:
                    recorder.put(probe.gradient_site, Stat.DISTINCT_ROWS, _distinct(probe, values))
                    last = probe.gradient[-1][1] if probe.gradient else None
                    probe.told_apart = last is not None and last.squares > 0
        if same:
            rows = many.matrices([values for _, values in same], [_past(probe) for probe, _ in same])
            recorder.put_each([probe.gradient for probe, _ in same], [each.moments for each in rows])
            recorder.put_each([probe.idle_rows for probe, _ in same], [each.idle for each in rows])
        for probe, values in others:
            recorder.put_moments_in(probe.gradient, values, mean=False)
            if values.dim() >= 2:
                recorder.put_in(probe.idle_rows, statistics.rows_without_gradient(values))

    def weights(self, parameters: list[Tensor]) -> None:
        """Measure the weights before the optimizer moves them, and keep a sample of each."""
        recorder, found, small = self._recorder, [], []
        for probe, parameter in self._probed(parameters):
            values = None if probe is None else probe.values(parameter)
            if probe is None or values is None:
                continue
            if _is_vector(values):  # of a bias its mean matters too
                small.append((probe, values))
            elif values.dim() < 2:
                recorder.put_moments_in(probe.weight, values)
            else:
                found.append((probe.weight, values))
                if recorder.step == 0:  # which rows start alike
                    recorder.put(probe.weight_site, Stat.DISTINCT_ROWS, _distinct(probe, values))
            if parameter.grad is not None:
                self._moving.append((probe, parameter))
        if small:
            moments = many.vectors([values for _, values in small])
            recorder.put_each([probe.weight for probe, _ in small], moments)
        recorder.put_scales(found)
        self._before = self._samples()

    def updates(self) -> None:
        """Measure how far the kept samples moved, as the root mean square over their entries."""
        if not self._moving:
            return
        recorder, before, after = self._recorder, self._before, self._samples()
        moving, self._moving, self._before = self._moving, [], {}
        for device, (old, sizes) in before.items():
            new = after[device][0]
            probes = [probe for probe, parameter in moving if parameter.device == device]
            if device.type == "cpu":
                recorder.put_each([probe.update for probe in probes], many.changes(old, new, sizes))
                continue
            norms = torch._foreach_norm(list((new - old).split(sizes.tolist())))
            for probe, norm, size in zip(probes, norms, sizes, strict=True):
                recorder.put_in(probe.update, norm / size**0.5)

    def _samples(self) -> dict[torch.device, tuple[Tensor, NDArray[np.int64]]]:
        """The samples of all parameters that are about to move, behind each other in float32, and their sizes."""
        views: dict[torch.device, list[Tensor]] = {}
        for probe, parameter in self._moving:
            views.setdefault(parameter.device, []).append(self._sample(probe, parameter))
        made = {}
        for device, held in views.items():
            same = [view if view.dtype is torch.float32 else view.float() for view in held]
            made[device] = torch.cat(same), np.array([view.numel() for view in same])
        return made

    def release(self) -> None:
        """Let go of all parameters."""
        self._probes.clear()
        self._moving.clear()
        self._before.clear()

    def _sample(self, probe: _Probe, parameter: Tensor) -> Tensor:
        """About 1024 entries of a parameter: a view that is kept from step to step while the parameter stays where it is."""
        view = probe.view
        if view is None or view.data_ptr() != parameter.data_ptr():
            view = probe.view = statistics.strided(parameter, probe.stride)
        return view

    def _probed(self, parameters: list[Tensor]) -> Iterator[tuple[_Probe | None, Tensor]]:
        """Each parameter with its probe; None for one without a name."""
        if self._names.version != self._version:
            self._probes.clear()
            self._version = self._names.version
        for parameter in parameters:
            probe = self._probes.get(id(parameter))
            if probe is None or probe.parameter() is not parameter or (probe.plain and not _is_plain(parameter)):
                probe = self._make(parameter)
                if probe is not None:
                    self._probes[id(parameter)] = probe
            yield probe, parameter

    def _make(self, parameter: Tensor) -> _Probe | None:
        if not self._names.parameter_key(parameter):
            return None
        recorder, names = self._recorder, self._names
        plain = _is_plain(parameter) and statistics.floats(parameter) is not None
        self.sharded = self.sharded or statistics.is_shard(parameter)
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
            plain,
        )
