"""Operations exchanged for others while a copy trains: inside of its modules, and in the loop around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from torch import nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack

from netdoctor.capture.functions import function_name, plain
from netdoctor.capture.source import user_position
from netdoctor.capture.step import Replay
from netdoctor.capture.tape import Entry
from netdoctor.checks.numerics.operations import canonical
from netdoctor.experiments.treatments.treatment import Bench, first_argument

Change = Callable[..., Any]  # (function, args, kwargs) → result


@dataclass(frozen=True, slots=True)
class Exchange:
    """A change of the operations of these names (canonical or torch's own), in one module or, with None, in the loop.

    `line` narrows it down to the user's (file, line), where that is known.
    """

    module: nn.Module | None
    names: frozenset[str]
    change: Change
    line: tuple[str, int] | None = None

    def fits(self, name: str) -> bool:
        """Whether it is for an operation of this name."""
        return bool({name, plain(name), canonical(name)} & self.names)


class Exchanges(TorchFunctionMode):
    """Does the exchanges inside of modules; follows which of the copy's modules is running."""

    def __init__(self, exchanges: Sequence[Exchange]) -> None:
        super().__init__()
        self._by_module: dict[int, list[Exchange]] = {}
        for exchange in exchanges:
            self._by_module.setdefault(id(exchange.module), []).append(exchange)
        self._stack: list[int] = []
        self._pushed: list[bool] = []

    def follow(self, module: nn.Module) -> None:
        """Follow a copied model. The hooks go with the copy."""
        for child in module.modules():
            child.register_forward_pre_hook(self._enter)
            child.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self._stack.append(id(module))
        off = all(mode is not self for mode in _get_current_function_mode_stack())
        self._pushed.append(off)  # what a checkpoint runs again in backward runs without the modes of the forward pass
        if off:
            super().__enter__()  # type: ignore[no-untyped-call]

    def _leave(self, *_: Any) -> None:
        self._stack.pop()
        if self._pushed.pop():
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = function_name(func)
        for exchange in self._by_module.get(self._stack[-1], ()) if self._stack else ():
            if exchange.fits(name) and _here(exchange):
                return exchange.change(func, args, kwargs)
        return func(*args, **kwargs)


def _here(exchange: Exchange) -> bool:
    position = ("", 0) if exchange.line is None else user_position(Replay.run_entry.__code__)
    return exchange.line is None or not position[0] or position == exchange.line


def exchange_operations(bench: Bench, exchanges: Sequence[Exchange]) -> None:
    """Make the exchanges last while the copy trains. Raises LookupError when there is nothing to exchange."""
    if not exchanges:
        raise LookupError("there is nothing to exchange")
    inside = [exchange for exchange in exchanges if exchange.module is not None]
    outside = [exchange for exchange in exchanges if exchange.module is None]
    if inside:
        mode = Exchanges(inside)
        for module in bench.sandbox.modules():
            mode.follow(module)
        bench.stack.enter_context(mode)
    if outside:
        bench.rewrite(partial(_in_loop, outside))


def _in_loop(exchanges: list[Exchange], entry: Entry) -> Entry:
    if entry.module is not None or entry.call is None:
        return entry
    for exchange in exchanges:
        if exchange.fits(entry.name) and exchange.line in (None, entry.position):
            return replace(entry, call=partial(_called, exchange.change, entry.call))
    return entry


def _called(change: Change, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return change(call, args, kwargs)


def exchange_on_line(bench: Bench, names: frozenset[str], change: Change, line: tuple[str, int]) -> None:
    """Exchange what one line of the user's runs, whichever module it stands in."""
    exchange_on_lines(bench, names, change, [line])


def exchange_on_lines(bench: Bench, names: frozenset[str], change: Change, lines: Sequence[tuple[str, int]]) -> None:
    """The same for several lines at once."""
    modules = [child for module in bench.sandbox.modules() for child in module.modules()]
    exchange_operations(bench, [Exchange(m, names, change, line) for m in (None, *modules) for line in lines])


def passing(_: Any, args: Any, kwargs: Any) -> Any:
    """The change that leaves an operation out."""
    return first_argument(args, kwargs)


def by(function: Callable[[Any], Any]) -> Change:
    """The change to another function of the same argument."""
    return lambda _, args, kwargs: function(first_argument(args, kwargs))
