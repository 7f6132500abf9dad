"""What an experiment tells of two optimizers that play against each other: names of its arms, and what the fix looks like."""

from __future__ import annotations

import ast
import math
from collections.abc import Mapping
from functools import partial

from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of
from netdoctor.finding import Measured, Trial, Verdict
from netdoctor.recording import Recording, SourceLine

PUSHES, AS_IT_IS, TURNED = "game/pushes", "game/as it is", "game/turned"
LABELS, CLASSES, SIGN = "labels", "classes", "sign"
TREATMENT = "oppose-adversary"
_GENERAL = {
    LABELS: "loss_g = loss_fn(scores, torch.{real}_like(scores))  # the label of real samples",
    SIGN: "loss_g = -scores.mean()  # up where the discriminator's loss pushes them down",
}
_CLASS = "loss_g = F.cross_entropy(scores, real_class)  # the class that the discriminator's loss gives real samples"
_DOWN = "loss_g = scores.mean()  # down where the discriminator's loss pushes them up"
_KINKED = frozenset({"relu", "clamp", "clip", "clamp_min", "hardtanh"})
_FIRST = frozenset({"softplus", "logsigmoid"})


def line_of(facts: Mapping[str, float | str | bool]) -> SourceLine | None:
    """The line that makes the loss of the helping player."""
    if not facts.get("file"):
        return None
    return SourceLine(str(facts["file"]), int(float(facts["line"])), str(facts["text"]))


def trial_of(recording: Recording, halved: float, eased: float) -> Trial | None:
    """The trial of the fix: whose samples are nearer to the others; `halved` and `eased` are shares of the untreated copy's
    distance. None where it was not run, or there is nothing to compare."""
    control, treated = recording.arms.get(AS_IT_IS), recording.arms.get(TURNED)
    if control is None or treated is None or control.failure or treated.failure:
        return None
    apart, near = (float(one.facts["distance"]) for one in (control, treated))
    if math.isnan(apart) or math.isnan(near):
        return None
    start = float(treated.facts["start"])
    cured = near <= halved * apart and near < start
    verdict = Verdict.CURED if cured else Verdict.EASED if near <= eased * apart else Verdict.NO_EFFECT
    steps, seconds = len(treated.losses), control.seconds + treated.seconds
    measured = Measured("distance of generated from real samples", apart, near, "standard deviations")
    return Trial(verdict, (), (), steps, seconds, measured=measured)


def turned_line(facts: Mapping[str, float | str | bool]) -> str:
    """The line with the label of real samples, or with the other sign; the general form where it cannot be told."""
    text, up = str(facts.get("text", "")), bool(facts["up"])
    real = "ones" if up else "zeros"
    if facts["form"] == LABELS:
        how = _flagged if facts.get("shared") else partial(_relabelled, real=real)
        return rewrite_where(text, how) or _GENERAL[LABELS].format(real=real)
    if facts["form"] == CLASSES:
        return _CLASS
    made = None if facts.get("shared") else _negated(text)
    return made or (_GENERAL[SIGN] if up else _DOWN)


def _relabelled(node: ast.expr, line: str, real: str) -> str | None:
    """A call of a loss with its target replaced: zeros by ones where these are named, else by as many as the target has."""
    if not isinstance(node, ast.Call):
        return None
    named = [k.value for k in node.keywords if k.arg == "target"]
    if not (named or len(node.args) == 2) or _makes(node):
        return None
    target = named[0] if named else node.args[1]
    if isinstance(target, ast.Constant):
        return None
    old, whole = source_of(target, line), source_of(node, line)
    fake = "zeros" if real == "ones" else "ones"
    made = call_of(target)
    plain = made is not None and made[0] in {fake, f"{fake}_like"}
    new = old.replace(fake, real, 1) if plain else f"torch.{real}_like({old})"
    start = target.col_offset - node.col_offset
    if not line.isascii() or whole[start : start + len(old)] != old:
        return None
    return f"{whole[:start]}{new}{whole[start + len(old) :]}"


def _flagged(node: ast.expr, line: str) -> str | None:
    """A call of the user's own loss with its last argument, a flag or a label, the other way round."""
    given = [*node.args[1:], *(k.value for k in node.keywords)] if isinstance(node, ast.Call) else []
    flags = [g for g in given if isinstance(g, ast.Constant) and g.value in (True, False)]
    if len(flags) != 1 or not line.isascii():
        return None
    flag, whole = flags[0], source_of(node, line)
    start = flag.col_offset - node.col_offset
    other = {"True": "False", "False": "True", "0": "1", "1": "0", "0.0": "1.0", "1.0": "0.0"}[repr(flag.value)]
    return f"{whole[:start]}{other}{whole[start + len(source_of(flag, line)) :]}"


def _makes(node: ast.Call) -> bool:
    """Whether a call makes a tensor of numbers: `torch.full((n, 1), 0.0)` has two arguments, too."""
    made = call_of(node)
    return made is not None and made[0] in {"full", "full_like", "zeros", "ones", "randn", "rand", "where"}


def _negated(text: str) -> str | None:
    names = {made[0] for node in _nodes(text) if (made := call_of(node)) is not None}
    if names & _KINKED or any(isinstance(node, ast.IfExp) for node in _nodes(text)):
        return None
    if names & _FIRST:
        return rewrite_where(text, _inner)
    return rewrite_where(text, _without_minus) or rewrite_where(text, _with_minus)


def _nodes(text: str) -> list[ast.expr]:
    found: list[ast.expr] = []
    rewrite_where(text, lambda node, line: found.append(node))
    return found


def _reduces(node: ast.expr) -> bool:
    made = call_of(node)
    return made is not None and made[0] in {"mean", "sum"}


def _inner(node: ast.expr, line: str) -> str | None:
    """softplus(x) → softplus(-x): what pushes the other way, and is steep where it should be."""
    made = call_of(node)
    if made is None or made[0] not in _FIRST or len(made[1]) != 1:
        return None
    inside, whole = made[1][0], source_of(node, line)
    old = source_of(inside, line)
    minus = isinstance(inside, ast.UnaryOp) and isinstance(inside.op, ast.USub)
    new = (
        source_of(inside.operand, line)
        if minus and isinstance(inside, ast.UnaryOp)
        else f"-{source_of(inside, line, True)}"
    )
    return whole.replace(old, new, 1) if old in whole else None


def _without_minus(node: ast.expr, line: str) -> str | None:
    turned = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub) and _reduces(node.operand)
    return source_of(node.operand, line) if turned and isinstance(node, ast.UnaryOp) else None


def _with_minus(node: ast.expr, line: str) -> str | None:
    return f"-{source_of(node, line)}" if _reduces(node) else None
