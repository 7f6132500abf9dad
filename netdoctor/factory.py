"""What `netdoctor examine PACKAGE.MODULE:FACTORY` is given: found, called and checked. Imports no torch."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from netdoctor.errors import MisuseError

SHAPE = "(model, loss_fn, batch) or (model, loss_fn, batch, optimizer)"


class FactoryFailed(Exception):
    """The user's own code raised `error` while it was imported or called."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, slots=True)
class Example:
    """A model with what it takes to train it for a step. `optimizer` may be None."""

    model: Any
    loss_fn: Callable[..., Any]
    batch: Any
    optimizer: Any = None


def example(address: str) -> Example:
    """Import the module from the current folder, call the factory, and check what it returns.

    Raises MisuseError where the address or the result cannot be used, FactoryFailed where the user's own code raised.
    """
    module, separator, name = address.partition(":")
    if not (module and separator and name) or os.sep in module or not all(map(str.isidentifier, module.split("."))):
        raise MisuseError(f"{address!r} is not of the form package.module:factory")
    sys.path.insert(0, os.getcwd())
    factory = _attribute(_imported(module), name, module)
    if not callable(factory):
        raise MisuseError(f"{address} is not a function but {_kind(factory)}; it must return {SHAPE}")
    try:
        made = factory()
    except Exception as error:
        raise FactoryFailed(error) from error
    return _checked(made, address)


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and (module == error.name or module.startswith(f"{error.name}.")):
            raise MisuseError(f"no module named {module!r} can be found from {os.getcwd()}") from None
        raise FactoryFailed(error) from error
    except Exception as error:
        raise FactoryFailed(error) from error


def _attribute(module: Any, name: str, named: str) -> Any:
    if hasattr(module, name):
        return getattr(module, name)
    near = difflib.get_close_matches(name, vars(module), 1)
    raise MisuseError(f"module {named} has no {name!r}" + (f": did you mean {near[0]!r}?" if near else ""))


def _checked(made: object, address: str) -> Example:
    if not isinstance(made, tuple | list) or len(made) not in (3, 4):
        what = f"{len(made)} values" if isinstance(made, tuple | list) else _kind(made)
        raise MisuseError(f"{address} returned {what}; it must return {SHAPE}")
    found = Example(*made)
    if not (callable(found.model) and hasattr(found.model, "named_parameters")):
        raise MisuseError(f"{address} returned {_kind(found.model)} as the model; that must be a torch.nn.Module")
    if not callable(found.loss_fn):
        raise MisuseError(f"{address} returned {_kind(found.loss_fn)} as the loss function; it cannot be called")
    if found.optimizer is not None and not hasattr(found.optimizer, "param_groups"):
        raise MisuseError(f"{address} returned {_kind(found.optimizer)} as the optimizer; that must be of torch.optim")
    return found


def _kind(value: object) -> str:
    return "None" if value is None else f"a value of type {type(value).__name__}"
