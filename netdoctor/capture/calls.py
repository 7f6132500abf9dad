"""Calls of modules and functions that the pattern of the loop knows: what is looked at is known, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from netdoctor.capture import functions
from netdoctor.capture.source import user_position

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer

Original = Callable[..., Any]  # the call as torch makes it


def call_plain(observer: Observer, call: Original, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Run an outermost module in a plain step: nothing inside of it is looked at. The stack tells that we are inside."""
    observer.evaluating = False
    if observer.mode.on:  # an evaluation was watched
        observer.mode.leave()
    observer.stack.append(module)
    observer.passing = True
    try:
        return call(module, *args, **kwargs)
    finally:
        left(observer)


def left(observer: Observer) -> None:
    """An outermost module of the pattern has run. What follows may be operations of the loop's own."""
    observer.passing = False
    observer.stack.clear()
    if observer.pattern.operations:
        observer.containment.run("operations of the pattern", observer.mode.enter, True)


def call_known(observer: Observer, call: Original, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Run an outermost module in a step that follows the pattern, and is measured or kept."""
    if not observer.detailed:
        return call_plain(observer, call, module, args, kwargs)
    observer.evaluating = False
    if observer.mode.on:
        observer.mode.leave()
    observer.stack.append(module)
    observer.ours("known call", _enter, observer, module, args, kwargs)
    try:
        return call(module, *args, **kwargs)
    finally:
        observer.measuring = False
        left(observer)


def call_layer(observer: Observer, call: Original, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Run a module inside of a model whose layers are measured by their modules alone."""
    result = call(module, *args, **kwargs)
    if observer.measuring:
        observer.suspended += 1
        try:
            observer.layers.module_result(module, result)
        except (
            Exception
        ) as error:  # ours, and not the user's; `ours` would do the same with two more calls for each layer
            observer.containment.note("layer", error)
        finally:
            observer.suspended -= 1
    if observer.outputs is not None:
        observer.ours("layer output", observer.outputs.see, module, result)
    return result


def known_function(observer: Observer, name: str, args: Any, kwargs: Any) -> None:
    """A function of torch.nn.functional was called that reports its calls."""
    observer.pattern.called(name, args, kwargs)
    if observer.light is not None and observer.detailed and observer.data.wants(name):
        observer.data.see_operation(observer.step, name, args, kwargs, user_position(), observer.value_of)


def known_operation(observer: Observer, call: Original, args: Any, kwargs: Any) -> None:
    """An operation of the loop's own was called while only these are looked at, or in the trial step."""
    observer.pattern.operation(call, args, kwargs)
    if observer.light is not None and observer.detailed and observer.mode.thin:
        name = functions.spoken_name(call)
        if name and torch.is_grad_enabled() and observer.data.wants(name):
            observer.ours(
                "compared",
                observer.data.see_operation,
                observer.step,
                name,
                args,
                kwargs,
                user_position(),
                observer.value_of,
            )


def _enter(observer: Observer, module: nn.Module, args: Any, kwargs: Any) -> None:
    observer.measuring = id(module) not in observer.measured
    observer.measured.add(id(module))
    arguments, position = (args, kwargs), user_position()
    observer.data.see_inputs(observer.step, id(module), arguments, position, observer.made, observer.value_of)
