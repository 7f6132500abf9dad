"""Standardising and shuffling the data of captured steps, on trainings of which the answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments import pairing, scaling
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Optimizer, Recording
from tests.capture.observing import Observation, observing, seed
from tests.experiments.capturing import fit, mlp


def trained(x: Tensor, y: Tensor, lr: float = 0.05, outputs: int = 2) -> Observation:
    seed()
    model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, outputs))
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=lr)
        for batch in torch.randperm(len(x)).split(32)[:24]:
            optimizer.zero_grad()
            loss = functional.mse_loss if y.is_floating_point() else functional.cross_entropy
            loss(model(x[batch]), y[batch]).backward()
            optimizer.step()
    return observation


def separable(count: int = 800) -> tuple[Tensor, Tensor]:
    x = torch.randn(count, 6, generator=torch.Generator().manual_seed(0))
    return x, (x[:, 0] > 0).long()


def scaled(observation: Observation) -> dict[str, Arm]:
    return scaling.trials(observation.recording, observation.step, Budget(60.0), lambda what: None)


def test_inputs_in_scale_are_not_tried() -> None:
    assert scaled(trained(*separable())) == {}


def test_standardised_inputs_train_where_raw_ones_do_not() -> None:
    x, y = separable()
    arms = scaled(trained(300 * x + 1000, y, lr=0.3))
    assert set(arms) == {"scaling/input", "scaling/control"}
    control, treated = arms["scaling/control"].losses, arms["scaling/input"].losses
    assert len(control) == len(treated) == scaling.STEPS
    assert treated[-10:].mean() < 0.5 * control[-10:].mean()


def test_losses_of_standardised_targets_are_told_in_the_script_s_unit() -> None:
    x, _ = separable()
    arms = scaled(trained(x, 500 + 100 * x[:, :1], lr=1e-4, outputs=1))
    assert set(arms) == {"scaling/target", "scaling/control"}
    assert arms["scaling/target"].losses[0] == pytest.approx(100.0**2, rel=0.3)
    assert arms["scaling/control"].losses[0] > 500.0**2


def paired(x: Tensor, y: Tensor) -> dict[str, Arm]:
    observation = trained(x, y)
    recording = observation.recording
    recording.arms["overfit/own"] = Arm("overfit/own", torch.ones(1).double().numpy(), facts={"reached": True})
    return pairing.trials(recording, observation.step, Budget(60.0), lambda what: None)


def test_true_pairs_are_easier_than_shuffled_ones() -> None:
    arms = paired(*separable())
    assert set(arms) == {"pairing/true", "pairing/shuffled", "pairing/shuffled again"}
    true, *shuffled = (float(arm.losses.mean()) for arm in arms.values())
    assert all(true < 0.85 * one for one in shuffled)


@pytest.mark.parametrize(("different", "judged"), [(31, False), (32, True)])
def test_a_small_table_is_learned_by_heart_in_any_order(different: int, judged: bool) -> None:
    """Sums of two digits: a few rows again and again, of which no permutation is harder than the true one."""
    x, y = separable(different)
    again = torch.arange(800) % different
    failures = [arm.failure for arm in paired(x[again], y[again]).values()]
    assert (failures[-1] == "") is judged
    assert judged or f"only {different} different samples" in failures[-1]


def test_pairs_that_were_lost_are_as_hard_as_shuffled_ones() -> None:
    x, y = separable()
    arms = paired(x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))])
    true, *shuffled = (float(arm.losses.mean()) for arm in arms.values())
    assert all(true == pytest.approx(one, rel=0.1) for one in shuffled)
    assert arms["pairing/shuffled"].losses.tolist() != arms["pairing/shuffled again"].losses.tolist()


def test_nothing_is_shuffled_where_nothing_fitted_a_tiny_batch() -> None:
    observation = trained(*separable())
    assert pairing.trials(observation.recording, observation.step, Budget(60.0), lambda what: None) == {}


def shuffled(step: TrainingStep, seed: int = 1) -> list[tuple[Tensor, Tensor]]:
    """The inputs and targets of each captured batch after a shuffle."""
    shuffle = pairing._Shuffle(step.iterations, seed)
    pairs = []
    for iteration in step.iterations:
        model, loss = iteration.backwards[0].entries
        pairs.append((model.args[0].tensor, shuffle.apply(loss).args[1].tensor))
    assert shuffle.moved == len(step.iterations)
    return pairs


def again(y: Tensor) -> TrainingStep:
    """Two passes over 64 samples, the second in another order."""
    x = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(64, generator=torch.Generator().manual_seed(3))
    return fit(mlp(), functional.cross_entropy, torch.cat([x, x[order]]), torch.cat([y, y[order]]), steps=4)


def test_a_sample_that_comes_again_has_its_new_target_again() -> None:
    y = torch.arange(64) % 3
    rows, targets = (torch.cat(several) for several in zip(*shuffled(again(y)), strict=True))
    given = {row.numpy().tobytes(): int(target) for row, target in zip(rows[:64], targets[:64], strict=True)}
    assert [given[row.numpy().tobytes()] for row in rows[64:]] == targets[64:].tolist()
    assert sorted(targets[:64].tolist()) == sorted(y.tolist())
    assert targets[:64].tolist() != y.tolist()


def test_inputs_with_several_targets_keep_several() -> None:
    """States that come with either answer are no easier to learn once they are shuffled."""
    x, y = torch.zeros(128, 6), torch.arange(128) % 2
    step = fit(mlp(), functional.cross_entropy, x, y, steps=4)
    _, targets = (torch.cat(several) for several in zip(*shuffled(step), strict=True))
    assert set(targets.tolist()) == {0, 1}


def test_slow_steps_have_fewer_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    observation = trained(*separable())
    step, recording = observation.step, observation.recording
    assert pairing._enough(recording, step, 60.0) == 8
    monkeypatch.setattr(pairing, "_pace", lambda step: 0.03)
    assert [pairing._enough(recording, step, seconds) for seconds in (8.0, 4.0, 1.0)] == [8, 4, 2]


@pytest.mark.parametrize(("kind", "lr", "rate"), [("AdamW", 5e-3, 5e-3), ("AdamW", 0.1, 1e-3), ("SGD", 5e-3, 1e-3)])
def test_an_adam_that_fitted_a_tiny_batch_keeps_its_rate(kind: str, lr: float, rate: float) -> None:
    recording = Recording(optimizers=[Optimizer(0, kind, ({"lr": lr},), ())])
    recording.arms["overfit/own"] = Arm("overfit/own", torch.ones(1).double().numpy(), facts={"lr": lr})
    assert pairing._own_rate(recording) == rate


def test_pairs_that_are_not_learned_by_heart_are_tried_on_fewer_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels at random of a small network: 256 samples are too many for these steps, 64 are not."""
    monkeypatch.setattr(pairing, "STEPS", 120)
    x, y = separable()
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]
    arms = paired(x, y)
    assert [arm.facts["batches"] for arm in arms.values()] == [2.0, 2.0, 2.0]
    true, *shuffled = (float(arm.losses.mean()) for arm in arms.values())
    assert all(true == pytest.approx(one, rel=0.1) for one in shuffled)
