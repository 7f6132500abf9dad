"""Custom autograd functions in the loop: they are no torch functions, and are watched where they are applied."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch

from netdoctor.capture.observer import Observer
from netdoctor.capture.patching import next_apply


def watched_apply(observer: Observer, original: Any) -> Any:
    """`apply` of all custom functions, shown to the observer while its watch is on."""

    inner = next_apply(original)

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        library = cls.__module__.startswith("torch.")
        hidden = observer.suspended or observer.in_backward or threading.get_ident() != observer.thread
        if library or hidden or not observer.mode.on:
            return inner(cls, *args, **kwargs)
        name, call = f"{cls.__name__}.apply", functools.partial(_applied, cls)
        with torch._C.DisableTorchFunction():  # what is measured of its tensors is no operation of the user's
            noted = observer.containment.run("custom function", observer.before_operation, name, call, args, kwargs)
        observer.suspended += 1
        try:
            result = inner(cls, *args, **kwargs)
        finally:
            observer.suspended -= 1
        if noted is not None:
            with torch._C.DisableTorchFunction():
                observer.containment.run("custom function", observer.after_operation, noted, name, args, kwargs, result)
        return result

    return classmethod(apply)


def _applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
    """A custom function, looked up when it is called: a replay may be watching it by then."""
    return cls.apply(*args, **kwargs)
