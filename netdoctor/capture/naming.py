"""Which module is which: paths, owners, and the user's line that built each of them."""

from __future__ import annotations

import inspect
import re
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

from torch import Tensor, nn

from netdoctor.capture.identity import ByIdentity
from netdoctor.capture.source import holder_name, is_user_file, source_line, user_position, variable_name
from netdoctor.recording import SourceLine

_OWNERS = 3  # of a module, that are remembered
_CONTAINERS = nn.ModuleList.__getitem__.__code__.co_filename
_NEAR = 16  # frames between a slice and the registration of what is in it: torch's, and those of our own hook
MOST_ROOTS = 64  # models that are told apart, those that are gone included
_sources: weakref.WeakKeyDictionary[type, tuple[str, list[str], int]] = weakref.WeakKeyDictionary()
SEPARATOR = "\x1f"  # between a model's label and a path inside of it; never in a Python name


def unwrapped(module: nn.Module) -> nn.Module:
    """The user's own model inside of what torch.compile, DataParallel or DistributedDataParallel wrapped around it."""
    inner = getattr(module, "_orig_mod", None)
    if inner is None and type(module).__name__ in ("DistributedDataParallel", "DataParallel"):
        inner = getattr(module, "module", None)
    return module if inner is None else unwrapped(inner)


@dataclass(slots=True)
class Root:
    """A whole model: the topmost owner of the modules that are called. `label` tells several models apart."""

    module: weakref.ref[nn.Module]
    label: str


class ModuleNames:
    """Paths of modules and names of parameters, as the topmost module that owns them would list them."""

    def __init__(self) -> None:
        self._parents: ByIdentity[nn.Module, tuple[weakref.ref[nn.Module], ...]] = ByIdentity()  # the latest one first
        self._slices: ByIdentity[nn.Module, bool] = (
            ByIdentity()
        )  # `layers[:-1]`: a container of its own, often for a loop
        self._built: ByIdentity[nn.Module, tuple[str, int]] = ByIdentity()
        self._paths: ByIdentity[nn.Module, tuple[str, Root]] = ByIdentity()
        self._parameters: dict[int, tuple[weakref.ref[Tensor], str, weakref.ref[nn.Module] | None]] = {}
        self.roots: list[Root] = []
        self.version = 0  # goes up whenever a name may have changed

    def registered(self, parent: nn.Module, name: str, child: nn.Module | None) -> None:
        """Hook for torch's module registration: remembers who owns whom."""
        if child is None:
            return
        known = [ref for ref in self._parents.get(child) or () if ref() is not None]
        self._parents[child] = (weakref.ref(parent), *known[: _OWNERS - 1])
        if known and _sliced():
            self._slices[parent] = True
            return
        self._paths.pop(child)
        self.version += 1

    def constructed(self, module: nn.Module) -> None:
        """Remember the user's line that is building this module. Called from `Module.__init__`."""
        file, line = user_position()
        if file:
            self._built[module] = (file, line)

    def root_of(self, module: nn.Module) -> Root:
        """The topmost owner of a module."""
        return self._locate(module)[1]

    def path_of(self, module: nn.Module) -> str:
        """The module's path under its root, as `named_modules` gives it; "" for the root itself."""
        return self._locate(module)[0]

    def key_of(self, module: nn.Module) -> str:
        """A key that is unique over all models: the root's label and the path, until the reader's names are known."""
        path, root = self._locate(module)
        return f"{root.label}{SEPARATOR}{path}"

    def add_root(self, module: nn.Module) -> Root:
        """Make a module a root of its own (it was handed to us), and name everything under it."""
        for root in self.roots:
            if root.module() is module:
                self._index(root, module)
                return root
        root = Root(weakref.ref(module), variable_name(module) or type(module).__name__)
        if len(self.roots) >= MOST_ROOTS:  # copies that are made in every step: those that are gone leave their names
            self.roots = [other for other in self.roots if other.module() is not None]
        taken = {other.label for other in self.roots}
        if root.label in taken:
            root.label = next(f"{root.label}{n}" for n in range(2, 10_000) if f"{root.label}{n}" not in taken)
        self.roots.append(root)
        self._index(root, module)
        return root

    def _locate(self, module: nn.Module) -> tuple[str, Root]:
        found = self._paths.get(module)
        if found is None:
            top = self._topmost(module)
            root = self.add_root(top)
            found = self._paths.get(module)
            if found is None:  # owned once, but no longer listed by the owner: it stands for itself
                found = self._paths[module] = ("", self.add_root(module) if module is not top else root)
        return found

    def _topmost(self, module: nn.Module) -> nn.Module:
        top = module
        for _ in range(100):  # a cycle of owners would be the user's bug; ours must not be an endless loop
            owner = self._owner(top)
            if owner is None or unwrapped(owner) is not owner:
                break
            top = owner
        return top

    def _owner(self, module: nn.Module) -> nn.Module | None:
        """Who holds a module: the last one that it was given to and that still does; a slice only if it is held itself."""
        for ref in self._parents.get(module) or ():
            owner = ref()
            passing = owner is not None and self._slices.get(owner) and not self._parents.get(owner)
            if owner is not None and not passing and any(child is module for child in owner.children()):
                return owner
        return None

    def _index(self, root: Root, module: nn.Module) -> None:
        self.version += 1
        for path, child in module.named_modules():
            self._paths[child] = (path, root)
        for name, parameter in module.named_parameters():
            owner = module.get_submodule(name.rpartition(".")[0])
            self._parameters[id(parameter)] = (weakref.ref(parameter), name, weakref.ref(owner))

    def parameter_name(self, parameter: Tensor) -> str:
        """The parameter's full name, or the user's variable that holds it, or "" when unknown."""
        found = self._parameters.get(id(parameter))
        return found[1] if found is not None and found[0]() is parameter else ""

    def parameter_key(self, parameter: Tensor) -> str:
        """Like `parameter_name`, but unique over all models."""
        found = self._parameters.get(id(parameter))
        if found is None or found[0]() is not parameter:
            return ""
        if found[2] is None:
            return found[1]
        owner = found[2]()
        if owner is None or not any(held is parameter for held in owner._parameters.values()):
            return f"{found[1]} (replaced)"  # the model has another one under this name by now
        return f"{self._locate(owner)[1].label}{SEPARATOR}{found[1]}"

    def parameters(self) -> Iterator[tuple[str, Tensor]]:
        """All parameters that have a name and are still there, with their keys."""
        for ref, _, _ in list(self._parameters.values()):
            parameter = ref()
            if parameter is not None:
                yield self.parameter_key(parameter), parameter

    def parameter_owner(self, parameter: Tensor) -> nn.Module | None:
        """The module that holds a parameter directly."""
        found = self._parameters.get(id(parameter))
        return found[2]() if found is not None and found[0]() is parameter and found[2] is not None else None

    def name_loose(self, parameter: Tensor, fallback: str) -> str:
        """Name a parameter that no module holds, after the user's variable."""
        name = variable_name(parameter) or holder_name(parameter) or fallback
        taken = {other for ref, other, _ in self._parameters.values() if ref() is not None}
        if name in taken:
            name = fallback
        self._parameters[id(parameter)] = (weakref.ref(parameter), name, None)
        self.version += 1
        return name

    def loose_shape(self, name: str) -> tuple[tuple[int, ...], str]:
        """Shape and dtype of a parameter that no module holds; ((), "") when it is gone."""
        for ref, other, _ in self._parameters.values():
            tensor = ref()
            if other == name and tensor is not None:
                return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
        return (), ""

    def built_at(self, module: nn.Module) -> SourceLine | None:
        """The user's line that built a module: seen when it was built, else found in the source of its owner's class."""
        position = self._built.get(module)
        if position is not None:
            return source_line(*position)
        return self._from_source(module)

    def _from_source(self, module: nn.Module) -> SourceLine | None:
        path, root = self._locate(module)
        top = root.module()
        parts = path.split(".") if path else []
        for depth in range(len(parts) - 1, -1, -1):
            owner = top.get_submodule(".".join(parts[:depth])) if top is not None else None
            found = None if owner is None else _assignment(type(owner), parts[depth])
            if found is not None:
                return found
        return None


def _sliced() -> bool:
    """Whether a container is being made by a slice of another one."""
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_NEAR):
        if frame is None:
            return False
        if frame.f_code.co_name == "__getitem__" and frame.f_code.co_filename == _CONTAINERS:
            return True
        frame = frame.f_back
    return False


def _source_of(owner: type) -> tuple[str, list[str], int]:
    """(file, lines, number of the first) of the user's class; no lines for a library's."""
    try:
        file = inspect.getsourcefile(owner) or ""
        return (file, *inspect.getsourcelines(owner)) if is_user_file(file) else ("", [], 0)
    except (OSError, TypeError):
        return "", [], 0


def _assignment(owner: type, attribute: str) -> SourceLine | None:
    """The line `self.attribute = ...` in the user's class."""
    if owner not in _sources:  # parsing a file takes long, and a model may have thousands of modules of one class
        _sources[owner] = _source_of(owner)
    file, lines, first = _sources[owner]
    for offset, text in enumerate(lines):
        if f"self.{attribute}" in text and re.search(rf"\bself\.{re.escape(attribute)}\s*(:[^=]+)?=", text):
            return SourceLine(file, first + offset, text.strip())
    return None
