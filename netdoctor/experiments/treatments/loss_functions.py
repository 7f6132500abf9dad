"""Another loss function, or another form of what it is given. Both arms are told in the loss that is meant."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from netdoctor.experiments.treatments.answers import lost_logarithms, several_labels, squashed_twice
from netdoctor.experiments.treatments.operations import Change, Exchange, exchange_operations, passing
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Measure, Treatment, first_argument

_LOSSES = (
    "cross_entropy nll_loss binary_cross_entropy binary_cross_entropy_with_logits mse_loss l1_loss smooth_l1_loss "
    "huber_loss kl_div gaussian_nll_loss poisson_nll_loss"
)
LOSSES = frozenset(_LOSSES.split())
_SOFTMAXES = frozenset({"softmax", "log_softmax", "softmin"})
_NAMED = {
    "cross_entropy": ("CrossEntropyLoss", "cross_entropy"),
    "binary_cross_entropy_with_logits": ("BCEWithLogitsLoss", "binary_cross_entropy_with_logits"),
    "mse_loss": ("MSELoss", "mse_loss"),
}
Loss = Callable[[Any, Any, Any], Tensor]  # (original function, args, kwargs) → the loss that is meant


def _target(args: Any, kwargs: Any) -> Tensor:
    found = args[1] if len(args) > 1 else kwargs["target"]
    assert isinstance(found, Tensor)
    return found


def _classes(_: Any, args: Any, kwargs: Any) -> Tensor:
    scores, target = first_argument(args, kwargs), _target(args, kwargs)
    if target.is_floating_point() and target.shape != scores.shape:
        target = target.reshape(scores.shape[:1] + scores.shape[2:])
    return F.cross_entropy(scores, target if target.shape == scores.shape else target.long())


def _labels(_: Any, args: Any, kwargs: Any) -> Tensor:
    scores, target = first_argument(args, kwargs), _target(args, kwargs)
    return F.binary_cross_entropy_with_logits(scores, target.to(scores.dtype).reshape(scores.shape))


def _probabilities(_: Any, args: Any, kwargs: Any) -> Tensor:
    given, target = first_argument(args, kwargs), _target(args, kwargs)
    return F.binary_cross_entropy(given, target.to(given.dtype))


def _rates(func: Any, args: Any, kwargs: Any) -> Tensor:
    made = func(*args[:2], **{**kwargs, "log_input": False})
    assert isinstance(made, Tensor)
    return made


def _numbers(_: Any, args: Any, kwargs: Any) -> Tensor:
    prediction, target = first_argument(args, kwargs), _target(args, kwargs)
    return F.mse_loss(prediction, target.to(prediction.dtype).reshape(prediction.shape))


def _log_first(func: Any, args: Any, kwargs: Any) -> Tensor:
    """The loss of the log-softmax of what it was given."""
    scores = first_argument(args, kwargs)
    logs = torch.log_softmax(scores, 1 if scores.dim() > 1 else 0)
    given = (logs, *args[1:]) if args else ()
    made = func(*given, **({} if args else {"input": logs}), **{k: v for k, v in kwargs.items() if k != "input"})
    assert isinstance(made, Tensor)
    return made


_FUNCTIONS: dict[str, Loss] = {
    "cross_entropy": _classes,
    "binary_cross_entropy_with_logits": _labels,
    "mse_loss": _numbers,
}


def fitting_loss(case: Case) -> Treatment | None:
    """The loss that the fix names."""
    says = case.fix.says + case.fix.code
    names = [name for name, words in _NAMED.items() if re.search(rf"\b({'|'.join(words)})\b", says)]
    several = case.finding.check == "wrong-loss" and names[:1] == ["binary_cross_entropy_with_logits"]
    return _meant(case, _FUNCTIONS[names[0]], several_labels(case.step) if several else None) if names else None


def loss_for_logits(case: Case) -> Treatment | None:
    """The same loss for raw scores."""
    binary = case.finding.location.operation == "binary_cross_entropy"
    return _meant(case, _labels if binary else _classes)


def loss_for_probabilities(case: Case) -> Treatment:
    """binary_cross_entropy in place of the one for raw scores; what it measures in the control arm are probabilities."""
    return _meant(case, _probabilities, squashed_twice(case.step))


def loss_of_rates(case: Case) -> Treatment:
    """The Poisson loss of rates; of what the control arm is given it is measured too."""
    return _meant(case, _rates)


def map_labels(case: Case) -> Treatment | None:
    """The targets as the fix's code makes them, for the same loss."""
    name, _, text = case.fix.code.partition(" = ")
    return _meant(case, partial(_mapped, text)) if name == "target" and text else None


def _mapped(text: str, func: Any, args: Any, kwargs: Any) -> Tensor:
    """The loss with other targets; `text` is an expression of netdoctor's own in `target`."""
    target = eval(text, {"target": _target(args, kwargs)})
    named = {key: value for key, value in kwargs.items() if key != "target"}
    made = func(args[0], target, *args[2:], **named) if args else func(target=target, **named)
    assert isinstance(made, Tensor)
    return made


def fused_log(case: Case) -> Treatment | None:
    """log_softmax or logsigmoid in one step: the first function becomes the whole, the log after it passes it on."""
    binary = case.fix.treatment == "logsigmoid"

    def apply(bench: Bench) -> None:
        whole = (lambda _, args, kwargs: F.logsigmoid(first_argument(args, kwargs))) if binary else _log_softmax
        first = frozenset({"sigmoid" if binary else "softmax"})
        logs = _exchanges(case, bench, frozenset({"log"}), passing)
        exchange_operations(bench, [*_exchanges(case, bench, first, whole), *logs])

    return Treatment(apply, measure=lost_logarithms())


def log_softmax_first(case: Case) -> Treatment | None:
    """log_softmax in place of the softmax before the loss; before the loss itself where there is none."""
    if case.finding.check == "softmax-then-log":
        return fused_log(case)
    graph = case.graph
    if graph is not None and any(o.name == "softmax" for o in graph.loss_operations()[:6]):
        return _everywhere(case, frozenset({"softmax"}), _log_softmax)
    return _meant(case, _log_first)


def over_classes(case: Case) -> Treatment | None:
    """The softmax along the classes: the last dimension of a matrix, the second of anything larger, or the last where it took
    the second."""
    return _everywhere(case, _SOFTMAXES, _other_dimension)


def _log_softmax(_: Any, args: Any, kwargs: Any) -> Tensor:
    values = first_argument(args, kwargs)
    dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
    return torch.log_softmax(values, -1 if dim is None else dim)


def _other_dimension(func: Any, args: Any, kwargs: Any) -> Any:
    values = first_argument(args, kwargs)
    named = {key: value for key, value in kwargs.items() if key not in ("dim", "input")}
    given, dim = kwargs.get("dim", args[1] if len(args) > 1 else 0), 1 if values.dim() > 1 else 0
    return func(values, dim=-1 if given == dim else dim, **named)


def _exchanges(case: Case, bench: Bench, names: frozenset[str], change: Change) -> list[Exchange]:
    """The change in the loop, and in the module that the finding points to."""
    original = case.places.module(case.finding.location.module or "")
    module = None if original is None else bench.copy_of(original)
    inside = [] if module is None else [Exchange(module, names, change)]
    return [Exchange(None, names, change), *inside]


def _everywhere(case: Case, names: frozenset[str], change: Change) -> Treatment:
    return Treatment(lambda bench: exchange_operations(bench, _exchanges(case, bench, names, change)))


def _meant(case: Case, right: Loss, measure: Measure | None = None) -> Treatment:
    """The right loss in the treated arm; the control trains with its own, and the right one is noted beside it."""

    def beside(bench: Bench) -> None:
        def noting(func: Any, args: Any, kwargs: Any) -> Any:
            bench.measured.append(float(right(func, args, kwargs).detach()))
            return func(*args, **kwargs)

        exchange_operations(bench, _exchanges(case, bench, LOSSES, noting))

    apply = partial(_apply, case, right)
    return Treatment(apply, beside=beside, measure=measure)


def _apply(case: Case, right: Loss, bench: Bench) -> None:
    exchange_operations(bench, _exchanges(case, bench, LOSSES, right))


TREATMENTS: dict[str, Maker] = {
    "fitting-loss": fitting_loss,
    "loss-for-logits": loss_for_logits,
    "loss-for-probabilities": loss_for_probabilities,
    "loss-of-rates": loss_of_rates,
    "map-labels": map_labels,
    "logsigmoid": fused_log,
    "log-softmax": log_softmax_first,
    "softmax-over-classes": over_classes,
}
