"""Run a script or a module exactly as `python` itself would. Knows nothing of diagnosis.

From `Program.run` on the process belongs to the program: `sys.argv`, `sys.path[0]` and `sys.modules["__main__"]` stay
what it made of them, because its exit handlers, its threads and whatever pickles its classes need them to the very end.
"""

from __future__ import annotations

import builtins
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from itertools import pairwise
from pathlib import Path
from types import CodeType, ModuleType, TracebackType

from netdoctor.errors import MisuseError

_OWN_FOLDER = os.path.dirname(os.path.abspath(__file__)) + os.sep
_BY_SIGINT = 130  # what a shell shows for a program that Ctrl-C ended: 128 + SIGINT


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the program ended: the exit status that plain Python would give, and the exception that ended it, if any."""

    code: int = 0
    error: BaseException | None = None

    @property
    def ended(self) -> str:
        """In words: "finished", "exit 3", "interrupted" or "raised TypeError: ..."."""
        if self.error is None or (isinstance(self.error, SystemExit) and self.code == 0):
            return "finished"
        if isinstance(self.error, SystemExit):
            return f"exit {self.code}"
        if isinstance(self.error, KeyboardInterrupt):
            return "interrupted"
        says = str(self.error).strip().partition("\n")[0]
        return f"raised {type(self.error).__name__}" + (f": {says}" if says else "")


@dataclass(frozen=True, slots=True)
class Program:
    """A script (`code` is set) or a module (`code` is None) that is ready to run; `folder` becomes `sys.path[0]`."""

    target: str
    arguments: tuple[str, ...]
    folder: str
    code: CodeType | None = None

    def run(self) -> Outcome:
        """Run it as `__main__` and say how it ended. Its exception comes back in there, without netdoctor's frames."""
        main = ModuleType("__main__")
        vars(main)["__builtins__"] = builtins
        if sys.version_info < (3, 14):
            vars(main)["__annotations__"] = {}
        sys.modules["__main__"] = main
        _lead_path_with(self.folder)
        try:
            exec(self._load(main), main.__dict__)
        except SystemExit as stop:
            return Outcome(_status(stop), stop)
        except KeyboardInterrupt as interrupt:
            return Outcome(_BY_SIGINT, without_own_frames(interrupt))
        except BaseException as error:
            return Outcome(1, without_own_frames(error))
        return Outcome()

    def _load(self, main: ModuleType) -> CodeType:
        """Set the names that `python SCRIPT` or `python -m MODULE` sets, and give the code to run."""
        if self.code is not None:
            sys.argv = [self.target, *self.arguments]
            path = os.path.abspath(self.target)
            vars(main).update(__file__=path, __cached__=None, __loader__=SourceFileLoader("__main__", path))
            return self.code
        sys.argv = ["-m", *self.arguments]
        spec = _import_parents_and_find(self.target)
        sys.argv[0] = str(spec.origin)
        vars(main).update(
            __file__=spec.origin,
            __cached__=spec.cached,
            __loader__=spec.loader,
            __package__=spec.parent,
            __spec__=spec,
        )
        return _code_of(spec)


def script(path: str, arguments: tuple[str, ...] = ()) -> Program:
    """A script, compiled but not yet run. Raises MisuseError when there is no such file or it is not Python."""
    file = Path(path)
    if file.is_dir():
        raise MisuseError(f"{path} is a folder, not a script")
    if not file.exists():
        near = file.with_name(file.name + ".py")
        raise MisuseError(f"no such file: {path}" + (f" (did you mean {near}?)" if near.exists() else ""))
    try:
        source = file.read_bytes()
    except OSError as error:
        raise MisuseError(f"cannot read {path}: {error.strerror}") from None
    # Python leads the path with the folder of the real file, links followed, but names the file as it was given.
    folder = os.path.dirname(os.path.realpath(path))
    with _as_misuse(path):
        return Program(path, arguments, folder, compile(source, os.path.abspath(path), "exec", dont_inherit=True))


def module(name: str, arguments: tuple[str, ...] = ()) -> Program:
    """A module to run as `python -m NAME`. Nothing of it is imported yet: observation is to begin before its package.

    Raises MisuseError when it cannot be found, has no `__main__`, or is not Python.
    """
    folder = os.getcwd()
    with _path_led_by(folder), _as_misuse(name):
        spec = _locate(name)
        if spec is None:
            raise MisuseError(f"no module named {name!r} can be found from {folder}")
        _code_of(spec)
    return Program(name, arguments, folder)


def without_own_frames(error: BaseException) -> BaseException:
    """The same exception, and those behind it, with the frames of netdoctor's own code taken out of the tracebacks."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        current = waiting.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = _without_own(current.__traceback__)
        waiting += [current.__cause__, current.__context__, *getattr(current, "exceptions", ())]
    return error


def _without_own(traceback: TracebackType | None) -> TracebackType | None:
    kept = [entry for entry in _entries(traceback) if not entry.tb_frame.f_code.co_filename.startswith(_OWN_FOLDER)]
    for entry, following in pairwise(kept):
        entry.tb_next = following
    if not kept:
        return None
    kept[-1].tb_next = None
    return kept[0]


def _entries(traceback: TracebackType | None) -> Iterator[TracebackType]:
    while traceback is not None:
        yield traceback
        traceback = traceback.tb_next


def _status(stop: SystemExit) -> int:
    """The exit status that the interpreter gives for this SystemExit: none is 0, a text is printed and is 1."""
    if stop.code is None:
        return 0
    return stop.code & 0xFF if isinstance(stop.code, int) else 1


def _lead_path_with(folder: str) -> None:
    """Put the program's folder where the interpreter had put netdoctor's own; leave it out where Python would (-P)."""
    if not getattr(sys.flags, "safe_path", False):
        sys.path[:1] = [folder]


@contextmanager
def _path_led_by(folder: str) -> Iterator[None]:
    before = list(sys.path)
    _lead_path_with(folder)
    try:
        yield
    finally:
        sys.path[:] = before


@contextmanager
def _as_misuse(target: str) -> Iterator[None]:
    """Turn what `compile` and the finders raise about text that is not Python into one plain sentence."""
    try:
        yield
    except SyntaxError as error:
        where = f", line {error.lineno}" if error.lineno else ""
        raise MisuseError(f"{target}{where} is not Python: {error.msg}") from None
    except (ValueError, RecursionError, ImportError) as error:
        raise MisuseError(f"{target} cannot be run as Python: {error}") from None


def _locate(name: str) -> ModuleSpec | None:
    """The spec of a module, or of a package's `__main__`, found without importing any of its parents."""
    first, *rest = name.split(".")
    spec = importlib.util.find_spec(first) if first else None
    for part in rest:
        if spec is None:
            return None
        # By its last name only: with the full one, a folder without __init__ would ask for its parent in sys.modules.
        spec = PathFinder.find_spec(part, list(spec.submodule_search_locations or []))
    if spec is None or spec.submodule_search_locations is None:
        return spec
    return PathFinder.find_spec("__main__", list(spec.submodule_search_locations))


def _import_parents_and_find(name: str) -> ModuleSpec:
    """The spec of a module, or of a package's `__main__`; its parent packages are imported, as `python -m` does."""
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.submodule_search_locations is not None:
        spec = importlib.util.find_spec(f"{name}.__main__")
    if spec is None:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)
    return spec


def _code_of(spec: ModuleSpec) -> CodeType:
    get_code = getattr(spec.loader, "get_code", None)
    code = None if get_code is None else get_code(spec.name)
    if not isinstance(code, CodeType):
        raise ImportError("it has no Python code")
    return code
