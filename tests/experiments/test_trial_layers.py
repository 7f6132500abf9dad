"""Each treatment between the layers, and safe operations, against the same change made by hand."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.checks.numerics.form import CLAMP
from netdoctor.checks.numerics.rewriting import Edit
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.safe_operations import _OTHERS, _computed
from netdoctor.experiments.treatments.treatment import Bench
from netdoctor.finding import Fix, Location
from netdoctor.recording import Kind, Layer, Operand, Origin, Recording, SourceLine
from tests.experiments.test_trial_treatments import STEPS, by_hand, case, data, seeded, step_of, treated

# --- layers ----------------------------------------------------------------------------------------------------------


def layers(*kinds: tuple[str, str, Kind]) -> Recording:
    found = [
        Layer(path, kind, what, number, weight=f"{path}.weight" if what is Kind.LINEAR else "", function=kind.lower())
        for number, (path, kind, what) in enumerate(kinds)
    ]
    return Recording(layers=found)


def test_activations_are_exchanged_where_the_finding_says() -> None:
    seen = layers(("0", "Linear", Kind.LINEAR), ("1", "ReLU", Kind.ACTIVATION), ("2", "Linear", Kind.LINEAR))
    model = seeded()
    leaky = nn.Sequential(model[0], nn.LeakyReLU(0.01), model[2])
    step = step_of(model)
    leaky.load_state_dict(step.copies().of(model).state_dict())
    assert treated(step, "leaky-relu", seen=seen, places=("1",)) == pytest.approx(by_hand(leaky))
    assert treatment_of(case(step, Fix("leaky-relu", ""), seen, ("0",))) is None


def test_without_a_norm() -> None:
    model = nn.Sequential(nn.Linear(6, 2), nn.LayerNorm(2))
    step = step_of(model)
    plain = nn.Sequential(nn.Linear(6, 2))
    plain.load_state_dict({k: v for k, v in step.copies().of(model).state_dict().items() if k.startswith("0.")})
    seen = layers(("0", "Linear", Kind.LINEAR), ("1", "LayerNorm", Kind.NORM))
    assert treated(step, "without-norm", seen=seen, at=Location("1")) == pytest.approx(by_hand(plain))
    assert treatment_of(case(step, Fix("without-norm", ""), seen, at=Location("0"))) is None


def deep(scale: float) -> nn.Sequential:
    torch.manual_seed(3)
    sizes = [6, 24, 24, 24, 2]
    model = nn.Sequential(*(nn.Linear(a, b) for a, b in pairwise(sizes)))
    for layer in model:
        nn.init.normal_(layer.weight, std=scale)
    return model


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_rescaling_gives_each_output_unit_scale(scale: float) -> None:
    model = deep(scale)
    step = step_of(model)
    seen = layers(*((str(number), "Linear", Kind.LINEAR) for number in range(4)))
    found = treatment_of(case(step, Fix("rescale-between-layers", ""), seen, ("0", "1", "2", "3"), check="exploding"))
    assert found is not None
    with quiet():
        bench = Bench(Sandbox(step), step.iterations)
        found.apply(bench)
        copied = bench.copy_of(model)
        assert isinstance(copied, nn.Sequential)
        values = data()[0][:32]
        for layer in copied[:3]:
            values = layer(values)
            assert float(values.square().mean().sqrt()) == pytest.approx(1.0, rel=1e-3)
    assert "behind 0" in bench.notes[0]


@pytest.mark.parametrize("scale", [1e-3, 10.0])
def test_rescaling_gives_all_gradients_one_scale(scale: float) -> None:
    model = deep(scale)
    step = step_of(model)
    seen = layers(*((str(number), "Linear", Kind.LINEAR) for number in range(4)))
    fix = Fix("rescale-between-layers", "")
    found = treatment_of(case(step, fix, seen, ("0", "1", "2", "3"), check="exploding-gradients"))
    assert found is not None
    scales = []
    with quiet():
        bench = Bench(Sandbox(step), step.iterations)
        found.apply(bench)
        copied = bench.copy_of(model)
        assert isinstance(copied, nn.Sequential)
        x, y = data()
        values = [copied[0](x[:32])]
        for layer in copied[1:]:
            values[-1].retain_grad()
            values.append(layer(values[-1]))
        F.cross_entropy(values[-1], y[:32]).backward()
        scales = [float(v.grad.square().mean().sqrt()) for v in values[:3] if v.grad is not None]
    assert max(scales) < 1.5 * min(scales)


def test_normalisation_and_shortcuts() -> None:
    seen = layers(*((str(number), "Linear", Kind.LINEAR) for number in range(4)))
    step = step_of(deep(0.1))
    copies = step.copies().of(step.modules[0])
    x, y = data()
    h = x[:32]
    for number, layer in enumerate(copies):
        h = F.layer_norm(layer(h), (24,)) if number < 3 else layer(h)
    assert treated(step, "add-normalisation", seen=seen)[0] == pytest.approx(F.cross_entropy(h, y[:32]).item())
    h = x[:32]
    for number, layer in enumerate(copies):
        h = layer(h) + h if number in (1, 2) else layer(h)
    assert treated(step, "add-shortcuts", seen=seen)[0] == pytest.approx(F.cross_entropy(h, y[:32]).item())


def test_an_activation_is_put_in() -> None:
    seen = layers(("0", "Linear", Kind.LINEAR), ("1", "Linear", Kind.LINEAR))
    torch.manual_seed(4)
    model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2))
    step = step_of(model)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    for ours, theirs in ((0, 0), (2, 1)):
        plain[ours].load_state_dict(step.copies().of(model)[theirs].state_dict())
    assert treated(step, "activation", seen=seen, places=("0",)) == pytest.approx(by_hand(plain))


# --- safe forms ------------------------------------------------------------------------------------------------------

KNOWN = {"eps": "1e-8", "tiny": "1e-12", "edge": "1e-6"}


@pytest.mark.parametrize(
    ("edit", "call", "expected"),
    [
        (CLAMP, lambda c, x: c(torch.log, (x,), {}), lambda x: torch.log(x.clamp_min(1e-8))),
        (CLAMP, lambda c, x: c(torch.log, (), {"input": x}), lambda x: torch.log(x.clamp_min(1e-8))),
        (
            Edit(1, "{x}.clamp_min({eps})", once=True),
            lambda c, x: c(torch.div, (x + 1, x), {}),
            lambda x: (x + 1) / x.clamp_min(1e-8),
        ),
        (
            Edit(1, "{x}.clamp_min({eps})", once=True),
            lambda c, x: c(Tensor.__rtruediv__, (x, 2.0), {}),
            lambda x: 2.0 / x.clamp_min(1e-8),
        ),
        (
            Edit(replaced="{x}.var({rest}correction=0).add({tiny}).sqrt()", drops=("unbiased", "correction")),
            lambda c, x: c(torch.std, (x, 0), {"unbiased": True}),
            lambda x: x.var(0, correction=0).add(1e-12).sqrt(),
        ),
        (Edit(keyword="eps={edge}"), lambda c, x: c(torch.logit, (x,), {}), lambda x: torch.logit(x, eps=1e-6)),
    ],
)
def test_templates_are_computed(edit: Edit, call: Any, expected: Any) -> None:
    x = torch.tensor([0.0, 0.25, 0.5])
    assert torch.equal(call(_computed(edit, KNOWN), x), expected(x))


@pytest.mark.parametrize(
    ("name", "function", "args"),
    [
        ("norm", torch.norm, (torch.zeros(3, 4), 2, 1)),
        ("norm", torch.linalg.vector_norm, (torch.zeros(3, 4),)),
        ("distance", torch.cdist, (torch.zeros(2, 4), torch.zeros(3, 4))),
        ("atan2", torch.atan2, (torch.zeros(3), torch.zeros(3))),
    ],
)
def test_other_safe_forms_have_finite_gradients(name: str, function: Any, args: tuple[Any, ...]) -> None:
    given = [arg.clone().requires_grad_() if isinstance(arg, Tensor) else arg for arg in args]
    result = _OTHERS[name](function, tuple(given), {})
    assert result.shape == function(*args).shape
    result.sum().backward()
    assert all(bool(torch.isfinite(arg.grad).all()) for arg in given if isinstance(arg, Tensor))


def test_masks_and_means_of_nothing() -> None:
    filled = _OTHERS["masked_fill"](torch.masked_fill, (torch.zeros(2, 2), torch.ones(2, 2).bool(), -math.inf), {})
    assert torch.isfinite(torch.softmax(filled, 1)).all()
    nothing = _OTHERS["cross_entropy"](F.cross_entropy, (torch.zeros(2, 3), torch.full((2,), -100)), {})
    assert nothing == 0


class Logarithm(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.log(torch.relu(x))


def test_the_guilty_operation_is_made_safe_in_its_module() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), Logarithm(), nn.Linear(8, 2))
    step = step_of(model)
    line = Logarithm.forward.__code__.co_firstlineno + 1
    origin = Origin(
        "forward",
        "Inf",
        0,
        "log",
        "1",
        inputs=(Operand("input", (32, 8), "float32", 0.0, 1.0, zeros=9),),
        source=SourceLine(__file__, line, "return torch.log(torch.relu(x))"),
    )
    seen = Recording(origin=origin)
    untreated = Sandbox(step).run(step.iterations, STEPS, Budget(30)).losses
    assert not math.isfinite(untreated[-1])
    losses = treated(step, "safe-form", seen=seen)
    assert all(map(math.isfinite, losses))
    assert len(losses) == STEPS


def test_the_guilty_operation_is_made_safe_in_the_loop() -> None:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        chosen = torch.softmax(200 * p, 1)[torch.arange(len(y)), y]
        return -torch.log(chosen).mean()

    step = step_of(seeded(), loss)
    line = loss.__code__.co_firstlineno + 2
    origin = Origin(
        "forward",
        "Inf",
        0,
        "log",
        inputs=(Operand("input", (32,), "float32", 0.0, 1.0, zeros=3),),
        source=SourceLine(__file__, line, "return -torch.log(chosen).mean()"),
    )
    assert not math.isfinite(Sandbox(step).run(step.iterations, STEPS, Budget(30)).losses[-1])
    assert all(map(math.isfinite, treated(step, "safe-form", seen=Recording(origin=origin))))
