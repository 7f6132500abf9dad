"""Functions of torch.nn.functional that tell the pattern of the loop when they are called."""

from __future__ import annotations

import functools
import threading
import weakref
from typing import TYPE_CHECKING, Any

import torch

from netdoctor.capture.calls import known_function

if TYPE_CHECKING:
    from netdoctor.capture.observer import Observer


def reporting(watching: weakref.ref[Observer], name: str, original: Any) -> Any:
    """What takes the place of a function: it tells the pattern, then does what it always did."""
    is_compiling, get_ident = torch.compiler.is_compiling, threading.get_ident

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        observer = None if is_compiling() else watching()
        if observer is None or observer.suspended or get_ident() != observer.thread:
            return original(*args, **kwargs)
        light = observer.light
        if light is not None and light.on:
            if not observer.stack:  # inside of a model it is no call of the loop's own
                try:
                    light.function(name, args, kwargs)
                except Exception as error:
                    light.failed("known function", error)
        elif not observer.inside:
            observer.containment.run("known function", known_function, observer, name, args, kwargs)
        return original(*args, **kwargs)

    return wrapper
