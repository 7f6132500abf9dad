"""`module.requires_grad = ...`: an attribute that torch's modules do not have, which says nothing to their parameters."""

from __future__ import annotations

import functools
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import nn

from netdoctor.capture.identity import ByIdentity
from netdoctor.capture.naming import SEPARATOR, ModuleNames
from netdoctor.capture.patching import Patches
from netdoctor.capture.recorder import Recorder
from netdoctor.capture.source import is_user_file, source_line
from netdoctor.recording import Event, SourceLine

KIND = "module requires_grad"  # of the events
NAME = "requires_grad"
MOST = 256  # assignments that are kept: a loop over `modules()` makes one for every module
_MISSING = object()


@dataclass(slots=True)
class _Assignment:
    """One assignment, and which parameters it should have changed and did not."""

    module: weakref.ref[nn.Module]
    value: bool
    step: int
    source: SourceLine | None
    parameters: list[weakref.ref[nn.Parameter]]
    key: str = ""  # of the module, once it is known to whom it belongs
    idle: bool = True  # the parameters are still not as they should be

    def look(self, names: ModuleNames) -> None:
        """Bring it up to date, as long as there is something to look at."""
        module = self.module()
        held = [p for ref in self.parameters if (p := ref()) is not None]
        if module is not None and held:
            self.key = names.key_of(module)
            self.idle = any(p.requires_grad is not self.value for p in held)


class ModuleFlags:
    """Assignments of `requires_grad` to modules that changed nothing, though there was something to be changed.

    A module that reads the attribute, or lets other code of the user's read it, has it for a use of its own.
    """

    def __init__(self, recorder: Recorder, names: ModuleNames) -> None:
        self._recorder = recorder
        self._names = names
        self._found: list[_Assignment] = []
        self._used: ByIdentity[nn.Module, bool] = ByIdentity()

    def install(self, patches: Patches, safely: Callable[[str, Any], Any]) -> None:
        """Give torch's Module a descriptor of this name, for as long as the patches last; `safely` contains our own work."""
        assigned, read = safely("module flag", self._assigned), safely("reading a module flag", self._read)
        patches.wrap(nn.Module, "__dir__", _unlisted)
        patches.add(nn.Module, NAME, lambda original: _Flag(original, assigned, read))

    def look(self) -> None:
        """Bring everything up to date: models may be gone when the run is over."""
        for assignment in self._found:
            assignment.look(self._names)

    def events(self, display: dict[str, str]) -> Iterator[Event]:
        """The assignments that are without effect to this day: where, the module's path, 1 for True and 0 for False."""
        self.look()
        for item in self._found:
            module = item.module()
            if item.idle and item.key and not (module is not None and module in self._used):
                path = display.get(item.key, item.key.rpartition(SEPARATOR)[2])
                yield Event(item.step, KIND, path, float(item.value), item.source)

    def _assigned(self, module: nn.Module, value: Any) -> None:
        frame = _caller()
        if (
            not isinstance(value, bool)
            or frame is None
            or len(self._found) >= MOST
            or "_parameters" not in vars(module)
        ):
            return
        if any(item.module() is module and item.value is value for item in self._found):
            return
        able = (p for p in module.parameters() if p.is_floating_point() or p.is_complex())
        missed = [weakref.ref(p) for p in able if p.requires_grad is not value]
        if missed:
            source = source_line(frame.f_code.co_filename, frame.f_lineno)
            self._found.append(_Assignment(weakref.ref(module), value, self._recorder.step, source, missed))

    def _read(self, module: nn.Module) -> None:
        if _caller() is not None:
            self._used[module] = True


class _Flag:
    """Stands in for the attribute while we observe: modules keep it in their `__dict__` and find it there, as without us."""

    def __init__(self, original: Any, assigned: Callable[..., None], read: Callable[..., None]) -> None:
        self._original = original  # another observation's, or None
        self._tell_assigned = assigned
        self._tell_read = read

    def __get__(self, module: nn.Module | None, owner: type | None = None) -> Any:
        found = _found(module, type(module) if owner is None else owner)
        if module is not None and NAME in vars(module):
            self._tell_read(module)
        return found

    def __set__(self, module: nn.Module, value: Any) -> None:
        if self._original is not None:
            self._original.__set__(module, value)
        elif hasattr(behind := _behind(type(module)), "__set__"):
            behind.__set__(module, value)
        else:
            vars(module)[NAME] = value
        self._tell_assigned(module, value)

    def __delete__(self, module: nn.Module) -> None:
        behind = _behind(type(module))
        if hasattr(behind, "__delete__"):
            behind.__delete__(module)
        elif NAME in vars(module):
            del vars(module)[NAME]
        else:
            raise AttributeError(_says(module))


def _unlisted(original: Any) -> Any:
    """A `Module.__dir__` that does not list the descriptor: others ask modules for all that they list, as torch's compiler does."""

    @functools.wraps(original)
    def __dir__(module: nn.Module) -> Any:
        names = original(module)
        by_class = any(NAME in vars(kind) for kind in type(module).__mro__ if kind is not nn.Module)
        held = [vars(module), *(vars(module).get(key, {}) for key in ("_parameters", "_modules", "_buffers"))]
        for _ in range(names.count(NAME) - by_class - sum(NAME in place for place in held)):
            names.remove(NAME)
        return names

    return __dir__


def _behind(owner: type) -> Any:
    """What a class has under this name behind torch's Module: the attribute of a second base class."""
    order = owner.__mro__
    return next((vars(c)[NAME] for c in order[order.index(nn.Module) + 1 :] if NAME in vars(c)), _MISSING)


def _found(module: nn.Module | None, owner: type) -> Any:
    """What Python would have found: a data descriptor, the instance's own, another attribute of the class, nothing."""
    behind = _behind(owner)
    if module is not None and NAME in vars(module) and not hasattr(behind, "__set__"):
        return vars(module)[NAME]
    if behind is _MISSING:  # torch's own __getattr__ is asked next, and the user's
        raise AttributeError(
            f"type object '{owner.__name__}' has no attribute '{NAME}'" if module is None else _says(module)
        )
    return behind.__get__(module, owner) if hasattr(behind, "__get__") else behind


def _says(module: nn.Module) -> str:
    return f"'{type(module).__name__}' object has no attribute '{NAME}'"


def _caller() -> FrameType | None:
    """The user's frame that assigns or reads; None where a library does."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _passes_on(frame):
        frame = frame.f_back
    return frame if frame is not None and is_user_file(frame.f_code.co_filename) else None


def _passes_on(frame: FrameType) -> bool:
    """Whether it is ours, or a library module's own way to set an attribute, as those of recurrent layers have one."""
    code = frame.f_code
    ours = str(frame.f_globals.get("__name__", "")).startswith("netdoctor.capture.")
    return ours or (code.co_name == "__setattr__" and not is_user_file(code.co_filename))
