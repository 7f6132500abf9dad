"""What the short questions answer, on small models whose answer is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.frozen_norms import Frozen
from netdoctor.capture.naming import SEPARATOR
from netdoctor.capture.step import TrainingStep
from netdoctor.experiments import (
    conflicts,
    custom_backward,
    determinism,
    final,
    positions,
    questions,
    redundancy,
    unfitted,
    usage,
    width,
)
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import captured, fit, mlp, watched

torch.manual_seed(0)
X, Y = torch.randn(96, 6), torch.randint(0, 3, (96,))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers, whichever tests ran before."""
    torch.manual_seed(0)


def asked(
    look: Callable[..., dict[str, Arm]], step: TrainingStep, recording: Recording | None = None
) -> dict[str, Arm]:
    """The arms; nothing of the user's may have changed, and no random state."""
    weights = [p.detach().clone() for module in step.modules for p in (*module.parameters(), *module.buffers())]
    state = torch.get_rng_state()
    arms = look(recording or Recording(), step, Budget(30))
    now = [p for module in step.modules for p in (*module.parameters(), *module.buffers())]
    assert all(torch.equal(a, b) for a, b in zip(weights, now, strict=True))
    assert torch.equal(state, torch.get_rng_state())
    assert [arm.failure for arm in arms.values() if arm.failure] == []
    return arms


class Model(nn.Module):
    """A dense network around a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Tensor], inputs: int = 6) -> None:
        super().__init__()
        self.body, self.head, self.drop = nn.Linear(inputs, 16), nn.Linear(16, 3), nn.Dropout(0.5)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self, torch.relu(self.body(x))))


@pytest.mark.parametrize(
    ("function", "differs", "registered"),
    [
        (lambda model, x: F.dropout(x, 0.3), True, False),
        (lambda model, x: F.dropout(x, 0.3, model.training), False, None),
        (lambda model, x: nn.Dropout(0.3)(x), True, False),
        (lambda model, x: model.drop(x), False, None),
        (lambda model, x: x + torch.randn_like(x), True, None),
        (lambda model, x: x, False, None),
    ],
)
def test_two_passes_in_evaluation_mode(function, differs, registered):
    (arm,) = asked(determinism.repeat, fit(Model(function), F.cross_entropy, X, Y)).values()
    assert (arm.facts["differs"], arm.facts.get("registered")) == (differs, registered)


def test_the_trained_model_is_asked_with_running_statistics_and_those_of_the_batch():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, momentum=1e-6), nn.Linear(8, 3))
    step = fit(net, F.cross_entropy, 5 + 3 * X, Y)
    arms = asked(final.outcome, step)
    net.eval()
    with torch.no_grad():
        wanted = [F.cross_entropy(net(5 + 3 * X[i : i + 32]), Y[i : i + 32]).item() for i in (0, 32, 64)]
    assert arms["final/evaluation"].losses.tolist() == pytest.approx(wanted)
    assert arms["final/batch statistics"].losses.mean() < 0.9 * np.mean(wanted)
    counts = arms["final/evaluation"].curves
    assert counts["targets"].tolist() == torch.bincount(Y).tolist()
    assert (counts["right"] <= counts["targets"]).all()
    assert counts["predictions"].sum() == len(Y)


def test_what_the_trained_model_leaves_of_a_constant_prediction():
    net = nn.Linear(6, 1)
    y = X[:, :1] + 3
    step = fit(net, F.mse_loss, X, y, steps=3)
    with torch.no_grad():
        pairs = [(net(X[i : i + 32]), y[i : i + 32]) for i in (0, 32, 64)]
    wanted = [float(F.mse_loss(out, target) / target.var(correction=0)) for out, target in pairs]
    assert float(asked(final.outcome, step)["final/evaluation"].facts["left"]) == pytest.approx(
        np.mean(wanted), rel=1e-4
    )


def test_of_several_terms_the_worst_tells_what_is_left_and_of_none_nothing():
    net = nn.Linear(6, 3)
    both = fit(net, lambda out, y: F.cross_entropy(out, y) + F.mse_loss(out[:, 0], 100 + 0.1 * y), X, Y)
    assert float(asked(final.outcome, both)["final/evaluation"].facts["left"]) > 100
    neither = fit(net, lambda out, y: out.square().mean(), X, Y)
    assert "left" not in asked(final.outcome, neither)["final/evaluation"].facts


@pytest.mark.parametrize("averaged", [False, True])
def test_a_frozen_norm_with_loaded_statistics_is_seen_to_move(averaged):
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    net[1].running_mean.fill_(4.0)
    for parameter in net[1].parameters():
        parameter.requires_grad_(False)
    step = fit(net, F.cross_entropy, X, Y)
    if averaged:  # a teacher, whose weights the loop moves
        net[1].weight.mul_(0.99)
    arm = asked(final.outcome, step)["final/batch statistics"]
    assert (float(arm.facts["frozen_drift"]) > 0.5) is not averaged
    assert arm.facts["frozen_module"] == ("" if averaged else "1")


def test_norms_that_were_frozen_on_the_way_with_their_statistics_of_then():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    step = fit(net, F.cross_entropy, X, Y)
    norm = net[1]
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    net.eval()
    with torch.no_grad():
        wanted = [F.cross_entropy(net(X[i : i + 32]), Y[i : i + 32]).item() for i in (0, 32, 64)]
    net.train()
    kept = Frozen(len(step.iterations), mean, variance, norm.weight.detach().clone(), None)
    norm.running_mean.add_(3.0)
    arms = asked(final.outcome, replace(step, norms=[(norm, kept)]))
    assert arms["final/kept statistics"].losses.tolist() == pytest.approx(wanted)
    assert arms["final/evaluation"].losses.mean() > 1.2 * np.mean(wanted)
    early = replace(kept, step=1)  # some of the captured batches are those of the second part
    assert "final/kept statistics" not in asked(final.outcome, replace(step, norms=[(norm, early)]))


def test_a_norm_that_was_frozen_on_the_way_is_not_taken_for_a_loaded_one():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    net[1].running_mean.fill_(4.0)
    step = fit(net, F.cross_entropy, X, Y)
    net[1].requires_grad_(False)
    assert asked(final.outcome, step)["final/batch statistics"].facts["frozen_module"] == ""


class Reader(nn.Module):
    """Reads some of what it is given."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor], width: int) -> None:
        super().__init__()
        self.net, self.read = mlp(width, 3), read

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return self.net(self.read(x, other))


def reading(read: Callable[[Tensor, Tensor], Tensor], width: int, x: Tensor = X) -> dict[str, Arm]:
    other = torch.randint(0, 5, (96, 4))

    def train() -> None:
        model = Reader(read, width)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows], other[rows]), Y[rows]).backward()
            optimizer.step()

    return asked(usage.usage, captured(train))


def ignored(arm: Arm) -> Any:
    """True for a whole tensor, else the ignored indices per axis."""
    return True if arm.facts["whole"] else [np.flatnonzero(c == 1).tolist() for c in arm.curves.values()]


def test_what_is_read_and_what_is_not():
    arms = reading(lambda x, other: torch.cat([x, other.float()], 1), 10)
    assert [ignored(arm) for arm in arms.values()] == [[[]], [[]]]
    assert [arm.facts["argument"] for arm in arms.values()] == ["x", "other"]
    assert ignored(reading(lambda x, other: x, 6)["usage/1"]) is True
    assert ignored(reading(lambda x, other: x[:, [0, 1, 4]], 3)["usage/0"]) == [[2, 3, 5]]
    assert ignored(reading(lambda x, other: other[:, 1:].float(), 3)["usage/1"]) == [[0]]


def test_constant_columns_are_not_asked_and_signs_are_read_without_a_gradient():
    fixed = X.clone()
    fixed[:, 2] = 1.0
    arm = reading(lambda x, other: x, 6, fixed)["usage/0"]
    assert np.isnan(arm.curves["axis 1"][2])
    assert ignored(reading(lambda x, other: (x > 0).float(), 6)["usage/0"]) == [[]]


def test_a_loss_that_is_the_same_in_any_order_reads_its_input_all_the_same():
    arms = asked(usage.usage, fit(mlp(6, 1), lambda output, _: output.mean() ** 2, X, Y))
    assert [ignored(arm) for arm in arms.values()] == [[[]]]


@pytest.mark.parametrize(("wrong", "natural"), [(0, False), (12, False), (12, True)])
def test_inputs_with_several_targets(wrong, natural):
    x = X[:48].repeat(2, 1)
    x = (x > 0).float() if natural else x
    y = Y[:48].repeat(2)
    y[48 : 48 + wrong] = (y[48 : 48 + wrong] + 1) % 3
    arm = asked(conflicts.conflicts, fit(mlp(), F.cross_entropy, x, y))["labels/conflicts"]
    assert (arm.facts["seen"], arm.facts["natural"], arm.facts["kind"]) == (96.0, natural, "classes")
    assert natural or arm.facts["conflicting"] == wrong


@pytest.mark.parametrize("shuffled", [False, True])
def test_inputs_that_come_again_with_or_without_their_targets(shuffled):
    """Two passes over 48 samples in batches of 32: the third batch holds the first samples again."""
    x, y = X[:48].repeat(2, 1), Y[:48].repeat(2)
    if shuffled:
        y[48:] = y[48:].roll(1)
    moved = int((y[64:96] != Y[16:48]).sum()) if shuffled else 0
    facts = asked(conflicts.conflicts, fit(mlp(), F.cross_entropy, x, y))["labels/conflicts"].facts
    assert facts["again"] >= 32
    assert (facts["moved"] > 0) is shuffled
    assert facts["moved"] >= moved
    shares = torch.bincount(y.long()) / len(y)
    assert facts["chance"] == pytest.approx(1 - float(shares.square().sum()), abs=1e-6)


def test_places_in_the_batch_are_no_labels():
    """As contrastive losses have them: the same inputs come at other places in the next epoch."""
    x = X[:32].repeat(3, 1)[torch.arange(96) // 32 * 32 + torch.arange(96).roll(5) % 32]
    assert asked(conflicts.conflicts, fit(mlp(outputs=32), F.cross_entropy, x, torch.arange(32).repeat(3))) == {}
    views = torch.cat([torch.arange(16) + 16, torch.arange(16)]).repeat(3)  # each names the other view of its input
    assert asked(conflicts.conflicts, fit(mlp(outputs=32), F.cross_entropy, x, views)) == {}


def test_one_of_two_inputs_does_not_tell_the_target_of_the_pair():
    torch.manual_seed(0)
    x, model = torch.randn(16, 6), mlp(outputs=2)

    def train():
        optimizer = torch.optim.Adam(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy((model(x) - model(torch.randn(16, 6))).abs(), torch.randint(0, 2, (16,))).backward()
            optimizer.step()

    assert asked(conflicts.conflicts, captured(train)) == {}


class Cube(torch.autograd.Function):
    factor = 3.0

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @classmethod
    def backward(cls, ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * cls.factor * x**2


class WrongCube(Cube):
    factor = 2.0


class Deaf(Cube):
    """Gives its own derivative, whatever comes from behind."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(4 * x.clamp(-1, 1)) / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Silent(Rounded):
    """Passes what lies outside of the range, where nothing is."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -gradient


@pytest.mark.parametrize(
    ("function", "off", "facts"),
    [
        (Cube, 0.0, {"identity": False}),
        (WrongCube, 1 / 3, {"passes": False, "identity": False, "stops": False}),
        (Deaf, None, {"passes": False, "identity": False, "stops": False}),
        (Rounded, 1.0, {"passes": True}),
        (Silent, 0.0, {"silent": True, "backward_text": "def backward(ctx: Any, gradient: Tensor) -> Tensor:"}),
        (Reversed, 1.0, {"identity": True}),
    ],
)
@pytest.mark.parametrize("kept", [False, True])
def test_custom_functions_beside_finite_differences(function, off, facts, kept):
    own = function.apply  # a name of the user's own, as most scripts have it
    step = fit(Model(lambda model, x: own(x) if kept else function.apply(x)), F.cross_entropy, X, Y)
    (arm,) = asked(custom_backward.compare, step).values()
    assert arm.name == f"custom backward/{function.__name__}"
    measured = float(arm.facts["off"])
    assert (
        measured > 0.1 if off is None else measured == pytest.approx(off, abs=1e-5) or (off == 1.0 and measured >= 1.0)
    )
    assert {key: arm.facts[key] for key in facts} == facts
    assert ("silent" in arm.facts) is (function is Silent)
    if function is WrongCube:
        assert float(arm.facts["factor"]) == pytest.approx(2 / 3, abs=1e-5)


def test_no_function_of_ones_own_is_no_arm():
    assert asked(custom_backward.compare, fit(mlp(), F.cross_entropy, X, Y)) == {}


class Pooled(nn.Module):
    """A mean over positions, of embeddings with or without positions; or a recurrence."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.embedding, self.position = kind, nn.Embedding(5, 16), nn.Embedding(6, 16)
        self.gru, self.mix, self.head = nn.GRU(16, 16, batch_first=True), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        x = x + self.position(torch.arange(6)) if self.kind == "positions" else x
        x = self.gru(x)[0] if self.kind == "recurrence" else x
        return self.head(torch.relu(self.mix(x)).mean(1))


@pytest.mark.parametrize(("kind", "blind"), [("bag", True), ("positions", False), ("recurrence", False)])
def test_who_is_blind_to_the_order(kind, blind, monkeypatch):
    monkeypatch.setattr("netdoctor.experiments.held_out.STEPS", 120)
    tokens = torch.randint(0, 5, (384, 6))
    step = fit(Pooled(kind), F.cross_entropy, tokens, (tokens[:, 0] > 2).long(), steps=12)
    arms = asked(positions.order, step)
    assert arms["positions/order"].facts["blind"] is blind
    assert list(arms)[1:] == (["positions/without", "positions/shuffled", "positions/with"] if blind else [])
    if blind:
        best = {name: float(arms[f"positions/{name}"].facts["best"]) for name in ("without", "shuffled", "with")}
        assert best["with"] < 0.85 * min(best["without"], best["shuffled"])
        assert arms["positions/order"].facts["unused"] == "position"


def test_shuffled_positions_are_the_same_numbers_in_an_order_of_their_own_for_each_sample():
    output = torch.ones(8, 6, 16)
    hook = lambda drawn: positions._adding([], 6, drawn)(nn.Embedding(5, 16), None, output) - output  # noqa: E731
    ordered, shuffled = hook(None), hook(torch.Generator().manual_seed(0))
    assert (ordered == ordered[:1]).all()
    assert torch.allclose(ordered.sum(1), shuffled.sum(1), atol=1e-5)
    orders = {tuple((row[:, None] == ordered[0]).all(-1).int().argmax(1).tolist()) for row in shuffled}
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len(orders) > 4


def test_a_wider_copy_learns_what_a_bottleneck_cannot():
    x = torch.rand(384, 2) * 4 - 2
    y = torch.sin(2 * x[:, :1]) + torch.cos(2 * x[:, 1:])
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1))

    def train() -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for number in range(12):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            F.mse_loss(net(x[rows]), y[rows]).backward()
            optimizer.step()

    step, graph = watched(train)
    graph.operations = [o if not o.module else _shown(o) for o in graph.operations]
    arms = asked(width.widen, step, Recording(graph=graph))
    assert [pair.units for pair in width.pairs(graph)] == [2]
    assert float(arms["width/wider"].facts["best"]) < 0.5 * float(arms["width/as it is"].facts["best"])


def _shown(operation: Any) -> Any:
    """With the reader's path in place of the internal key, as a recording has it."""
    return replace(operation, module=operation.module.rpartition(SEPARATOR)[2])


def test_the_effective_rank_is_that_of_what_comes_in():
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head = nn.Linear(6, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.body(x))

    x, y = torch.randn(384, 6), torch.randint(0, 3, (384,))
    x[:, 2:] = 0
    (arm,) = asked(redundancy.look, fit(Wide(), F.cross_entropy, x, y, steps=12)).values()
    rank, units, reach = arm.curves["body"]
    assert units == 64
    assert 1.5 < rank <= 2.0001
    assert 1.5 < reach <= 2.0001  # nothing that the layer is to blame for


def memorised(twins: int, apart: float) -> dict[str, Arm]:
    """A training that knows nearly all of its samples; `twins` of them lie so far from another one, with another label."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(192, 6, generator=generator)
    y = torch.randint(0, 3, (192,), generator=generator)
    x[:twins] = x[-twins:] + apart * torch.randn(twins, 6, generator=generator) if twins else x[:0]
    y[:twins] = (y[-twins:] + 1) % 3 if twins else y[:0]
    net = nn.Sequential(nn.Linear(6, 256), nn.ReLU(), nn.Linear(256, 3))

    def train() -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
        for step in range(600):
            rows = slice(32 * (step % 6), 32 * (step % 6) + 32)
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()

    return asked(unfitted.look, captured(train))


def test_samples_with_a_twin_of_another_label_cannot_be_taught():
    facts = memorised(twins=6, apart=1e-5)["labels/unfitted"].facts
    assert 3 <= facts["stuck"] <= 9
    samples = {int(index) for index in facts["samples"].split(",")}
    assert samples <= {*range(6), *range(186, 192)}


def test_what_can_be_taught_is_no_trouble():
    """Twins that lie apart are learned, sooner or later."""
    arms = memorised(twins=0, apart=0.0)
    assert arms == {} or arms["labels/unfitted"].facts["stuck"] == 0


def test_a_question_that_fails_stops_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any) -> dict[str, Arm]:
        raise ValueError("of no use")

    asked = {"first": failing, "second": lambda *_: {"second": Arm("second", np.empty(0))}}
    monkeypatch.setattr(questions, "QUESTIONS", asked)
    recording = Recording()
    arms = questions.ask(recording, fit(mlp(), F.cross_entropy, X, Y), Budget(60), lambda _: None)
    assert list(arms) == ["second"]
    assert [(fault.where, fault.error) for fault in recording.faults] == [("first", "ValueError: of no use")]


@pytest.mark.parametrize("length", [1, 9])
def test_ids_with_next_to_nothing_in_them_have_no_one_target(length):
    """Next-item prediction: histories of one item come again by themselves; whole ones that contradict are told."""
    ids = torch.zeros(96, 12)
    ids[:, :length] = torch.randint(1, 300, (48, length)).float().repeat(2, 1)
    y = torch.randint(0, 3, (48,)).repeat(2)
    y[48:60] = (y[48:60] + 1) % 3
    facts = asked(conflicts.conflicts, fit(mlp(12), F.cross_entropy, ids, y))["labels/conflicts"].facts
    assert facts["conflicting"] == (12.0 if length > 2 else 0.0)
