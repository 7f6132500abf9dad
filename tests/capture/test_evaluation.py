"""What the script evaluates between training steps, told apart from acting, sampling and teaching."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.checks.structure.cuts import find
from netdoctor.data import Evaluation
from tests.capture.observing import observing, seed

X, Y = torch.arange(48.0).reshape(12, 4) / 48, torch.tensor([0, 1] * 6)


def model() -> nn.Sequential:
    seed()
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2))


def training(
    evaluate: Callable[[nn.Module], Any],
    steps: int = 4,
    loss: Any = F.cross_entropy,
    wrap: Callable[[nn.Sequential], nn.Module] = lambda net: net,
) -> list[Evaluation]:
    """The evaluations of a training that calls `evaluate(net)` after each step."""
    net = wrap(model())
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with observing() as observation:
        for _ in range(steps):
            net.train()
            optimizer.zero_grad()
            loss(net(X), Y).backward()
            optimizer.step()
            evaluate(net)
    return observation.recording.evaluations


def test_losses_are_those_that_the_script_computes():
    seen: list[float] = []

    @torch.no_grad()
    def evaluate(net: nn.Module) -> None:
        net.eval()
        seen.append(F.cross_entropy(net(X), Y).item())

    (found,) = training(evaluate)
    assert found.losses.tolist() == pytest.approx(seen)
    assert found.steps.tolist() == [1, 2, 3, 4]
    assert (found.phases, found.passes, found.train_mode, found.layers) == (4, 4, 0, ())
    assert [(given.shape, given.rows) for given in found.inputs] == [((12, 4), 48)]


def test_an_evaluation_with_gradients_on_in_every_step_is_no_part_of_the_loop():
    seen: list[float] = []

    def evaluate(net: nn.Module) -> None:
        net.eval()
        seen.append(F.cross_entropy(net(X), Y).item())

    (found,) = training(evaluate, steps=40)
    assert found.losses.tolist() == pytest.approx(seen)
    assert (found.passes, found.train_mode) == (40, 0)


def test_layers_in_training_mode_are_named_and_sums_become_means():
    @torch.inference_mode()
    def evaluate(net: nn.Module) -> float:
        return F.cross_entropy(net(X), Y, reduction="sum").item() / len(Y)

    (found,) = training(evaluate)
    assert (found.train_mode, found.layers) == (4, ("1", "3"))
    assert 0.1 < found.losses[0] < 3


class Deaf(nn.Sequential):
    def train(self, mode: bool = True) -> Deaf:
        super().train()
        return self


class Frozen(nn.Sequential):
    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self[1].eval()
        return self


class Noisy(nn.Sequential):
    def train(self, mode: bool = True) -> Noisy:
        super().train(mode)
        self[3].train()
        return self


@pytest.mark.parametrize(
    ("kind", "nested", "counted"),
    [(Deaf, False, 4), (Deaf, True, 4), (Frozen, False, 0), (Noisy, False, 0), (nn.Sequential, False, 0)],
)
def test_a_train_method_that_does_not_pass_its_mode_on(kind, nested, counted):
    @torch.no_grad()
    def evaluate(net: nn.Module) -> None:
        net.eval()
        F.cross_entropy(net(X), Y)

    (found,) = training(evaluate, wrap=lambda net: nn.Sequential(kind(*net)) if nested else kind(*net))
    assert found.train_mode == counted
    assert (found.override is not None) == bool(counted)
    if found.override is not None:
        assert (found.override.name, found.override.text) == ("Deaf.train", "super().train()")


def test_dropouts_that_stay_on_inside_of_a_model_may_be_meant_to():
    class Always(nn.Dropout):
        def train(self, mode: bool = True) -> Always:
            return super().train(True)

    @torch.no_grad()
    def evaluate(net: nn.Module) -> None:
        net.eval()
        F.cross_entropy(net(X), Y)

    (found,) = training(evaluate, wrap=lambda net: nn.Sequential(*net[:3], Always(0.5), net[4]))
    assert (found.train_mode, found.override) == (0, None)
    (found,) = training(evaluate, wrap=lambda net: Deaf(net[0], *net[2:]))  # the whole model: hardly
    assert (found.train_mode, found.override is None) == (4, False)


def test_an_accuracy_alone_has_no_loss():
    def evaluate(net: nn.Module) -> None:
        with torch.no_grad():
            assert (net(X).argmax(1) == Y).float().mean() >= 0

    (found,) = training(evaluate)
    assert (found.passes, found.losses.size) == (4, 0)


def test_evaluation_without_no_grad_counts_in_evaluation_mode():
    steps = iter(range(9))

    def evaluate(net: nn.Module) -> None:
        if next(steps) % 3 == 2:
            net.eval()
            assert F.cross_entropy(net(X), Y) > 0

    (found,) = training(evaluate, steps=9)
    assert (found.passes, found.losses.size, found.steps.tolist()) == (3, 3, [3, 6, 9])


def test_a_loss_by_hand_is_known_by_how_the_training_makes_it():
    def squares(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return ((prediction[:, 0] - target) ** 2).mean()

    @torch.no_grad()
    def evaluate(net: nn.Module) -> None:
        output = net(X)
        assert output.mean() == output.mean()
        squares(output, Y)

    (found,) = training(evaluate, loss=squares)
    assert found.losses.size == 4


def test_two_calls_of_one_function_are_two_evaluations():
    @torch.no_grad()
    def loss(net: nn.Module, rows: slice) -> float:
        net.eval()
        return F.cross_entropy(net(X[rows]), Y[rows]).item()

    def evaluate(net: nn.Module) -> tuple[float, float]:
        return loss(net, slice(0, 6)), loss(net, slice(6, 12))

    assert len(training(evaluate)) == 2


@pytest.mark.parametrize("kind", ["acting", "teaching", "sampling again"])
def test_what_is_no_evaluation(kind):
    def act(net: nn.Module) -> None:
        with torch.no_grad():
            net(X).argmax(1).tolist()

    def teach(net: nn.Module) -> None:
        with torch.no_grad():
            target = net(X)
        F.mse_loss(net(X), target).backward()

    if kind == "sampling again":

        @torch.no_grad()
        def often(net: nn.Module) -> None:
            for _ in range(3):
                assert (net(X).argmax(1) == Y).any() or True

        (found,) = training(often)
        assert found.repeated == 8
        return
    assert training(act if kind == "acting" else teach) == []


def test_a_training_in_evaluation_mode_is_no_evaluation():
    net = model().eval()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with observing() as observation:
        for _ in range(4):
            optimizer.zero_grad()
            F.cross_entropy(net(X), Y).backward()
            optimizer.step()
    assert observation.recording.evaluations == []


def test_a_model_of_an_optimizer_that_only_ran_without_gradient_has_parameters_of_its_own() -> None:
    """Its layers are named as those of the other model: neither may stand for both."""
    torch.manual_seed(0)
    with observing() as observation:
        maker, judge = nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(3, 1))
        optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in (maker, judge)]
        for _ in range(3):
            with torch.no_grad():
                made = maker(torch.randn(4, 2))
            loss = judge(made).square().mean()
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
    parameters = observation.recording.parameters
    assert {p.name: (p.optimizer, p.shape) for p in parameters.values()} == {
        "maker.0.weight": (0, (3, 2)),
        "maker.0.bias": (0, (3,)),
        "judge.0.weight": (1, (1, 3)),
        "judge.0.bias": (1, (1,)),
    }
    cut = find(observation.recording.graphs[0], ["maker.0.weight", "maker.0.bias"])
    assert cut is not None
    assert (cut.operation.module, cut.names) == ("maker.0", ("maker.0.weight", "maker.0.bias"))
