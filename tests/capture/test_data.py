"""What is kept of inputs and targets, against the tensors themselves, and that looking at them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from netdoctor.capture import data
from netdoctor.capture.data import column_facts, sample_rows
from netdoctor.recording import Recording
from tests.capture.observing import observing, seed


def trained(
    x: torch.Tensor, y: torch.Tensor, loss: object, model: nn.Module | None = None, steps: int = 12
) -> Recording:
    """Batches of 16 in order, again and again."""
    seed()
    model = model or nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 3 if y.dtype == torch.int64 else 1))
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        for step in range(steps):
            at = torch.arange(16 * step, 16 * step + 16) % len(x)
            optimizer.zero_grad()
            loss(model(x[at]), y[at]).backward()
            optimizer.step()
    return observation.recording


def test_a_table_and_its_classes() -> None:
    seed()
    x, y = torch.randn(192, 5) * torch.tensor([1.0, 10, 100, 1000, 0]) + 7, torch.arange(192) // 64
    recording = trained(x, y, functional.cross_entropy)
    (inputs,), (target,) = recording.inputs, recording.targets
    assert inputs.shape == (16, 5)
    assert inputs.axis == "column"
    assert inputs.rows == 16 * len(inputs.steps)
    seen = torch.cat([x[(16 * s) % 192 :][:16] for s in inputs.steps]).double().numpy()
    np.testing.assert_allclose(inputs.columns.mean, seen.mean(0))
    np.testing.assert_allclose(inputs.columns.std, seen.std(0), atol=1e-9)
    assert inputs.columns.std[4] == 0
    assert inputs.line > 0
    assert "model(x[at])" in inputs.text
    assert target.name == "cross_entropy"
    assert target.classes is not None
    assert target.classes[0].tolist() == [16.0, 0.0, 0.0]
    assert target.ordered is not None
    assert target.ordered[0] == 1.0
    graph = recording.graph
    assert graph is not None
    assert inputs.value is not None
    assert graph.values[inputs.value].shape == (16, 5)


def test_images_are_told_by_channel() -> None:
    x = torch.arange(3.0).reshape(1, 3, 1, 1).expand(64, 3, 8, 8).contiguous()
    recording = trained(x, torch.zeros(64, dtype=torch.int64), functional.cross_entropy)
    assert recording.inputs[0].axis == "channel"
    assert recording.inputs[0].columns.mean.tolist() == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("loss", [functional.mse_loss, lambda p, y: ((p - y) ** 2).mean(), nn.L1Loss()])
def test_regression_targets_of_known_and_hand_written_losses(loss: object) -> None:
    y = torch.linspace(0, 100, 192)[:, None]
    (target,) = trained(torch.randn(192, 4), y, loss).targets
    assert target.shape == (16, 1)
    assert target.classes is None
    assert target.within is not None
    assert target.within[0] == pytest.approx(float(y[:16].std(unbiased=False)), rel=1e-5)


def test_the_scale_of_every_measured_step_is_kept() -> None:
    x, y = torch.randn(8, 4), torch.randn(8, 1)
    (inputs,) = trained(x, y, functional.mse_loss).inputs
    assert inputs.scales is not None
    assert len(inputs.scales) == len(inputs.steps)
    expected = [float(x.double().mean()), float(x.double().std(correction=0))]
    assert np.allclose(inputs.scales, expected)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e38])
def test_scales_of_what_is_not_finite_warn_nobody(value: float) -> None:
    x = torch.ones(32, 2, dtype=torch.float64)
    x[3, 0], x[4, 0] = value, -value * value
    with observing() as observation:
        functional.mse_loss(nn.Linear(2, 1).double()(x), torch.ones(32, 1, dtype=torch.float64)).backward()
    (inputs,) = observation.recording.inputs
    assert inputs.scales is not None
    assert inputs.scales.shape == (1, 2)


def test_equal_batches_have_equal_hashes_and_others_do_not() -> None:
    x, y = torch.randn(16, 4), torch.randn(16, 1)
    assert len(set(trained(x, y, functional.mse_loss).inputs[0].batches)) == 1
    x, y = torch.randn(400, 4), torch.randn(400, 1)
    inputs = trained(x, y, functional.mse_loss).inputs[0]
    assert len(set(inputs.batches)) == len(inputs.steps)


def test_a_model_of_loose_weights_has_inputs_too() -> None:
    weight = torch.randn(4, 1, requires_grad=True)
    with observing() as observation:
        optimizer = torch.optim.SGD([weight], lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            functional.mse_loss(torch.full((8, 4), 5.0) @ weight, torch.ones(8, 1)).backward()
            optimizer.step()
    assert [facts.mean for facts in observation.recording.inputs] == [5.0]


def test_passes_without_gradient_are_not_taken() -> None:
    model = nn.Linear(4, 1)
    with observing() as observation, torch.no_grad():
        functional.mse_loss(model(torch.randn(8, 4)), torch.randn(8, 1))
    assert observation.recording.inputs == observation.recording.targets == []


def test_the_script_draws_the_same_random_numbers() -> None:
    x, y = torch.randn(64, 4), torch.randn(64, 1)
    trained(x, y, functional.mse_loss)
    after = torch.rand(1), np.random.rand()
    seed()
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    assert model is not None
    assert (torch.rand(1), np.random.rand()) == after


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=5))
@example([1, 22, 25, 37, 37])
def test_samples_are_bounded_and_taken_from_the_tensor(shape: list[int]) -> None:
    tensor = torch.arange(int(np.prod(shape)), dtype=torch.float64).reshape(shape)
    rows = sample_rows(tensor, 1)
    assert 0 < rows.size <= data.STEP_NUMBERS
    columns = shape[1] if len(shape) >= 4 else shape[-1] if len(shape) > 1 else 1
    assert rows.shape[1] == columns
    assert ((rows >= 0) & (rows < tensor.numel()) & (rows == np.round(rows))).all()


def test_wide_inputs_keep_at_most_so_many_columns() -> None:
    recording = trained(torch.randn(64, 5000), torch.randn(64, 1), functional.mse_loss, steps=2)
    inputs = recording.inputs[0]
    assert inputs.columns.mean.size <= data.MAX_COLUMNS
    assert inputs.stride == 10


def test_rows_with_nan_are_left_out() -> None:
    x = torch.ones(32, 2)
    x[3, 0] = float("nan")
    with observing() as observation:
        model = nn.Linear(2, 1)
        functional.mse_loss(model(x), torch.ones(32, 1)).backward()
    (inputs,) = observation.recording.inputs
    assert inputs.rows == 31
    assert inputs.mean == 1.0


def test_nothing_finite_is_nan_everywhere() -> None:
    columns = column_facts(np.empty((0, 3)))
    assert np.isnan(columns.mean).all()
    assert columns.mean.shape == (3,)


def test_the_repeated_extreme_of_a_column() -> None:
    column = np.r_[np.random.default_rng(0).standard_normal(990), np.full(10, -999.0)]
    columns = column_facts(np.column_stack([column, column.clip(-3), np.full(1000, 4.0), np.arange(1000)]))
    assert columns.extreme[0] == -999.0
    assert columns.extreme_share[0] == pytest.approx(0.01)
    assert columns.extreme_distance[0] > 500
    assert columns.extreme_distance[1] < 5  # clipped, not apart
    assert np.isnan(columns.extreme[2])
