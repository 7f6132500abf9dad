"""Edits of the user's own lines: the logarithm of a softmax or sigmoid as the one function that computes both."""

from __future__ import annotations

import ast
import re

from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of
from netdoctor.recording import SourceLine

_MODULES = {"softmax": ("Softmax", "LogSoftmax"), "sigmoid": ("Sigmoid", "LogSigmoid")}


def fused(log: SourceLine | None, made: SourceLine | None, first: str, one: str) -> str:
    """The line of the logarithm with `one` in place of both, in the script's own names; the general form as a last resort.

    `made` is the line of the softmax or sigmoid. Where that gives a name to its result, and the logarithm uses it, one
    line is changed; else both are: the first makes the logarithm, the second leaves it out.
    """
    text, before = "" if log is None else log.text, "" if made is None else made.text
    changed = rewrite_where(text, lambda node, line: _in_place(node, line, first, one))
    if changed is None and before:
        changed = _by_name(text, before, first, one) or _in_both(text, before, first, one)
    return changed or f"torch.nn.functional.{one}(scores{', dim=-1' if first == 'softmax' else ''})"


def _in_place(node: ast.expr, line: str, first: str, one: str) -> str | None:
    """`log(softmax(x, ...))` as `log_softmax(x, ...)`."""
    log = call_of(node)
    inner = log[1][0] if log is not None and log[0] == "log" and log[1] else None
    return None if inner is None else _whole(inner, line, first, one)


def _whole(node: ast.expr, line: str, first: str, one: str) -> str | None:
    """`softmax(x, ...)` or `x.softmax(...)` as `log_softmax(x, ...)`; None for any other expression."""
    call = call_of(node)
    if call is None or call[0] != first or not call[1]:
        return None
    arguments = [source_of(argument, line) for argument in call[1]]
    arguments += [f"{word.arg}={source_of(word.value, line)}" for word in call[2] if word.arg]
    return f"torch.nn.functional.{one}({', '.join(arguments)})"


def _by_name(text: str, before: str, first: str, one: str) -> str | None:
    """`p = softmax(x)` and `log(p)` as `log_softmax(x)` in the second line."""
    name, _, value = before.partition("=")
    name = name.strip()
    if not name.isidentifier():
        return None
    whole = [_whole(node, value.strip(), first, one) for node in _outermost(value.strip())]

    def edit(node: ast.expr, line: str) -> str | None:
        log = call_of(node)
        inner = log[1][0] if log is not None and log[0] == "log" and log[1] else None
        found = None if inner is None else source_of(inner, line, atom=True)
        if found is None or not re.match(rf"{name}\b(?!\()", found):
            return None
        return f"{whole[0]}{found[len(name) :]}"

    return rewrite_where(text, edit) if whole and whole[0] else None


def _outermost(text: str) -> list[ast.expr]:
    try:
        return [ast.parse(text, mode="eval").body]
    except SyntaxError:
        return []


def _in_both(text: str, before: str, first: str, one: str) -> str | None:
    """The first line with `log_softmax` in place of the softmax, the second one without its `log`."""
    module, whole = _MODULES[first]
    made = rewrite_where(before, lambda node, line: _whole(node, line, first, one))
    made = made or re.sub(rf"\b{module}\(", f"{whole}(", before)
    bare = rewrite_where(text, _argument_of_log)
    return f"{made}\n{bare}" if made != before and bare is not None else None


def _argument_of_log(node: ast.expr, line: str) -> str | None:
    log = call_of(node)
    return source_of(log[1][0], line, atom=True) if log is not None and log[0] == "log" and log[1] else None
