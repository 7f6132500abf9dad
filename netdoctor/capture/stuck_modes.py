"""`model.eval()` that leaves modules in training mode, since a class has a `train(mode)` of its own that does not pass it on."""

from __future__ import annotations

import functools
import linecache
from collections.abc import Callable
from types import CodeType
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from netdoctor.capture.identity import ByIdentity
from netdoctor.capture.patching import Patches
from netdoctor.capture.source import is_user_file
from netdoctor.data import Override


class StuckModes:
    """Looks at a model after each `eval()`: which modules are in training mode all the same, and whose method it is."""

    def __init__(self) -> None:
        self._stuck: ByIdentity[nn.Module, Override] = ByIdentity()
        self._any = False  # most scripts have none, and need not be asked again

    def install(self, patches: Patches, safely: Callable[[str, Any], Any]) -> None:
        """Have `Module.eval` look after each call; `safely` contains our own work."""
        look = safely("modes after eval", self._look)

        def make(original: Any) -> Any:
            @functools.wraps(original)
            def eval(module: nn.Module) -> Any:
                result = original(module)
                look(module)
                return result

            return eval

        patches.wrap(nn.Module, "eval", make)

    def within(self, module: nn.Module) -> Override | None:
        """The method that keeps this module, or one inside of it, in training mode since its `eval()`; None where there is none."""
        if not self._any:
            return None
        found = (self._stuck.get(child) for child in module.modules() if child.training)
        return next((override for override in found if override is not None), None)

    def _look(self, module: nn.Module) -> None:
        for child in module.modules():
            if not child.training:
                self._stuck.pop(child)
            elif (child is module or _normalises(child)) and (override := _override(child)) is not None:
                self._stuck[child], self._any = override, True


def _normalises(module: nn.Module) -> bool:
    """Whether statistics of a batch are in use inside. Dropouts alone that stay on inside of a model may be meant to."""
    return any(isinstance(c, _BatchNorm) and c.training and c.running_mean is not None for c in module.modules())


def _override(module: nn.Module) -> Override | None:
    function = getattr(module.train, "__func__", module.train)
    code = getattr(function, "__code__", None)
    if function is nn.Module.train or not isinstance(code, CodeType) or not is_user_file(code.co_filename):
        return None
    file, line = code.co_filename, _line(code)
    return Override(f"{type(module).__name__}.train", file, line, linecache.getline(file, line).strip())


def _line(code: CodeType) -> int:
    """Where the method calls that of its base class, or of its children; where it does not, its first line."""
    texts = {n: linecache.getline(code.co_filename, n) for *_, n in code.co_lines() if n and n > code.co_firstlineno}
    calls = [n for n, text in texts.items() if ".train(" in text or ".eval(" in text]
    return min(calls, key=lambda n: ("super(" not in texts[n], n), default=code.co_firstlineno)
