"""A sequence model that is given, at each position, the very token that it must predict there."""

from __future__ import annotations

import ast

from netdoctor.checks.numerics.rewriting import rewrite_where, source_of
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, SourceLine

COPIES = "leakage/copies"
_SHIFTED = "torch.cat([torch.full_like({0}[:, :1], BOS), {0}[:, :-1]], 1)"
_ALONE = "logits, target = logits[:, :-1], tokens[:, 1:]"


def copied_target(check: str, recording: Recording, follows: float, lost: float) -> Finding | None:
    """The finding that the trained model copies its target from an input: `follows` of the exchanged tokens are predicted
    where they were put, and all other inputs taken from other samples cost no more than `lost` of the right predictions."""
    arm = recording.arms.get(COPIES)
    if arm is None or arm.failure or not arm.facts["causal"] or arm.facts["shifted"]:
        return None
    right, followed = float(arm.facts["right"]), float(arm.facts["follows"])
    alone = float(arm.facts.get("alone", right))
    if min(right, followed) < follows or alone < right - lost:
        return None
    text, others = str(arm.facts.get("text", "")), int(float(arm.facts["others"]))
    source = SourceLine(str(arm.facts["file"]), int(float(arm.facts["line"])), text) if text else None
    name = next((spoken for _, spoken in reversed(_nodes(arm, text))), "an input")
    says = "Each position is given the very token that it must predict there, so the model copies it and learns nothing: left "
    says += f"to go on by itself, it has nothing to copy. {100 * followed:.0f} % of other tokens that were put there are predicted"
    beside = Evidence(
        "right predictions with all other inputs from other samples", 100 * alone, "≥", 100 * (right - lost), "%"
    )
    copied = Evidence(
        "exchanged tokens that are predicted where they were put", 100 * followed, "≥", 100 * follows, "%"
    )
    return Finding(
        check,
        f"the model is given its target: {name} holds at each position the token to be predicted there",
        Severity.ERROR,
        f"{says}; taken from other samples, {'the other input changes' if others == 1 else 'all else changes'} nothing."
        if others
        else f"{says}.",
        Location.at(source, step=0),
        (copied, beside) if others else (copied,),
        (_fix(arm, name, text),),
        Certainty.PROVEN,
        first_step=0,
        places=(name,),
        share=1.0,
    )


def _fix(arm: Arm, name: str, text: str) -> Fix:
    if arm.facts["looped"]:
        says = "Give each step the token of the step before, and a token for the beginning to the first."
        return Fix("shift-target", says, "token = BOS at t = 0, else target[:, t - 1]", Reach.MODEL)
    if not float(arm.facts["others"]):
        code = _ALONE.replace("tokens", name) if name.isidentifier() else _ALONE
        return Fix("shift-target", "Predict the next token: shift the target by one.", code, Reach.RUN)
    says = "Shift it by one: a token for the beginning (BOS), then the target without its last."
    if not name.isidentifier():
        return Fix("shift-target", says, f"decoder_input = {_SHIFTED.format('target')}", Reach.MODEL)
    made, line = f"{name}_in = {_SHIFTED.format(name)}", _given(arm, text, f"{name}_in")
    return Fix("shift-target", says, f"{made}\n{line}" if line else made, Reach.MODEL)


def _nodes(arm: Arm, text: str) -> list[tuple[ast.expr, str]]:
    """The arguments of the line's calls that may hold the tokens, each with its text; those of the innermost call last."""
    found: list[tuple[ast.expr, str]] = []

    def note(node: ast.expr, line: str) -> None:
        given = _node(arm, node)
        found.extend([] if given is None else [(given, source_of(given, line))])

    rewrite_where(text, note)
    return found


def _given(arm: Arm, text: str, name: str) -> str:
    """The line with another name in the place of the tokens."""
    spans = [(node.lineno, node.col_offset, node.end_col_offset) for node, _ in _nodes(arm, text)][-1:]
    return rewrite_where(text, lambda n, _: name if (n.lineno, n.col_offset, n.end_col_offset) in spans else None) or ""


def _node(arm: Arm, node: ast.expr) -> ast.expr | None:
    """The argument that holds the tokens, where a node is a call of that form; innermost calls come last."""
    if not isinstance(node, ast.Call) or len(node.args) != int(float(arm.facts["arguments"])):
        return None
    place, keyword = int(float(arm.facts["place"])), str(arm.facts["keyword"])
    named = next((k.value for k in node.keywords if k.arg == keyword), None) if keyword else None
    found = named or (node.args[place] if 0 <= place < len(node.args) else None)
    return None if isinstance(found, ast.Constant) else found
