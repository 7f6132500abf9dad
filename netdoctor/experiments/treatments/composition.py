"""Treatments of how a model is put together: tied weights, norms, dropout, directions in time, derivatives by hand."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.functions import function_name, plain
from netdoctor.capture.patching import FUNCTIONS, Patches, next_apply
from netdoctor.checks.structure.batchnorm_tiny_batch import groups
from netdoctor.experiments import company, custom_backward
from netdoctor.experiments.leakage import positions_of, samples_of
from netdoctor.experiments.treatments.operations import Exchange, exchange_on_line, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment, first_argument
from netdoctor.experiments.unblocking import DROPOUTS, NoDropout

DRIFT = 0.01  # %, as broken-weight-tying asks
APART = 0.1  # %, as cross-sample-leakage asks
OFF = 1.0  # %, as wrong-custom-backward asks
ZEROS = 1.0  # %: what is drawn from real numbers is hardly ever zero
SAME_SEED = (1, 1)  # only the company differs
_RATE = re.compile(r"nn\.Dropout\(([\d.]+)\)")
_RESHAPES = frozenset({"view", "reshape", "flatten", "unflatten"})
_SOFTMAXES = frozenset({"softmax", "log_softmax", "normalize"})  # all that take the dimension they work along


# --- weights ---------------------------------------------------------------------------------------------------------


def tie_weights(case: Case) -> Treatment | None:
    """The first of the finding's two parameters is the second one, in the copy."""
    pair = [_held(case, name) for name in case.finding.places[:2]]
    if len(pair) < 2 or pair[0] is None or pair[1] is None:
        return None
    (module, name), (other, known) = pair[0], pair[1]

    def apply(bench: Bench) -> None:
        setattr(bench.copy_of(module), name, getattr(bench.copy_of(other), known))

    def apart(bench: Bench) -> float:
        one, two = (getattr(bench.copy_of(m), n).detach().double() for m, n in ((module, name), (other, known)))
        return 100 * float((one - two).norm() / two.norm().clamp_min(1e-12))

    return Treatment(apply, measure=Measure("the two weights are apart, of their size, by", apart, DRIFT, "%"))


def _held(case: Case, name: str) -> tuple[nn.Module, str] | None:
    """(module, attribute) of a parameter's name."""
    path, _, attribute = name.rpartition(".")
    module = case.places.module(path)
    return (module, attribute) if module is not None and attribute in module._parameters else None


# --- norms and dropout -----------------------------------------------------------------------------------------------


def group_norm(_: Case) -> Treatment:
    """GroupNorm, with the same weights, in place of every BatchNorm that trains."""

    def apply(bench: Bench) -> None:
        norms = [child for child in _children(bench) if isinstance(child, _BatchNorm)]
        exchange_operations(bench, [Exchange(norm, frozenset({"batch_norm"}), _by_groups) for norm in norms])

    def mixed(bench: Bench) -> float:
        with NoDropout():
            return 100 * company.change(bench.sandbox.copies, bench.iterations[0], SAME_SEED)

    quantity = "what a sample gets in training changes, when the others of its batch change, by"
    return Treatment(apply, measure=Measure(quantity, mixed, APART, "%"))


def _by_groups(func: Any, args: Any, kwargs: Any) -> Any:
    named = dict(zip(("input", "mean", "var", "weight", "bias", "training"), args, strict=False)) | kwargs
    if not named.get("training", False):
        return func(*args, **kwargs)
    given: Tensor = named["input"]
    channels = given.shape[1]
    return F.group_norm(given, groups(channels), named.get("weight"), named.get("bias"))


def _children(bench: Bench) -> Iterator[nn.Module]:
    return (child for top in bench.sandbox.modules() for child in top.modules())


def dropout_rate(case: Case) -> Treatment | None:
    """The finding's dropouts at the rate of the fix's code; none where that is an identity."""
    found = _RATE.search(case.fix.code)
    if found is None and "Identity" not in case.fix.code:
        return None
    rate = 0.0 if found is None else float(found[1])
    modules = [case.places.module(name) for name in case.finding.places or (case.finding.location.module or "",)]

    def apply(bench: Bench) -> None:
        copies = [bench.copy_of(module) for module in modules if module is not None]
        change = partial(_dropping, rate)
        exchange_operations(bench, [Exchange(copied, DROPOUTS, change) for copied in copies if copied is not None])

    return Treatment(apply, measure=Measure("predictions that are zeros", _zeros, ZEROS, "%") if rate == 0 else None)


def _zeros(bench: Bench) -> float:
    last = list(company.outputs(bench.sandbox.copies, bench.iterations[0], SAME_SEED[0]))[-1:]
    return 100 * float((last[0] == 0).double().mean()) if last else float("nan")


def _dropping(rate: float, func: Any, args: Any, kwargs: Any) -> Any:
    if len(args) > 1:
        return func(args[0], rate, *args[2:], **kwargs)
    return func(*args, **{**kwargs, "p": rate})


def without_norm(case: Case) -> Treatment | None:
    """What goes into the finding's norm in place of what comes out of it."""
    original = case.places.module(case.finding.location.module or "")
    if not isinstance(original, nn.LayerNorm):
        return None

    def apply(bench: Bench) -> None:
        module = bench.copy_of(original)
        if module is not None:
            module.register_forward_hook(lambda _, given, result: given[0])

    return Treatment(apply)


# --- time and batch --------------------------------------------------------------------------------------------------


def one_direction(case: Case) -> Treatment | None:
    """Zeros in place of what a recurrent layer reads backwards: the shapes of all that follows stay."""
    original = case.places.module(case.finding.location.module or "")
    if not isinstance(original, nn.RNNBase) or not original.bidirectional or original.num_layers > 1:
        return None  # a second layer reads both directions of the first

    def apply(bench: Bench) -> None:
        module: Any = bench.copy_of(original)
        module.register_forward_hook(_forward_only)
        bench.notes.append("zeros in place of the backward direction")

    return Treatment(apply, holds=lambda bench: not positions_of(bench.sandbox.copies, case.step))


def _forward_only(module: nn.RNNBase, _: Any, result: Any) -> Any:
    output, state = result
    if not isinstance(output, Tensor):
        raise LookupError("packed sequences are left alone")
    width = output.shape[-1] // 2
    return torch.cat([output[..., :width], torch.zeros_like(output[..., width:])], -1), state


def pad_left(case: Case) -> Treatment | None:
    """All padding that keeps the length, on the left side: that of the convolutions over time, or what the script pads with."""

    def apply(bench: Bench) -> None:
        if case.finding.location.operation == "pad":
            exchange_operations(
                bench, [Exchange(child, frozenset({"pad"}), _to_the_left) for child in (None, *_children(bench))]
            )
            return
        wanted = [child for child in _children(bench) if isinstance(child, nn.Conv1d) and _keeps_length(child)]
        if not wanted:
            raise LookupError("there is no convolution over time that keeps its length")
        for child in wanted:
            total = child.dilation[0] * (child.kernel_size[0] - 1)
            child.padding = (0,)
            child.register_forward_pre_hook(partial(_padded, total))

    return Treatment(apply, holds=lambda bench: not positions_of(bench.sandbox.copies, case.step))


def _to_the_left(func: Any, args: Any, kwargs: Any) -> Any:
    amounts = list(kwargs.get("pad", args[1] if len(args) > 1 else ()))
    if len(amounts) != 2:  # of an image, or of more than its positions
        return func(*args, **kwargs)
    rest = {key: value for key, value in kwargs.items() if key not in ("input", "pad")}
    return func(first_argument(args, kwargs), [sum(amounts), 0], *args[2:], **rest)


def _keeps_length(conv: nn.Conv1d) -> bool:
    total = conv.dilation[0] * (conv.kernel_size[0] - 1)
    both = conv.padding == "same" or (not isinstance(conv.padding, str) and 2 * conv.padding[0] == total)
    return both and total > 0 and conv.stride[0] == 1 and conv.padding_mode == "zeros"


def _padded(total: int, _: nn.Module, given: Any) -> Any:
    return (F.pad(given[0], (total, 0)), *given[1:])


def keep_samples_apart(case: Case) -> Treatment | None:
    """The finding's softmax over the last dimension; its reshape as a transpose or flatten that gives the same shape."""
    place = case.finding.location
    if not place.file or place.line is None:
        return None
    line = (place.file, place.line)
    names, change = (_RESHAPES, _in_order) if place.operation in _RESHAPES else (_SOFTMAXES, _over_the_last)
    if place.operation not in names:
        return None
    return Treatment(
        lambda bench: exchange_on_line(bench, names, change, line),
        holds=lambda bench: not samples_of(case.recording, bench.sandbox.copies, case.step),
    )


def _over_the_last(func: Any, args: Any, kwargs: Any) -> Any:
    named = {key: value for key, value in kwargs.items() if key not in ("input", "dim")}
    power = args[1:2] if plain(function_name(func)) == "normalize" else ()  # of the others the dimension comes second
    return func(first_argument(args, kwargs), *power, dim=-1, **named)


def _in_order(func: Any, args: Any, kwargs: Any) -> Any:
    given: Tensor = first_argument(args, kwargs)
    result = func(*args, **kwargs)
    for one in range(given.dim()):
        for other in range(one + 1, given.dim()):
            if given.shape[one] != given.shape[other] and given.transpose(one, other).shape == result.shape:
                return given.transpose(one, other)
    rows = given.shape[0]
    if result.dim() > 1 and rows != result.shape[0] and result.numel() == given.numel():
        return given.reshape(rows, -1) if result.shape == (rows, result.numel() // rows) else result
    return result


# --- derivatives by hand ---------------------------------------------------------------------------------------------


def derive_again(case: Case) -> Treatment | None:
    """The forward pass of the finding's autograd function, with the derivative left to autograd."""
    name = case.finding.places[0] if case.finding.places else ""
    if not name:
        return None

    def apply(bench: Bench) -> None:
        patches = Patches()
        patches.wrap(FUNCTIONS, "apply", partial(_by_autograd, name))
        bench.stack.callback(patches.remove)
        bench.notes.append(f"the derivative of {name}.forward taken by autograd")

    def off(_: Bench) -> float:
        return 100 * custom_backward.error_of(case.step, name)

    return Treatment(apply, measure=Measure(f"the gradient of {name} is off by", off, OFF, "%"))


def _by_autograd(name: str, original: Any) -> Any:
    inner = next_apply(original)

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if cls.__name__ != name or cls.__module__.startswith("torch."):
            return inner(cls, *args, **kwargs)
        if cls.setup_context is not torch.autograd.Function.setup_context:
            return cls.forward(*args, **kwargs)
        return cls.forward(_Context(args), *args, **kwargs)

    return classmethod(apply)


class _Context:
    """What a forward pass may ask of the context that it is given."""

    def __init__(self, args: Any) -> None:
        self.needs_input_grad = tuple(isinstance(a, Tensor) and a.requires_grad for a in args)
        self.saved_tensors: tuple[Any, ...] = ()

    def save_for_backward(self, *saved: Any) -> None:
        """Keep what backward would need."""
        self.saved_tensors = saved

    def save_for_forward(self, *_: Any) -> None:
        """Of no use here."""

    def mark_dirty(self, *_: Any) -> None:
        """Autograd sees by itself what is changed in place."""

    def mark_non_differentiable(self, *_: Any) -> None:
        """Autograd sees by itself what has no derivative."""

    def set_materialize_grads(self, _: bool) -> None:
        """There is no backward by hand."""


TREATMENTS: dict[str, Maker] = {
    "tie-weights": tie_weights,
    "groupnorm": group_norm,
    "dropout-rate": dropout_rate,
    "without-norm": without_norm,
    "one-direction": one_direction,
    "pad-left": pad_left,
    "keep-samples-apart": keep_samples_apart,
    "derive-again": derive_again,
}
