"""Treatments between the layers: other activations, normalisation, shortcuts, and a signal of unit scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import Replay, refuse_overwritten
from netdoctor.checks.units.hidden import is_hidden
from netdoctor.experiments.initialisation import WEIGHT_LAYERS, fan_in
from netdoctor.experiments.treatments.operations import Exchange, by, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Treatment
from netdoctor.recording import Kind, Layer

_SQUASHING = frozenset({"sigmoid", "tanh", "hardtanh", "hardsigmoid", "softsign"})
_RELUS = frozenset({"relu", "relu6", "threshold"})
_LISTED = 4  # factors in a sentence
_ROUNDS = 4  # of setting backward scales: each changes what the next sees
_SLOPE = 0.01  # of LeakyReLU, as in the fix's code
_NORMS = frozenset({"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"})


# --- activations -----------------------------------------------------------------------------------------------------


def _leaky(values: Tensor) -> Tensor:
    return F.leaky_relu(values, _SLOPE)


def leaky_relu(case: Case) -> Treatment | None:
    """LeakyReLU in place of the finding's ReLUs."""
    return _activation(case, case.layers(), _RELUS, _leaky)


def relu_here(case: Case) -> Treatment | None:
    """ReLU in place of the finding's saturated functions."""
    return _activation(case, case.layers(), _SQUASHING, F.relu)


def relu_for_sigmoid(case: Case) -> Treatment | None:
    """ReLU in place of every hidden sigmoid or tanh, and He initialisation of the dense layers and convolutions."""
    hidden = [layer for layer in case.recording.of_kind(Kind.ACTIVATION) if is_hidden(case.recording, layer)]
    swapped = _activation(case, hidden, _SQUASHING, F.relu)
    if swapped is None:
        return None
    linear = case.recording.of_kind(Kind.LINEAR)[:-1]

    def apply(bench: Bench) -> None:
        swapped.apply(bench)
        for module in case.modules(bench, linear):
            if isinstance(module, WEIGHT_LAYERS) and isinstance(module.weight, Tensor):
                std = math.sqrt(2 / max(1, fan_in(module, module.weight)))
                nn.init.normal_(module.weight, std=std, generator=torch.Generator().manual_seed(0))

    return Treatment(apply)


def add_activation(case: Case) -> Treatment | None:
    """A ReLU behind each of the finding's layers."""
    layers = [layer for layer in case.layers() if layer.kind is Kind.LINEAR]

    def apply(bench: Bench) -> None:
        for module in case.modules(bench, layers):
            change_output(module, lambda _, out: torch.relu(out))

    return Treatment(apply) if layers else None


def _activation(
    case: Case, layers: Sequence[Layer], names: frozenset[str], function: Callable[[Tensor], Tensor]
) -> Treatment | None:
    wanted = [layer for layer in layers if (layer.function or layer.type.lower()) in names]
    return _exchanged(case, wanted, lambda layer: frozenset({layer.function or layer.type.lower()}), by(function))


def _exchanged(
    case: Case, layers: Sequence[Layer], names: Callable[[Layer], frozenset[str]], change: Callable[..., Any]
) -> Treatment | None:
    if not layers:
        return None

    def apply(bench: Bench) -> None:
        exchanges = []
        for layer in layers:
            original = case.places.module(layer.path)
            module = None if original is None else bench.copy_of(original)
            exchanges += [Exchange(module, names(layer), change)]
            if not layer.path:  # the model itself, or the loop around it
                exchanges += [Exchange(None, names(layer), change)]
        exchange_operations(bench, exchanges)

    return Treatment(apply)


# --- norms and shortcuts ---------------------------------------------------------------------------------------------


def scale_input(case: Case) -> Treatment | None:
    """A LayerNorm before the finding's activations."""

    def change(func: Any, args: Any, kwargs: Any) -> Any:
        values = args[0] if args else kwargs.pop("input")
        return func(normalised(values), *args[1:], **kwargs)

    wanted = [layer for layer in case.layers() if layer.kind in (Kind.ACTIVATION, Kind.SOFTMAX)]
    return _exchanged(case, wanted, lambda layer: frozenset({layer.function or layer.type.lower()}), change)


def normalised(values: Tensor) -> Tensor:
    """LayerNorm without its weights: over features for (batch, ..., features), per sample for images (4-D and more)."""
    if values.dim() < 2:
        return values
    return F.layer_norm(values, values.shape[1:] if values.dim() > 3 else values.shape[-1:])


def add_normalisation(case: Case) -> Treatment | None:
    """A LayerNorm (without weights, which start as the identity) behind every dense layer and convolution but the last."""
    return _behind_layers(case, lambda _, out: normalised(out))


def add_shortcuts(case: Case) -> Treatment | None:
    """An identity shortcut around every dense layer and convolution that keeps its input's shape."""
    return _behind_layers(case, lambda given, out: out + given if given.shape == out.shape else out)


def _behind_layers(case: Case, change: Callable[[Tensor, Tensor], Tensor]) -> Treatment | None:
    layers = [layer for layer in case.recording.of_kind(Kind.LINEAR)[:-1] if layer.weight]

    def apply(bench: Bench) -> None:
        for module in case.modules(bench, layers):
            change_output(module, change)

    return Treatment(apply) if layers else None


def change_output(module: nn.Module, change: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Make a copied module's call return `change(input, output)`. The module stays: the replay counts modules."""
    forward = module.forward

    def changed(given: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = forward(given, *args, **kwargs)
        return change(given, out) if isinstance(out, Tensor) else out

    vars(module)["forward"] = changed


# --- scale -----------------------------------------------------------------------------------------------------------


def rescale(case: Case) -> Treatment | None:
    """A constant factor behind each of the finding's layers but the last, so that the signal keeps its scale.

    For activations the factors make each output's root mean square 1 in the first batch (Mishkin and Matas 2016, LSUV,
    with factors in place of weights); for gradients they make that with respect to each input the same.
    """
    layers = [layer for layer in case.layers() if layer.kind is Kind.LINEAR]
    backward = "gradients" in case.finding.check
    if len(layers) < 2:
        return None

    def apply(bench: Bench) -> None:
        modules = list(case.modules(bench, layers))
        factors = dict.fromkeys(modules, 1.0)
        for module in modules[:-1]:
            change_output(module, partial(_scaled, factors, module))
        if backward:
            _equal_gradients(bench, modules, factors)
        else:
            _unit_outputs(bench, modules[:-1], factors)
        names = [layer.path for layer in layers]
        told = [f"{factors[m]:.2g} behind {name}" for m, name in zip(modules, names, strict=False) if factors[m] != 1.0]
        bench.notes.append("a factor of " + ", ".join(told[:_LISTED]) + (" and so on" if len(told) > _LISTED else ""))

    return Treatment(apply)


def _scaled(factors: dict[nn.Module, float], module: nn.Module, _: Tensor, out: Tensor) -> Tensor:
    return out * factors[module]


def _unit_outputs(bench: Bench, modules: list[nn.Module], factors: dict[nn.Module, float]) -> None:
    """One pass: each layer sees inputs that are scaled already."""
    handles = []

    def look(module: nn.Module, _: Any, out: Any) -> Any:
        scale = _rms(out.detach()) if isinstance(out, Tensor) else math.nan
        if factors[module] != 1.0 or not math.isfinite(scale) or scale == 0:
            return None
        factors[module] = 1 / scale
        return out / scale

    try:
        handles = [module.register_forward_hook(look) for module in modules]
        _first_loss(bench)
    finally:
        for handle in handles:
            handle.remove()


def _equal_gradients(bench: Bench, modules: list[nn.Module], factors: dict[nn.Module, float]) -> None:
    """Several passes: a factor changes what comes after it as well."""
    for _ in range(_ROUNDS):
        scales = _gradients(bench, modules)
        known = [module for module in modules if 0 < scales.get(module, math.nan) < math.inf]
        for module, following in pairwise(known):
            factors[module] *= scales[following] / scales[module]


def _gradients(bench: Bench, modules: list[nn.Module]) -> dict[nn.Module, float]:
    """Root mean square of the gradient with respect to what goes into each layer."""
    found: dict[nn.Module, float] = {}
    handles = []

    def look(module: nn.Module, given: Any, _: Any) -> None:
        values = given[0] if given else None
        if isinstance(values, Tensor) and values.requires_grad:
            values.register_hook(lambda gradient: found.update({module: _rms(gradient)}))  # returns None: kept as it is

    try:
        handles = [module.register_forward_hook(look) for module in modules]
        torch.autograd.backward(_first_loss(bench))
    finally:
        for handle in handles:
            handle.remove()
    for parameter in bench.sandbox.trainable():
        parameter.grad = None
    return found


def _first_loss(bench: Bench) -> Tensor:
    backward = bench.iterations[0].backwards[0]
    refuse_overwritten(backward)
    return Replay(bench.sandbox.copies).loss(backward)


def _rms(values: Tensor) -> float:
    return float(values.double().square().mean().sqrt())


TREATMENTS = {
    "activation": add_activation,
    "leaky-relu": leaky_relu,
    "relu": relu_here,
    "relu-for-sigmoid": relu_for_sigmoid,
    "scale-input": scale_input,
    "add-normalisation": add_normalisation,
    "add-shortcuts": add_shortcuts,
    "rescale-between-layers": rescale,
}
