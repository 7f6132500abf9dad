"""What a mask in the wrong sense lets through, and which sense each of torch's functions expects, in words."""

from __future__ import annotations

from collections.abc import Mapping

from netdoctor.checks.structure.attention_masks import SUMS
from netdoctor.checks.structure.negated import negated_line

Facts = Mapping[str, float | str | bool]
_SENSE = {
    "multi_head_attention_forward": "In torch.nn (MultiheadAttention, TransformerEncoder, Transformer) True means: ignore.",
    "scaled_dot_product_attention": "For scaled_dot_product_attention True means: take part, the opposite of torch.nn.",
    "setitem": "The low score is put where the mask is True.",
    "masked_fill": "masked_fill puts the low score where the mask is True.",
    "where": "where takes its first value where the condition is True.",
}
_HIDES = {
    "padding": "What takes part in the attention is the same in all samples of a batch, as padding is; what differs between "
    "samples is hidden.",
    "causal": "Every position sees those after it, and none before it.",
}
_GENERAL = {
    False: "mask = ~mask  # where it is made, or handed over",
    True: "mask = 1 - mask  # before it is made the low number that is added",
}
_BESIDE = "# The causal part of the mask stays; before the two are joined:\npadding = ~padding"
COUNTED = {
    "padding": "positions where what takes part differs between samples",
    "causal": "positions that see one before them",
}


def let_through(facts: Facts) -> str:
    """What takes part in the attention, for a title; of the facts of the arm "masks/seen"."""
    if not float(facts["kept"]):
        return "it lets nothing through"
    return "it lets only the future through" if facts["kind"] == "causal" else "it lets nothing but padding through"


def explained(facts: Facts) -> str:
    """What was seen, and what the operation takes True for."""
    sense = _SENSE.get(str(facts["operation"]), "The low number is added where a key is to be hidden.")
    share = float(facts["kept"])
    hides = (
        f"{100 * share:.0f} % of the keys take part. {_HIDES[str(facts['kind'])]}" if share else "Every key is hidden."
    )
    return f"{hides} {sense}"


def turned_line(facts: Facts) -> str:
    """The user's line with the mask negated; the general form where it holds none, or more than what is to be negated."""
    if facts.get("beside"):
        return _BESIDE
    operation = str(facts["operation"])
    return negated_line(str(facts["text"]), operation, str(facts["argument"])) or _GENERAL[operation in SUMS]
