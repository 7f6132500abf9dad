"""What to do about a cut in the graph: the user's line without it, where that is enough."""

from __future__ import annotations

import ast

from netdoctor.checks.numerics.rewriting import call_of, rewrite_where, source_of
from netdoctor.checks.structure.cuts import INDICES, Cut

_DROPPED = frozenset({"detach", "data", "item"})


def attached(cut: Cut, text: str) -> tuple[str, str]:
    """What to do in one sentence, and the line to paste ("" where there is none)."""
    name = cut.operation.name
    if not cut.operation.grad_enabled:
        return "Compute it outside of torch.no_grad(), or freeze these parameters and leave them out.", ""
    if name in INDICES:
        return f"{name} has no gradient: compare the scores themselves with the target, e.g. by cross_entropy.", ""
    if name in {"numpy", "tolist", "__array__"}:
        return "Stay in torch: what leaves it takes no gradient along.", ""
    again = text
    several = len(cut.operation.inputs) > 1  # a list of losses
    while (shorter := rewrite_where(again, lambda node, line: _without(node, line, several))) is not None:
        again = shorter
    return f"Take {cut.way} out.", again if again != text else ""


def _without(node: ast.expr, line: str, several: bool) -> str | None:
    """The tensor itself in place of `x.detach()`, `x.data`, `x.item()`, `torch.tensor(x, ...)`, `Variable(x, ...)`; of `several`
    tensors in a list, their stack."""
    if isinstance(node, ast.Attribute) and node.attr == "data":
        return source_of(node.value, line, atom=True)
    call = call_of(node)
    if call is None or not call[1]:
        return None
    if call[0] in _DROPPED and isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
        return source_of(call[1][0], line, atom=True)
    inner = call_of(call[1][0])
    if call[0] in {"from_numpy", "as_tensor", "tensor"} and inner is not None and inner[0] == "numpy" and inner[1]:
        return source_of(inner[1][0], line, atom=True)
    remade = call[0] in {"tensor", "Variable", "as_tensor"} and any(k.arg == "requires_grad" for k in call[2])
    if not remade:
        return None
    return f"torch.stack({source_of(call[1][0], line)})" if several else source_of(call[1][0], line)
