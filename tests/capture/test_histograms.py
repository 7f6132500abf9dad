"""Histograms of weights and gradients: what is counted, how many there are, and that watching them changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netdoctor.capture.histograms import BINS, MOST, PARAMETERS, VALUES, HistogramRecorder
from netdoctor.capture.naming import ModuleNames
from netdoctor.recording import Histogram, Role


def recorder(model: nn.Module) -> HistogramRecorder:
    names = ModuleNames()
    names.add_root(model)
    return HistogramRecorder(names)


def only(made: HistogramRecorder, role: Role = Role.WEIGHT) -> Histogram:
    (found,) = [histogram for histogram in made.histograms({}) if histogram.role is role]
    return found


def test_counts_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    model = nn.Linear(20, 30)
    model(torch.randn(4, 20)).square().sum().backward()
    made = recorder(model)
    made.see(list(model.parameters()), 0)
    for role, tensor in ((Role.WEIGHT, model.weight.detach()), (Role.WEIGHT_GRADIENT, model.weight.grad)):
        assert tensor is not None
        histogram = only(made, role)
        counts, edges = np.histogram(tensor.numpy().astype(np.float64), BINS)
        assert (histogram.low[0], histogram.high[0]) == (edges[0], edges[-1])
        assert np.abs(histogram.counts[0] - counts).sum() <= 2  # a value on an edge may fall on either side
        assert histogram.counts.sum() == 600
        assert histogram.sound


@pytest.mark.parametrize("value", [0.0, 3.0, float("nan"), float("inf"), 1e38])
def test_values_that_are_all_the_same_or_no_numbers(value: float) -> None:
    model = nn.Linear(5, 5)
    nn.init.constant_(model.weight, value)
    made = recorder(model)
    made.see([model.weight], 0)
    histogram = only(made)
    if np.isfinite(value):
        assert histogram.low[0] == histogram.high[0] == np.float32(value)
        assert histogram.counts[0].tolist() == [25] + [0] * (BINS - 1)
    else:
        assert np.isnan(histogram.low[0])
        assert histogram.counts.sum() == 0


def test_one_nan_hides_nothing() -> None:
    model = nn.Linear(5, 5)
    with torch.no_grad():
        model.weight[0, 0] = float("nan")
    made = recorder(model)
    made.see([model.weight], 0)
    assert only(made).counts.sum() == 24


def test_there_are_few_however_long_the_training_is() -> None:
    model = nn.Linear(5, 5)
    made = recorder(model)
    for step in range(3000):
        made.see([model.weight], step)
    made.finish(3000)
    steps = only(made).steps.tolist()
    assert len(steps) <= MOST
    assert steps[0] == 0
    assert steps[-1] == 3000
    made.finish(3001)  # nothing is held any more
    assert only(made).steps.tolist() == steps


def test_of_several_optimizers_with_the_same_weight_the_first_counts() -> None:
    model = nn.Linear(5, 5)
    made = recorder(model)
    made.see([model.weight], 0)
    made.see([model.weight], 0)
    assert only(made).steps.tolist() == [0]


def test_biases_and_unknown_or_odd_parameters_are_left_out() -> None:
    model = nn.Linear(5, 5)
    made = recorder(model)
    integers = nn.Parameter(torch.ones(3, 3, dtype=torch.int64), requires_grad=False)
    made.see([model.bias, nn.Parameter(torch.ones(3, 3)), integers, nn.Parameter(torch.ones(0, 3))], 0)
    assert made.histograms({}) == []


def test_half_precision_and_complex_weights_are_counted() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.complex64):
        model = nn.Linear(5, 5, dtype=dtype)
        made = recorder(model)
        made.see([model.weight], 0)
        assert only(made).counts.sum() in (25, 50)


def test_a_model_of_very_many_layers_is_bounded() -> None:
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(PARAMETERS + 5))
    made = recorder(model)
    made.see([layer.weight for layer in model], 0)
    assert len(made.histograms({})) == PARAMETERS


def test_nothing_of_the_model_is_touched_or_held() -> None:
    model = nn.Linear(50, 50)
    model(torch.randn(4, 50)).sum().backward()
    before = [t.clone() for t in (model.weight.detach(), model.weight.grad) if t is not None]
    state = torch.random.get_rng_state()
    made = recorder(model)
    made.see(list(model.parameters()), 0)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, (model.weight, model.weight.grad), strict=True))


def test_of_a_large_weight_all_its_rows_and_columns_are_sampled() -> None:
    model = nn.Linear(64, 640)
    with torch.no_grad():
        model.weight.copy_((torch.arange(640)[:, None] + torch.arange(64) / 64).float())
    made = recorder(model)
    made.see([model.weight], 0)
    histogram = only(made)
    assert VALUES / 2 <= histogram.counts.sum() <= 2 * VALUES
    assert histogram.counts.min() > 0.5 * histogram.counts.max()  # as even as the rows are
