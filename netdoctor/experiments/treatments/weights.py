"""Treatments of the weights before the first step: the very code that the fix shows, run on the copy."""

from __future__ import annotations

import ast
import builtins
import math
from types import CodeType, SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.errors import CannotReplayError
from netdoctor.experiments.batchnorm import bypass_batchnorm
from netdoctor.experiments.treatments.treatment import Bench, Case, Treatment

_SEED = 0
_LIBRARIES = {"torch": torch, "nn": nn, "F": F, "math": math, "init": nn.init}
_FORBIDDEN = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.While)


def run_code(case: Case) -> Treatment | None:
    """Runs code that changes weights in place, such as `torch.nn.init.kaiming_normal_(model.body[3].weight)`.

    Only code that names nothing but torch, the model and what it sets itself; None for any other.
    """
    leaves = {name: f"leaf_{number}" for number, name in enumerate(case.places.leaves)}
    code = case.fix.code
    for name in sorted(leaves, key=len, reverse=True):  # "layers[0].W" is no name that could be given a value
        code = code.replace(name, leaves[name]) if not name.isidentifier() else code
    loose = frozenset({*case.places.leaves, *leaves.values()})
    compiled = _compiled(code, loose | {label.partition(".")[0] for label in case.places.models})
    if compiled is None:
        return None

    def apply(bench: Bench) -> None:
        copies = _loose(case, bench)
        names = {**_LIBRARIES, "model": _model(case, bench), **_variables(case, bench), **copies}
        names |= {leaves[name]: copied for name, copied in copies.items()}
        torch.manual_seed(_SEED)
        with torch.no_grad():
            exec(compiled, names)  # the code is netdoctor's own, made from names of parameters

    return _hidden_by_batchnorm(case, Treatment(apply))


def _hidden_by_batchnorm(case: Case, treatment: Treatment) -> Treatment:
    """What BatchNorm hides shows only without it, so both arms run without."""
    if case.finding.check != "batchnorm-masking":
        return treatment
    return Treatment(treatment.apply, both=_bypass, says="both arms with BatchNorm bypassed")


def _bypass(bench: Bench) -> None:
    for module in bench.sandbox.modules():
        bypass_batchnorm(module)


def _compiled(code: str, loose: frozenset[str]) -> CodeType | None:
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError):
        return None
    nodes = list(ast.walk(tree))
    names = [node for node in nodes if isinstance(node, ast.Name)]
    set_here = {node.id for node in names if isinstance(node.ctx, ast.Store)}
    known = set_here | set(_LIBRARIES) | {"model"} | loose | set(dir(builtins))
    about_weights = any(node.id == "model" or node.id in loose for node in names) and not {"model", "x"} & set_here
    sets = any(isinstance(node, ast.Attribute) and _in_place(node.attr) for node in nodes)
    if not (about_weights and sets) or any(isinstance(node, _FORBIDDEN) for node in nodes):
        return None
    return compile(tree, "<fix>", "exec") if all(node.id in known for node in names) else None


def _in_place(name: str) -> bool:
    return name.endswith("_") and not name.startswith("_") and name not in ("clip_grad_norm_", "clip_grad_value_")


def _model(case: Case, bench: Bench) -> Any:
    """The copied model; the copied models under their labels; weights without a model under their names."""
    copies = {label: bench.copy_of(module) for label, module in case.places.models.items()}
    if len(copies) == 1:
        return next(iter(copies.values()))
    loose = _loose(case, bench)
    if not copies and not loose:
        raise CannotReplayError("the weights belong to a wrapper that is not copied")
    parameters = [
        (f"{label}.{name}", parameter)
        for label, module in copies.items()
        if module is not None
        for name, parameter in module.named_parameters()
    ] + list(loose.items())
    both = {"named_parameters": lambda: parameters, "parameters": lambda: [p for _, p in parameters]}
    return SimpleNamespace(**{**loose, **copies, **both})


def _variables(case: Case, bench: Bench) -> dict[str, Any]:
    """The copied models under the names of the script's variables; what hangs on `self` under a stand-in of it."""
    found: dict[str, Any] = {}
    for label, module in case.places.models.items():
        start, _, attribute = label.partition(".")
        if attribute:
            setattr(found.setdefault(start, SimpleNamespace()), attribute, bench.copy_of(module))
        else:
            found[start] = bench.copy_of(module)
    return found


def _loose(case: Case, bench: Bench) -> dict[str, Tensor]:
    found = {name: bench.sandbox.copies.of(leaf) for name, leaf in case.places.leaves.items()}
    return {name: copied for name, copied in found.items() if isinstance(copied, Tensor)}


TREATMENTS = {
    "variance-scaling-init": run_code,
    "zero-bias": run_code,
    "forget-bias": run_code,
    "orthogonal-recurrence": run_code,
    "initialise": run_code,
}
