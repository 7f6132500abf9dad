"""Per-layer statistics of a sampled step: what each layer-making operation gave, and the gradient with respect to it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from netdoctor.capture.functions import KINDS, PRODUCTS, is_library_leaf
from netdoctor.capture.layer_statistics import OutputRecorder, Probe
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.tree import tensors
from netdoctor.recording import Kind, Layer, Role, Site, SourceLine, Stat

MAX_CALLS = 8  # of one place within a step: cells called along time are followed this far

_KEEPS_UNITS = frozenset({Kind.ACTIVATION, Kind.NORM, Kind.DROPOUT, Kind.OTHER})


class LayerRecorder:
    """Recognises layers as operations run, and hands their statistics to the recorder."""

    def __init__(self, recorder: Recorder) -> None:
        self.layers: dict[Site, Layer] = {}
        self.statistics = OutputRecorder(recorder)
        self._recorder = recorder
        self._calls: dict[tuple[str, str], int] = {}
        self._unit_dims: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._probes: dict[Site, Probe] = {}
        self._last: tuple[nn.Module, Probe, weakref.ref[Tensor]] | None = None
        self._by_module: dict[int, tuple[weakref.ref[nn.Module], list[Probe]]] = {}
        self._passes: dict[int, int] = {}  # calls of each module in this step
        self._unconfirmed: set[Site] = set()

    def new_step(self) -> None:
        """Start counting calls afresh."""
        self._calls.clear()
        self._unit_dims.clear()
        self._passes.clear()
        self._last = None
        self.statistics.forget()

    @property
    def modules_suffice(self) -> bool:
        """Whether every layer seen so far is what one torch.nn module gives: then no operation needs to be watched for them."""
        return bool(self.layers) and not self._unconfirmed

    def confirm(self, module: nn.Module, result: Any) -> None:
        """A module gave `result`: if that is what its one layer-making operation made, its calls alone will do from now on."""
        last, self._last = self._last, None
        if last is None or last[0] is not module or last[2]() is not result:
            return
        self._unconfirmed.discard(last[1].site)
        known = self._by_module.get(id(module))
        if known is None or known[0]() is not module:
            known = self._by_module[id(module)] = (weakref.ref(module), [])
        if last[1] not in known[1]:
            known[1].append(last[1])

    def module_result(self, module: nn.Module, result: Any) -> None:
        """Measure what a known module gave, without having watched its operations."""
        known = self._by_module.get(id(module))
        if known is None or known[0]() is not module or not isinstance(result, Tensor):
            return
        call = self._passes.get(id(module), 0)
        self._passes[id(module)] = call + 1
        if call < len(known[1]):
            self.statistics.output(known[1][call], result)

    def operation(
        self,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        result: Any,
        module: nn.Module | None,
        path: str,
        describe: Callable[[Tensor], tuple[str, Any]],
        source: Callable[[], SourceLine | None],
    ) -> None:
        """Take the statistics of one operation if it makes a layer. `describe` names parameters, `source` finds the user's line."""
        output = next(tensors(result), None)
        if output is None or not output.dtype.is_floating_point:
            return
        kind, name = _kind(name, args, kwargs)
        unit_dim = self._unit_dim(name, kind, args, output)
        self._unit_dims[id(output)] = (weakref.ref(output), unit_dim)
        if kind is None:
            return
        library = module is not None and is_library_leaf(module)
        type_name = type(module).__name__ if library and module is not None else name
        call = self._calls.get((path, type_name), 0)
        self._calls[path, type_name] = call + 1
        if call >= MAX_CALLS:
            return
        site = Site(path, type_name, Role.OUTPUT, call)
        if site not in self.layers:
            weight, bias, fans = _parameters(name, args, kwargs, describe)
            units = int(output.shape[unit_dim]) if output.dim() else 1
            training = bool(getattr(module, "training", True))
            self.layers[site] = Layer(
                path, type_name, kind, len(self.layers), call, "", units, weight, bias, *fans, source(), training, name
            )
        probe = self._probes.get(site)
        if probe is None or (probe.kind, probe.name, probe.unit_dim) != (kind, name, unit_dim):
            probe = self._probes[site] = self._make(site, kind, name, unit_dim)
            self._unconfirmed.add(site)
        if library and module is not None:
            self._last = (module, probe, weakref.ref(output)) if self._last is None else None
        self.statistics.output(probe, output)

    def _make(self, site: Site, kind: Kind, name: str, unit_dim: int) -> Probe:
        recorder, gradient = self._recorder, Site(site.module, site.layer, Role.OUTPUT_GRADIENT, site.call)
        spread, samples, active = (recorder.rows(site, s) for s in (Stat.BATCH_STD, Stat.SAMPLES, Stat.UNIT_ACTIVE))
        moments, gradients = recorder.moment_rows(site), recorder.moment_rows(gradient)
        return Probe(site, kind, name, unit_dim, moments, gradients, spread, samples, active)

    def _unit_dim(self, name: str, kind: Kind | None, args: tuple[Any, ...], output: Tensor) -> int:
        """Which dimension counts units: channels of a convolution, features of a dense layer, inherited by what follows."""
        if "conv" in name:
            return 1 if output.dim() > 2 else 0
        if kind in (None, Kind.ACTIVATION, Kind.NORM, Kind.DROPOUT, Kind.OTHER):
            for tensor in tensors(args):
                known = self._unit_dims.get(id(tensor))
                if known is not None and known[0]() is tensor and tensor.dim() == output.dim():
                    return known[1]
        return 1 if output.dim() >= 4 and kind not in (Kind.LINEAR, Kind.SOFTMAX) else -1


def _kind(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Kind | None, str]:
    """The kind of layer that an operation makes, and the name to know it by; (None, name) when it makes none."""
    if name in ("clamp", "clip", "clamp_min") and _clips_at_zero(name, args, kwargs):
        return Kind.ACTIVATION, "relu"  # a rectifier written by hand
    if name in PRODUCTS:
        has_weight = any(isinstance(t, nn.Parameter) or (t.requires_grad and t.is_leaf) for t in tensors(args))
        return (Kind.LINEAR if has_weight else None), "matmul"
    return KINDS.get(name), name


def _clips_at_zero(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    low = kwargs.get("min", args[1] if len(args) > 1 else None)
    high = kwargs.get("max", args[2] if len(args) > 2 else None)
    return low == 0 and high is None if not isinstance(low, Tensor) else False


def _parameters(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], describe: Callable[[Tensor], tuple[str, Any]]
) -> tuple[str, str, tuple[int, int]]:
    """Names of weight and bias, and (fan in, fan out) of the weight, all empty where the operation has none."""
    held = [t for t in tensors((args, kwargs)) if isinstance(t, nn.Parameter) or (t.requires_grad and t.is_leaf)]
    weight = next((t for t in held if t.dim() >= 2), None)
    bias = next((t for t in held if t.dim() == 1), None)
    if weight is None:
        return "", "", (0, 0)
    first = next(tensors(args), None)
    weight_name, bias_name = describe(weight)[0], "" if bias is None else describe(bias)[0]
    return weight_name, bias_name, fans(name, weight, kwargs, weight is first)


def fans(name: str, weight: Tensor, kwargs: dict[str, Any], on_the_left: bool = False) -> tuple[int, int]:
    """(inputs of one unit, units that one input feeds), as torch.nn.init counts them for dense and convolution weights.

    A transposed convolution sums over its first dimension, and each output position sees 1/stride^d of the kernel. A weight used
    in a plain product `x @ W` has shape (inputs, units); `W @ x` has (units, inputs).
    """
    shape = tuple(weight.shape)
    if name == "matmul" and len(shape) == 2:
        return (shape[1], shape[0]) if on_the_left else (shape[0], shape[1])
    field = 1
    for size in shape[2:]:
        field *= size
    if "conv_transpose" in name:
        return shape[0] * field, shape[1] * field
    return shape[1] * field, shape[0] * field
