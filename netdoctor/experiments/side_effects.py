"""What a treatment does besides: units that die or saturate in the treated copy alone, and a loss that rises again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from netdoctor.capture.functions import function_name
from netdoctor.capture.step import Replay
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.trend import judge_series

MOST = 0.5  # of the units of a layer: dead-relu's limit for an error
FEW = 0.2  # of the same in the control: under dead-relu's limit for a warning
_LEVELS = {"sigmoid": (0.018, 0.982), "tanh": (-0.999, 0.999)}  # as Stat.SATURATED_SHARE
_RELUS = frozenset({"relu", "relu6"})
Units = dict[str, tuple[float, float]]  # activation → (share of dead units, share of saturated values)


class _Looking(TorchFunctionMode):
    """Looks at what comes out of activation functions, and follows which module of the copy is running."""

    def __init__(self, bench: Bench) -> None:
        super().__init__()
        self.units: Units = {}
        self._stack: list[str] = []
        self._handles: list[Any] = []
        for top in bench.sandbox.modules():
            for path, module in top.named_modules():
                self._handles.append(module.register_forward_pre_hook(self._entering(path)))
                self._handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _entering(self, path: str) -> Any:
        return lambda *_: self._stack.append(path)

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def release(self) -> None:
        """Take the hooks off again."""
        for handle in self._handles:
            handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = function_name(func).rstrip("_")
        if isinstance(result, Tensor) and result.dim() > 1 and (name in _RELUS or name in _LEVELS):
            path = self._stack[-1] if self._stack else ""
            self.units.setdefault(f"{path or 'the model'} ({name})", _measured(name, result.detach()))
        return result


def _measured(name: str, values: Tensor) -> tuple[float, float]:
    along = 1 if values.dim() > 3 else values.dim() - 1
    rows = values.movedim(along, -1).flatten(0, -2)
    if name in _RELUS:
        return float((rows == 0).all(0).float().mean()), 0.0
    low, high = _LEVELS[name]
    return 0.0, float(((rows < low) | (rows > high)).float().mean())


def units(bench: Bench) -> Units:
    """How alive the activations of a copy are now, on the first captured batch; empty where it does not run any more."""
    looking = _Looking(bench)
    try:
        with looking:
            Replay(bench.sandbox.copies).loss(bench.iterations[0].backwards[0], bench.sandbox.edit)
    except Exception:  # an extra: the trial says what it says without it
        return {}
    finally:
        looking.release()
    return looking.units


def side_effects(
    control: Mapping[str, tuple[float, float]], treated: Mapping[str, tuple[float, float]], losses: Sequence[float]
) -> tuple[str, ...]:
    """What is wrong with the treated copy, and not with the control, in words with their numbers."""
    found = []
    for name, (dead, saturated) in treated.items():
        was_dead, was_saturated = control.get(name, (0.0, 0.0))
        if dead >= MOST and was_dead < FEW:
            found.append(f"{100 * dead:.0f} % of the units of {name} end dead")
        if saturated >= MOST and was_saturated < FEW:
            found.append(f"{100 * saturated:.0f} % of the values of {name} end saturated")
    if judge_series(losses).kind == "rises":
        found.append("its loss rises in the end")
    return tuple(found[:3])
