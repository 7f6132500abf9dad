"""What takes the place of `nn.Module.__call__`: it decides how much of a call is looked at."""

from __future__ import annotations

import functools
import threading
from typing import Any

import torch
from torch import nn

from netdoctor.capture import unseen
from netdoctor.capture.calls import call_known, call_layer, left
from netdoctor.capture.observer import Observer

_DIRECT = ("_compiled_call_impl", "_call_impl")  # all that torch's own `__call__` asks a module for


def is_torchs_own(original: Any) -> bool:
    """Whether this is the `__call__` that torch has, which only chooses between the compiled call and `_call_impl`."""
    code = getattr(original, "__code__", None)
    return original is nn.Module._wrapped_call_impl and code is not None and code.co_names == _DIRECT


def module_call(observer: Observer, original: Any) -> Any:
    """The wrapper. In a plain step it does the choosing of torch's own `__call__` itself: one call less for each module."""
    get_ident, is_compiling = threading.get_ident, torch.compiler.is_compiling
    transforming = torch._C._functorch.peek_interpreter_stack  # inside of torch.func
    outputs, mode, stack = observer.outputs, observer.mode, observer.stack
    tracing = torch.compiler.is_dynamo_compiling  # which is the cheaper one to ask
    direct = outputs is None and is_torchs_own(original)

    @functools.wraps(original)
    def __call__(module: nn.Module, /, *args: Any, **kwargs: Any) -> Any:
        if tracing():
            return original(module, *args, **kwargs)
        if observer.passing or (stack and not observer.detailed) or is_compiling():
            if direct and module._compiled_call_impl is None:
                return module._call_impl(*args, **kwargs)
            if outputs is None or is_compiling() or observer.suspended or observer.in_backward:
                return original(module, *args, **kwargs)
            result = original(module, *args, **kwargs)
            outputs.see(module, result)
            return result
        if observer.suspended or observer.in_backward:
            return original(module, *args, **kwargs)
        if get_ident() != observer.thread or transforming() is not None:
            unseen.say(observer, "thread" if get_ident() != observer.thread else "transform")
            return original(module, *args, **kwargs)
        light = observer.light
        if light is not None and light.on:
            try:
                known = light.enter(module, args, kwargs)
            except Exception as error:
                known = light.failed("plain call", error)
            if known:  # nothing inside of it is looked at; the stack tells that we are inside
                stack.append(module)
                observer.passing, observer.evaluating = True, False
                if mode.on:  # an evaluation was watched
                    mode.leave()
                try:
                    if direct and module._compiled_call_impl is None:
                        return module._call_impl(*args, **kwargs)
                    return original(module, *args, **kwargs)
                finally:
                    left(observer)
        contained = observer.containment.run
        if light is not None and (stack or not contained("module state", observer.has_state, module)):
            return call_layer(observer, original, module, args, kwargs)
        if light is not None and observer.ours("known call", light.entering, module, args, kwargs):
            return call_known(observer, original, module, args, kwargs)
        return observer.call_module(original, module, args, kwargs)

    return __call__
