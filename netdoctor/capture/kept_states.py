"""States of models that were kept as references to the live weights, and are used when these are others."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from netdoctor.capture.identity import ByIdentity
from netdoctor.capture.patching import Patches
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.source import source_line, user_line, user_position
from netdoctor.capture.statistics import is_shard

KIND, TAKEN = (
    "kept state",
    "state taken",
)  # of the events: where a state is used, where it was taken; both tell that step
PUT_BACK = "state put back"  # another state than that which the model holds was loaded on the way
_MOST = 64  # states that are alive at the same time
_ENDS, _BETWEEN = 4, 8  # tensors of a state, at either end and in all, that tell it: one may be taken in every step
_ENTRIES = 64  # of what is saved, that are looked at


@dataclass(slots=True)
class _Taken:
    """One call of `state_dict()`: when and where, and a few of its tensors with how often each had been written to by then."""

    owner: weakref.ref[nn.Module]
    step: int
    tick: int
    position: tuple[str, int]
    tensors: list[tuple[weakref.ref[Tensor], int]]
    told: bool = False

    def alive(self) -> bool:
        return any(ref() is not None for ref, _ in self.tensors)

    def among(self, given: set[int]) -> bool:
        """Whether some of these tensors (by id) are its own."""
        return any((tensor := ref()) is not None and id(tensor) in given for ref, _ in self.tensors)

    def written(self) -> bool:
        """Whether something was written into the tensors since. A detached tensor counts with the parameter that it refers to."""
        return any((tensor := ref()) is not None and tensor._version != was for ref, was in self.tensors)


class KeptStates:
    """Remembers the states that modules gave out, and holds none of them. `fused`: whether an optimizer steps without
    counting what it writes to, as fused ones do; then that it stepped has to do."""

    def __init__(self, recorder: Recorder, fused: Callable[[], bool]) -> None:
        self._recorder = recorder
        self._fused = fused
        self._taken: list[_Taken] = []
        self._last: ByIdentity[nn.Module, _Taken] = ByIdentity()
        self._loaded: ByIdentity[nn.Module, int] = ByIdentity()  # when another state than its own was last loaded
        self._tick = 0

    def install(self, patches: Patches, safely: Callable[[str, Any], Any]) -> None:
        """Watch `state_dict`, `load_state_dict` and `torch.save`; `safely` contains our own work."""
        take, load, save = (safely("kept states", work) for work in (self._take, self._load, self._save))

        def giving(original: Any) -> Any:
            @functools.wraps(original)
            def state_dict(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
                state = original(module, *args, **kwargs)
                if "destination" not in kwargs and not args:  # else a part of a model's
                    take(module, state)
                return state

            return state_dict

        def loading(original: Any) -> Any:
            @functools.wraps(original)
            def load_state_dict(module: nn.Module, state_dict: Any, *args: Any, **kwargs: Any) -> Any:
                load(module, state_dict)
                return original(module, state_dict, *args, **kwargs)

            return load_state_dict

        def saving(original: Any) -> Any:
            @functools.wraps(original)
            def wrapper(obj: Any, *args: Any, **kwargs: Any) -> Any:
                save(obj)
                return original(obj, *args, **kwargs)

            return wrapper

        patches.wrap(nn.Module, "state_dict", giving)
        patches.wrap(nn.Module, "load_state_dict", loading)
        patches.wrap(torch, "save", saving)

    def _take(self, module: nn.Module, state: Any) -> None:
        found = list(_tensors(_some(state)))
        self._tick += 1
        kept = [(weakref.ref(tensor), tensor._version) for tensor in found]
        taken = _Taken(weakref.ref(module), self._recorder.step, self._tick, user_position(), kept)
        self._taken = [t for t in self._taken if t.alive()][1 - _MOST :]
        self._taken.append(taken)
        self._last[module] = taken

    def _load(self, module: nn.Module, state: Any) -> None:
        self._tick += 1
        given = list(_tensors(state))
        if not given:
            return
        if not _is_own(module, state):
            self._loaded[module] = self._tick
            taken = self._whole(state)
            self._used(taken, "load elsewhere")
            if taken is None and self._recorder.step:
                self._recorder.count(PUT_BACK, self._recorder.step, source=user_line())
            return
        taken = self._of(given) or self._last.get(module)  # kept through `detach`, which makes tensors of their own
        between = taken is not None and (self._loaded.get(module) or 0) > taken.tick
        self._used(taken, "load", between)

    def _save(self, saved: Any) -> None:
        entries = list(saved.values())[:_ENTRIES] if isinstance(saved, Mapping) else []
        for state in [saved, *entries]:
            self._used(self._whole(state), "save")

    def _whole(self, state: Any) -> _Taken | None:
        """The taking of a state, all of whose tensors are still those of the module that gave it."""
        taken = self._of(_tensors(state))
        owner = None if taken is None else taken.owner()
        return taken if owner is not None and _is_own(owner, state) else None

    def _of(self, tensors: Iterable[Tensor]) -> _Taken | None:
        """The state that these were taken in, the newest where there are several."""
        given = {id(tensor) for tensor in tensors}
        return next((taken for taken in reversed(self._taken) if given and taken.among(given)), None)

    def _used(self, taken: _Taken | None, how: str, swapped: bool = False) -> None:
        """Tell of a state that is used when it is another than it was; `swapped`: the model has loaded another one since."""
        if taken is None:
            return
        step = self._recorder.step
        changed = taken.written() or not taken.alive() or (step > taken.step and self._fused())
        if not changed or not (step > taken.step or swapped):
            return
        how = how if step > taken.step else "swap"
        if not taken.told:
            taken.told = True
            self._recorder.count(TAKEN, taken.step, value=taken.step, source=source_line(*taken.position))
        self._recorder.count(KIND, step, how, taken.step, user_line())


def _some(state: Any) -> dict[str, Any]:
    """A few entries from all over a state."""
    entries = list(state.items()) if isinstance(state, Mapping) else []
    if len(entries) <= 2 * _ENDS + _BETWEEN:
        return dict(entries)
    middle = entries[_ENDS:-_ENDS]
    return dict([*entries[:_ENDS], *middle[:: -(-len(middle) // _BETWEEN)], *entries[-_ENDS:]])


def _tensors(state: Any) -> Iterable[Tensor]:
    """The tensors of a state that hold anything here."""
    for value in state.values() if isinstance(state, Mapping) else ():
        if isinstance(value, Tensor) and _is_here(value):
            yield value


def _is_here(tensor: Tensor) -> bool:
    plain = tensor.layout is torch.strided and not (tensor.is_meta or is_lazy(tensor) or is_shard(tensor))
    return plain and not tensor.is_inference() and tensor.numel() > 0


def _is_own(module: nn.Module, state: Mapping[str, Any]) -> bool:
    """Whether every tensor of a state is the module's own of that name: the same numbers in the same memory."""
    named = chain(module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False))
    own = {name: tensor for name, tensor in named if not is_lazy(tensor)}
    for name, value in state.items():
        if not isinstance(value, Tensor) or value.numel() == 0:
            continue
        mine = own.get(name)
        if mine is None or not (_is_here(mine) and _is_here(value)):
            return False
        if mine.data_ptr() != value.data_ptr() or mine.shape != value.shape or mine.dtype != value.dtype:
            return False
    return True
