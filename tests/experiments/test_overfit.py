from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.experiments.overfit import overfit
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm
from tests.experiments.capturing import Loss, captured, fit, mlp, watched

ADAMS = ["overfit/adam 0.001", "overfit/adam 0.01", "overfit/adam 0.0001"]


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(96, 6)


@pytest.fixture
def labels() -> torch.Tensor:
    return torch.arange(96) % 3


def arms(step) -> dict[str, Arm]:
    return overfit(step, Budget(60))


def test_classes_are_learned_by_heart(x, labels):
    found = arms(fit(mlp(), F.cross_entropy, x, labels))
    assert list(found) == ["overfit/own"]
    facts = found["overfit/own"].facts
    assert (facts["kind"], facts["reached"], facts["accuracy"], facts["samples"]) == ("classes", True, 1.0, 8.0)
    assert facts["best"] <= facts["floor"] < facts["start"]
    assert facts["constant"] == pytest.approx(-sum(p * math.log(p) for p in (3 / 8, 3 / 8, 2 / 8)))
    assert (facts["lr"], facts["unreached"], facts["input_ignored"], facts["ended"]) == (5e-3, 0.0, False, "stopped")
    assert facts["gradient"] > 0
    assert "conflicting" not in facts


@pytest.mark.parametrize(
    "loss", [F.mse_loss, lambda out, y: ((out - y) ** 2).sum(), lambda out, y: 3 * F.l1_loss(out, y), F.smooth_l1_loss]
)
def test_regression_is_learned_by_heart_whatever_the_reduction(x, loss):
    facts = arms(fit(mlp(outputs=2), loss, x, torch.randn(96, 2)))["overfit/own"].facts
    assert (facts["kind"], facts["reached"]) == ("regression", True)
    assert facts["best"] <= 1.05 * facts["floor"]
    assert facts["floor"] < 0.15 * facts["constant"]


class Deaf(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = mlp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x * 0)


def test_a_model_that_ignores_its_input_fits_nowhere(x, labels):
    found = arms(fit(Deaf(), F.cross_entropy, x, labels))
    assert list(found)[:4] == ["overfit/own", *ADAMS]
    assert not any(arm.facts["reached"] for arm in found.values())
    facts = found["overfit/own"].facts
    assert facts["input_ignored"] is True
    assert facts["output_spread"] < 1e-6
    assert facts["best"] >= 0.98 * facts["constant"]
    assert facts["falls"] < 0.3


def test_another_network_on_other_inputs_is_not_the_one_that_is_asked(x):
    """A target network runs first, as in Q-learning; what it is given does not move the prediction."""
    model, teacher = mlp(outputs=1), mlp(outputs=1)

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        with torch.no_grad():
            wanted = teacher(x[32:64])
        F.mse_loss(model(x[:32]), wanted).backward()
        optimizer.step()

    facts = arms(captured(train))["overfit/own"].facts
    assert (facts["kind"], facts["reached"], facts["input_ignored"]) == ("regression", True, False)


def test_a_dead_optimizer_is_not_a_dead_model(x, labels):
    found = arms(fit(mlp(), F.cross_entropy, x, labels, make=lambda p: torch.optim.SGD(p, lr=1e-7)))
    fitted = {name for name, arm in found.items() if arm.facts["reached"]}
    assert len(fitted & set(ADAMS)) == 1
    (own,) = fitted - set(ADAMS)  # and it is the rate alone: a larger one fits with the script's own optimizer
    assert own.startswith("overfit/own lr x1e+0")


def test_a_rate_that_is_too_high_by_itself_is_found_out(x, labels):
    found = arms(fit(mlp(), F.cross_entropy, x, labels, make=lambda p: torch.optim.SGD(p, lr=300.0)))
    assert found["overfit/own"].facts["reached"] is False
    assert list(found.values())[-1].name.startswith("overfit/own lr x0.")
    assert list(found.values())[-1].facts["reached"] is True


def test_zero_weights_fit_with_a_matched_initialisation(x, labels):
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    found = arms(fit(model, F.cross_entropy, x, labels))
    assert found["overfit/own"].facts["unreached"] == pytest.approx(5 / 6)
    assert found["overfit/own"].facts["reached"] is False
    assert found["overfit/with matched initialisation"].facts["reached"] is True


def test_weights_behind_a_zero_weight_are_reached_a_step_later(x, labels):
    model = mlp()
    nn.init.zeros_(model[2].weight)
    facts = arms(fit(model, F.cross_entropy, x, labels))["overfit/own"].facts
    assert (facts["reached"], facts["unreached"]) == (True, 0.0)


def test_a_penalty_that_forbids_learning_is_named(x, labels):
    model = mlp()

    def loss(out: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(out, y) + sum(30.0 * p.square().sum() for p in model.parameters())

    found = arms(fit(model, loss, x, labels))
    assert found["overfit/own"].facts["reached"] is False
    assert found["overfit/without penalty"].facts["reached"] is True
    assert "overfit/without dropout" not in found  # there is none


@pytest.mark.parametrize("functional", [True, False])
def test_dropout_that_forbids_learning_is_named(x, labels, functional):
    class Dropped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.drop = mlp(), nn.Dropout(0.98)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.body(F.dropout(x, 0.98) if functional else self.drop(x))

    model = Dropped()

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
        F.cross_entropy(model(x[:32]), labels[:32]).backward()
        optimizer.step()

    step, graph = watched(train)
    found = overfit(step, Budget(60), graph)
    assert found["overfit/own"].facts["reached"] is False
    assert found["overfit/without dropout"].facts["reached"] is True


def test_weight_decay_is_in_the_way_of_the_own_optimizer_only(x, labels):
    make = lambda p: torch.optim.SGD(p, lr=0.1, weight_decay=5.0)  # noqa: E731
    found = arms(fit(mlp(), F.cross_entropy, x, labels, make=make))
    assert found["overfit/own"].facts["reached"] is False
    assert any(found[name].facts["reached"] for name in ADAMS if name in found)
    assert not any(arm.facts["reached"] for name, arm in found.items() if name not in ADAMS)


def test_conflicting_labels_are_told(x, labels):
    x[:] = x[0]
    facts = arms(fit(mlp(), F.cross_entropy, x, labels))["overfit/own"].facts
    assert facts["conflicting"] == "0, 1, 2, 3, 4, 5, 6, 7"
    assert "input_ignored" not in facts  # there is nothing in the input to look at
    assert facts["reached"] is False


def test_a_loss_that_is_not_finite_is_no_failure(x, labels):
    loss: Loss = lambda out, y: F.cross_entropy(out, y) / (out.sum() * 0)  # noqa: E731
    found = arms(fit(mlp(), loss, x, labels, steps=1))
    assert list(found) == ["overfit/own"]  # no optimizer can mend what is not finite before its first step
    found = found["overfit/own"]
    assert (found.failure, found.facts["reached"], found.facts["ended"]) == ("", False, "non-finite")
    assert len(found.losses) == 1


def test_a_loss_of_unknown_kind_is_not_called_broken(x, labels):
    loss: Loss = lambda out, _: (1.2 + torch.tanh(out)).mean()  # noqa: E731
    found = arms(fit(mlp(), loss, x, labels))
    assert list(found) == ["overfit/own"]  # it lost half of itself, so another optimizer tells nothing more
    found = arms(fit(mlp(), loss, x, labels, make=lambda p: torch.optim.SGD(p, lr=1e-9)))
    assert list(found)[:2] == ["overfit/own", ADAMS[0]]
    assert {arm.facts["kind"] for arm in found.values()} == {"other"}
    assert not any("with" in name for name in found)  # nothing to unblock where nothing is known to be blocked


def test_a_loss_below_zero_has_no_floor(x, labels):
    found = arms(fit(mlp(), lambda out, _: out.mean() - 10, x, labels))
    assert {arm.failure for arm in found.values()} == {"the loss may fall below zero, so its floor is not known"}


def test_a_term_of_unknown_floor_makes_the_loss_other(x):
    loss: Loss = lambda out, y: F.mse_loss(out, y) + 20 * torch.logsumexp(out, 1).mean()  # noqa: E731
    facts = arms(fit(mlp(), loss, x, torch.randn(96, 3)))["overfit/own"].facts
    assert (facts["kind"], facts["reached"]) == ("other", False)


def test_lbfgs_cannot_run_but_adam_can(x, labels):
    model = mlp()

    def train() -> None:
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2)

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            return loss

        optimizer.step(closure)
        optimizer.step(closure)

    found = arms(captured(train))
    assert found["overfit/own"].failure
    assert any(arm.facts.get("reached") for arm in found.values())


def test_opposed_losses_are_a_failure_with_its_reason(x):
    one, other = nn.Linear(6, 6), nn.Linear(6, 1)

    def train() -> None:
        first, second = torch.optim.Adam(one.parameters()), torch.optim.Adam(other.parameters())
        for _ in range(2):
            second.zero_grad()
            other(one(x).detach()).mean().backward()
            second.step()
            first.zero_grad()
            (-other(one(x)).mean()).backward()
            first.step()

    found = arms(captured(train))
    assert {n: a.failure for n, a in found.items()} == {
        "overfit/own": "the training has several losses that work against each other"
    }


def test_no_time_is_a_reason(x, labels):
    found = overfit(fit(mlp(), F.cross_entropy, x, labels), Budget(0))
    assert "do not fit in the 0 s that are left" in found["overfit/own"].failure


def test_nothing_captured_is_a_reason():
    found = arms(captured_nothing())
    assert found["overfit/own"].failure == "no complete training step was captured"


def captured_nothing():
    from netdoctor.capture.step import TrainingStep

    return TrainingStep([], [], [], [], {}, "no complete training step was captured")


def test_ctrl_c_comes_through(x, labels, monkeypatch):
    step = fit(mlp(), F.cross_entropy, x, labels)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(torch.optim.Adam, "step", interrupt)
    with pytest.raises(KeyboardInterrupt):
        overfit(step, Budget(60))
