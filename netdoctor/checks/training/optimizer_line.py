"""The user's own optimizer and loop lines, rewritten: another learning rate, another variable."""

from __future__ import annotations

import math
import re

from netdoctor.recording import Optimizer, Recording, SourceLine

_LR = re.compile(r"\blr\s*=\s*(?!=)")
_CLIP, _MAX_NORM = re.compile(r"\bclip_grad_(?:norm|value)_\("), re.compile(r"\b(?:max_norm|clip_value)\s*=\s*(?!=)")
_POSITIONAL = re.compile(r"(\.parameters\(\)\s*,\s*)(?=[\d.]|\w+\s*[,)])(?!\w+\s*=)")


def with_lr(optimizer: Optimizer, lr: float, own: float = math.nan) -> str:
    """The line that builds the optimizer with this learning rate; the general form where the line is not known.

    Where a schedule makes another rate, `own`, of the number in that line, the number is changed in proportion.
    """
    text = optimizer.source.text if optimizer.source is not None else ""
    for pattern in (_LR, _POSITIONAL):
        found = pattern.search(text)
        if found:
            end = _end(text, found.end())
            return f"{text[: found.end()]}{_scheduled(text[found.end() : end], own) * lr:.4g}{text[end:]}"
    return f"for group in optimizer.param_groups:\n    group['lr'] = {lr:g}"


def setting(recording: Recording) -> SourceLine | None:
    """The line that sets the learning rate: where the optimizer is built. Of a loop that has none, the line that moves the weights,
    as far as it is known, else the backward call."""
    if recording.optimizers:
        return recording.optimizers[0].source
    by_kind = {event.kind: event.source for event in reversed(recording.events) if event.source}
    return by_kind.get("moves") or by_kind.get("backward")


def rewritten(recording: Recording, lr: float, own: float) -> str:
    """The code that sets this learning rate, as `with_lr`; of a loop without an optimizer, where to write it."""
    if recording.optimizers:
        return with_lr(recording.optimizers[0], lr, own)
    return f"lr = {lr:.4g}  # in the line that moves the weights"


def _scheduled(written: str, rate: float) -> float:
    """How many times a rate the number is that stands in a line; 1 where it is no number, or the rate itself."""
    try:
        number = float(written)
    except ValueError:
        return 1.0
    return number / rate if rate > 0 and number > 0 and abs(number / rate - 1) > 0.01 else 1.0


def with_limit(source: SourceLine | None, limit: float, by_value: bool = False) -> str:
    """The line that clips the gradients with this limit; the general form where the line is not known."""
    text = source.text if source is not None else ""
    start = found.end() if (found := _CLIP.search(text)) else None
    named = _MAX_NORM.search(text)
    if start is not None and named is None and text[_end(text, start) :].startswith(","):
        start = _end(text, start) + 1
        return f"{text[:start]} {limit:g}{text[_end(text, start) :]}"
    if start is not None and named is not None:
        return f"{text[: named.end()]}{limit:g}{text[_end(text, named.end()) :]}"
    if by_value:
        return f"torch.nn.utils.clip_grad_value_(model.parameters(), clip_value={limit:g})"
    return f"torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm={limit:g})"


def variable(recording: Recording) -> str:
    """What the script calls its optimizer, as far as the line of a step or of its construction tells."""
    lines = [event.source.text for event in recording.events if event.kind == "step" and event.source]
    for text in lines:
        if found := re.search(r"([A-Za-z_][\w.]*)\.step\(([\w.]*)", text):
            return found[2] if found[2] and "scaler" in found[1].lower() else found[1]
    return next(filter(None, map(assigned, recording.optimizers)), "optimizer")


def assigned(optimizer: Optimizer) -> str:
    """The variable that the line of an optimizer's construction sets; "" where it is another kind of line."""
    found = re.match(r"([A-Za-z_][\w.]*)\s*=[^=]", optimizer.source.text if optimizer.source is not None else "")
    return found[1] if found else ""


def _end(text: str, start: int) -> int:
    """Where the expression that begins at `start` ends: a comma or closing bracket outside of its own brackets."""
    depth = 0
    for at, letter in enumerate(text[start:], start):
        depth += (letter in "([{") - (letter in ")]}")
        if depth < 0 or (letter == "," and depth == 0):
            return at
    return len(text)


def first_source(recording: Recording, kind: str) -> SourceLine | None:
    """The user's line of the first event of this kind whose line is known."""
    return next((event.source for event in recording.events if event.kind == kind and event.source), None)
