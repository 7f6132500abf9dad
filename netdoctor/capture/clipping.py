"""Gradient clipping: what was clipped, at which limit, and how large the norm was before."""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

from netdoctor.capture import statistics
from netdoctor.capture.training import TrainingTaps

Safely = Callable[[str, Any], Any]  # contains what it runs, and leaves it out where nothing is watched


def by_norm(training: TrainingTaps, safely: Safely) -> Callable[[Any], Any]:
    """What takes the place of the part of `clip_grad_norm_` that scales the gradients."""

    def clip(parameters: Any, limit: Any, norm: Any, norm_type: Any) -> None:
        whole = math.nan if statistics.is_shard(norm) else float(norm)
        training.clip(_listed(parameters), float(limit), whole, by_value=False, norm_type=float(norm_type))

    observed = safely("clipping", clip)

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def wrapper(parameters: Any, max_norm: Any, total_norm: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = parameters if isinstance(parameters, Tensor) else list(parameters)
            # clip_grad_norm_ calls this, and does not pass the kind of norm on.
            kind = sys._getframe(1).f_locals.get("norm_type", 2.0)
            observed(parameters, max_norm, total_norm, kind)
            return original(parameters, max_norm, total_norm, *args, **kwargs)

        return wrapper

    return make


def by_value(training: TrainingTaps, safely: Safely) -> Callable[[Any], Any]:
    """What takes the place of `clip_grad_value_`."""

    def clip(parameters: Any, limit: Any) -> None:
        training.clip(_listed(parameters), float(limit), math.nan, by_value=True)

    observed = safely("clipping", clip)

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def wrapper(parameters: Any, clip_value: Any, *args: Any, **kwargs: Any) -> Any:
            parameters = parameters if isinstance(parameters, Tensor) else list(parameters)
            observed(parameters, clip_value)
            return original(parameters, clip_value, *args, **kwargs)

        return wrapper

    return make


def _listed(parameters: Any) -> list[Tensor]:
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)
