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


def _report(observer: Observer, name: str, args: Any, kwargs: Any) -> None:
    if threading.get_ident() == observer.thread:
        observer.containment.run("known function", known_function, observer, name, args, kwargs)


def reporting(watching: weakref.ref[Observer], name: str, original: Any) -> Any:
    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        observer = None if torch.compiler.is_compiling() else watching()
        if observer is not None and not observer.stack and not observer.suspended:
            _report(observer, name, args, kwargs)
        return original(*args, **kwargs)

    return wrapper
