"""Every statistic against numpy in double precision, on shapes and values that hypothesis makes up."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netdoctor.capture import many, statistics
from netdoctor.recording import Role, Stat
from tests.capture.observing import observing

SHAPES = st.lists(st.integers(1, 6), min_size=0, max_size=4).map(tuple)
SCALES = st.sampled_from([1e-30, 1e-20, 1e-12, 1e-3, 1.0, 1e4, 1e15, 1e25, 1e37])
DTYPES = st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16])


def made(shape, seed, scale=1.0, dtype=torch.float32):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
    return tensor.clamp(-torch.finfo(dtype).max, torch.finfo(dtype).max).to(dtype)


def reference(values):
    """MEAN, RMS, STD, ABSMAX in double precision, with the largest value taken out so that no square overflows."""
    flat = values.detach().double().numpy().reshape(-1)
    largest = np.abs(flat).max() or 1.0
    scaled = flat / largest
    return {
        Stat.MEAN: scaled.mean() * largest,
        Stat.RMS: math.sqrt((scaled**2).mean()) * largest,
        Stat.STD: scaled.std() * largest,
        Stat.ABSMAX: np.abs(flat).max(),
    }


@given(SHAPES, st.integers(0, 99), SCALES)
@settings(max_examples=150, deadline=None)
def test_moments(shape, seed, scale):
    values = made(shape, seed, scale)
    found, expected = statistics.moments(values).stats(), reference(values)
    assert found[Stat.ABSMAX] == expected[Stat.ABSMAX]
    assert found[Stat.RMS] == pytest.approx(expected[Stat.RMS], rel=1e-5)
    assert found[Stat.MEAN] == pytest.approx(expected[Stat.MEAN], rel=1e-5, abs=1e-6 * expected[Stat.RMS])
    assert found[Stat.STD] == pytest.approx(expected[Stat.STD], rel=1e-3, abs=1e-3 * expected[Stat.RMS])
    assert found[Stat.NONFINITE] == 0


@given(SHAPES, st.integers(0, 99), DTYPES)
@settings(max_examples=60, deadline=None)
def test_moments_in_every_precision(shape, seed, dtype):
    values = made(shape, seed, 3.0, dtype)
    held = statistics.floats(values)
    assert held is not None
    assert held.dtype == (torch.float64 if dtype is torch.float64 else torch.float32)
    found, expected = statistics.moments(held).stats(), reference(values)
    assert found[Stat.RMS] == pytest.approx(expected[Stat.RMS], rel=1e-5)
    assert found[Stat.ABSMAX] == expected[Stat.ABSMAX]


def test_half_precision_is_summed_in_single():
    values = statistics.floats(torch.full((70_000,), 60_000.0, dtype=torch.float16))
    assert statistics.moments(values).stats()[Stat.RMS] == pytest.approx(60_000, rel=1e-3)


@pytest.mark.parametrize("shape", [(300,), (64, 50), (8, 4, 7, 7)])
def test_the_spread_of_values_around_a_large_mean(shape):
    """Far from zero the spread is a small difference of large numbers; 1/100 of the mean is still read well."""
    values = 100 + made(shape, 1)
    assert statistics.moments(values).stats()[Stat.STD] == pytest.approx(
        float(values.double().std(correction=0)), rel=0.02
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [0, 7, -1])
def test_what_is_not_finite_shows(bad, place):
    values = made((5, 8), 3)
    values.view(-1)[place] = bad
    found = statistics.moments(values).stats()
    assert found[Stat.NONFINITE] == 1
    assert not math.isfinite(found[Stat.ABSMAX])
    assert not math.isfinite(found[Stat.RMS])


def test_a_huge_finite_sum_is_finite():
    assert statistics.moments(torch.full((64,), 1e38)).stats()[Stat.NONFINITE] == 0
    assert statistics.moments(torch.full((64,), 1e38)).stats()[Stat.RMS] == pytest.approx(1e38, rel=1e-5)


def test_zeros():
    found = statistics.moments(torch.zeros(3, 4)).stats()
    assert found == {Stat.MEAN: 0, Stat.RMS: 0, Stat.STD: 0, Stat.ABSMAX: 0, Stat.NONFINITE: 0}


@given(st.integers(2, 80), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_batch_spread(batch, rest, seed):
    values = made((batch, *rest), seed)
    expected = math.sqrt(values[:64].double().reshape(min(batch, 64), -1).numpy().var(axis=0).mean())
    assert float(statistics.batch_spread(values)) == pytest.approx(expected, rel=1e-4)


def test_no_spread_without_a_batch():
    assert statistics.batch_spread(torch.randn(5)) is None
    assert statistics.batch_spread(torch.randn(1, 5)) is None
    assert statistics.batch_spread(torch.tensor(1.0)) is None


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99), st.floats(-2, 2))
@settings(max_examples=80, deadline=None)
def test_units_active(shape, seed, shift):
    values = (made(shape, seed) - shift).relu()
    for dim in {0, len(shape) - 1, -1}:
        by_unit = np.moveaxis(values.numpy(), dim, 0).reshape(shape[dim], -1)
        assert statistics.units_active(values, dim).tolist() == (by_unit != 0).any(1).astype(float).tolist()


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 99), st.sampled_from([0.5, 3.0, 10.0]))
@settings(max_examples=60, deadline=None)
def test_saturation(shape, seed, scale):
    inputs = made(shape, seed, scale)
    rules = {
        "sigmoid": (inputs.sigmoid(), lambda v: (v < 0.018) | (v > 0.982)),
        "tanh": (inputs.tanh(), lambda v: np.abs(v) > 0.999),
        "hardtanh": (torch.nn.functional.hardtanh(inputs), lambda v: np.abs(v) >= 1),
        "hardsigmoid": (torch.nn.functional.hardsigmoid(inputs), lambda v: (v < 1e-6) | (v > 1 - 1e-6)),
    }
    for name, (values, outside) in rules.items():
        share, by_unit = statistics.saturated(values, name, -1)
        expected = outside(np.moveaxis(values.numpy(), -1, 0).reshape(shape[-1], -1))
        assert float(share) == pytest.approx(expected.mean(), abs=1e-6)
        assert by_unit.tolist() == pytest.approx(expected.mean(1).tolist(), abs=1e-6)


def test_saturation_of_softmax_is_by_row():
    values = torch.tensor([[20.0, 0, 0], [0, 0, 0], [0, 30, 0], [1, 2, 3]]).softmax(-1)
    assert float(statistics.saturated(values, "softmax", -1)[0]) == 0.5
    assert statistics.saturated(values, "relu", -1) is None


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_rows_without_gradient(shape, seed):
    gradient = made(shape, seed)
    gradient[::2] = 0
    expected = (gradient.reshape(shape[0], -1).numpy() == 0).all(1).astype(float)
    assert statistics.rows_without_gradient(gradient).tolist() == expected.tolist()


@given(st.integers(1, 12), st.integers(1, 9), st.data())
@settings(max_examples=80, deadline=None)
def test_distinct_rows(units, inputs, data):
    kinds = data.draw(st.lists(st.integers(0, 3), min_size=units, max_size=units))
    rows = made((4, inputs), 5)[kinds]
    assert float(statistics.distinct_rows(rows)) == pytest.approx(len(set(kinds)) / units)


def test_distinct_rows_of_odd_ones():
    assert float(statistics.distinct_rows(torch.zeros(4, 3))) == 0.25
    permuted = torch.tensor([[1.0, 2, 3], [3, 2, 1], [2, 3, 1]])
    assert float(statistics.distinct_rows(permuted)) == 1.0
    assert float(statistics.distinct_rows(torch.full((4, 3), math.nan))) <= 1.0


@pytest.mark.parametrize("shape", [(256, 784), (1024, 1024), (10, 512), (64, 64, 3, 3), (7,), (), (50_000, 64)])
def test_the_sample_of_a_parameter_sees_every_column(shape):
    """A stride that divides the row length would look at a few inputs only, which may be the border of an image: always zero."""
    columns = math.prod(shape[1:])
    numbers = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    sample = statistics.strided(numbers, statistics.sample_stride(numbers))
    assert min(numbers.numel(), 900) <= len(sample) <= 2048
    if columns > 1:
        seen = {int(n) % columns for n in torch.arange(numbers.numel())[:: max(1, int(sample[1]))]}
        assert len(seen) >= min(columns, 500)


SCALES = st.sampled_from([1e-20, 1e-10, 1.0, 1e10, 1e20])


@pytest.mark.parametrize("mean", [True, False])
@given(st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 99), SCALES)
@settings(max_examples=60, deadline=None)
def test_brief_moments_agree_with_the_whole_ones(mean, shape, seed, scale):
    values = made(shape, seed, scale)
    whole, (fused,) = statistics.moments(values).stats(), many.scales([values], [False])
    for found in (statistics.brief_moments(values, mean).stats(), fused.stats()):
        assert {Stat.RMS, Stat.NONFINITE} <= found.keys() <= whole.keys()
        for stat, value in found.items():
            assert value == pytest.approx(whole[stat], rel=1e-3, abs=1e-3 * whole[Stat.RMS])


@given(
    st.lists(st.tuples(st.sampled_from([(3, 4), (12,), (2, 2, 3)]), SCALES, st.booleans()), min_size=1, max_size=8),
    st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_scales_of_many_tensors_do_not_depend_on_the_others_nor_on_what_vanished_before(many_of, seed):
    values = [made(list(shape), seed + at, scale) for at, (shape, scale, _) in enumerate(many_of)]
    found = many.scales(values, [vanished for _, _, vanished in many_of])
    for moments, tensor in zip(found, values, strict=True):
        assert moments.stats()[Stat.RMS] == pytest.approx(tensor.double().square().mean().sqrt().item(), rel=1e-5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_brief_moments_see_what_is_not_finite(bad):
    values = torch.ones(4, 5)
    values[2, 3] = bad
    assert statistics.brief_moments(values, False).stats()[Stat.NONFINITE] == 1
    assert many.scales([torch.ones(3), values], [False, False])[1].stats()[Stat.NONFINITE] == 1

    assert statistics.brief_batch(values) is None
    assert many.matrices([torch.ones(2, 3), values], [(False, None)] * 2)[1].moments.stats()[Stat.NONFINITE] == 1
    assert many.whole([values, torch.ones(4, 5)])[0].stats()[Stat.NONFINITE] == 1
    assert many.vectors([torch.ones(3), values[2]])[1].stats()[Stat.NONFINITE] == 1
    for extremes in (True, False):
        moments, spreads, _ = many.batches([torch.ones(4, 5), values], extremes)
        assert [made.stats()[Stat.NONFINITE] for made in moments] == [0, 1]
        assert spreads[0] == 0
        assert not math.isfinite(spreads[1])


@given(st.integers(2, 80), st.lists(st.integers(1, 5), min_size=1, max_size=3), st.integers(0, 99), SCALES)
@settings(max_examples=80, deadline=None)
def test_a_brief_batch_agrees_with_what_it_stands_for(batch, rest, seed, scale):
    values = made((batch, *rest), seed, scale) + scale
    found = statistics.brief_batch(values)
    if found is None:  # what cannot be told this way is told the other way
        return
    expected, stats = reference(values), found.moments.stats()
    assert stats[Stat.RMS] == pytest.approx(expected[Stat.RMS], rel=1e-5)
    assert stats[Stat.MEAN] == pytest.approx(expected[Stat.MEAN], abs=1e-5 * expected[Stat.RMS])
    spread = math.sqrt(values.double().reshape(batch, -1).numpy().var(axis=0).mean())
    assert found.spread == pytest.approx(spread, rel=1e-3)


def test_samples_that_are_alike_are_told_by_differences():
    values = 100 + 1e-3 * torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    assert statistics.brief_batch(values) is None
    assert float(statistics.batch_spread(values)) == pytest.approx(1e-3, rel=0.1)


@given(st.lists(st.integers(1, 5), min_size=2, max_size=4), st.integers(0, 99), st.floats(-2, 2))
@settings(max_examples=80, deadline=None)
def test_sums_tell_which_units_are_active(shape, seed, shift):
    values = (made(shape, seed) - shift).relu()
    for dim in {1, len(shape) - 1, -1}:
        expected = statistics.units_active(values, dim, rectified=True).tolist()
        assert statistics.sums_active(values.sum(0).numpy()[None], dim).tolist() == [expected]


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 99), st.sampled_from([1.0, 1e-3, 1e-30]))
@settings(max_examples=80, deadline=None)
def test_matrices(rows, columns, seed, scale):
    """One row's squares vanish in single precision, one row is zero; of the second gradient all squares vanish."""
    gradient = torch.cat([made((rows, columns), seed), made((1, columns), seed, scale), torch.zeros(1, columns)])
    gradients = [gradient, 1e-25 * gradient, torch.zeros(2, 3)]
    told = many.matrices(gradients, [(False, None)] * 3)
    told += many.matrices(gradients, [(True, each.idle) for each in told])  # whatever the step before was like
    for whole, found in zip(2 * gradients, told, strict=True):
        assert found.idle.tolist() == statistics.rows_without_gradient(whole).tolist()
        assert found.moments.stats()[Stat.RMS] == pytest.approx(reference(whole)[Stat.RMS], rel=1e-5)


SHAPES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=6)


@given(SHAPES, st.integers(0, 99), SCALES)
@settings(max_examples=60, deadline=None)
def test_many_at_once_are_measured_as_each_alone(shapes, seed, scale):
    values = [made(shape, seed + at, scale) + scale for at, shape in enumerate(shapes)]
    flat = [each.reshape(-1) for each in values]
    for found in (many.whole(values), many.vectors(flat)):
        for each, moments in zip(values, found, strict=True):
            expected = statistics.moments(each).stats()
            for stat, value in moments.stats().items():
                assert value == pytest.approx(expected[stat], rel=1e-3, abs=1e-3 * expected[Stat.RMS])


@pytest.mark.parametrize("extremes", [True, False])
@given(
    st.integers(1, 4),
    st.integers(2, 70),
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 99),
    st.sampled_from([1e-30, 1.0, 1e25]),
)
@settings(max_examples=60, deadline=None)
def test_batches_of_one_shape(extremes, count, samples, rest, seed, scale):
    values = [made((samples, *rest), seed + at, scale) + at * scale for at in range(count)]
    values.append((values[0] * 0 + values[0][:1]) * (1 + 1e-4 * made((samples, *rest), seed)))  # samples that are alike
    moments, spreads, sums = many.batches(values, extremes)
    for each, found, spread, summed in zip(values, moments, spreads, sums, strict=True):
        expected = statistics.moments(each).stats()
        for stat, value in found.stats().items():
            assert value == pytest.approx(expected[stat], rel=1e-3, abs=1e-3 * expected[Stat.RMS])
        alone = math.sqrt(each[:64].double().reshape(min(samples, 64), -1).numpy().var(axis=0).mean())
        everywhere = math.sqrt(each.double().reshape(samples, -1).numpy().var(axis=0).mean())
        assert min(abs(spread - alone), abs(spread - everywhere)) <= 0.02 * alone + 1e-6 * expected[Stat.RMS]
        assert np.allclose(summed, each.sum(0).numpy(), rtol=1e-4, atol=1e-4 * samples * expected[Stat.RMS])


@given(st.floats(-1e4, 1e4), st.lists(st.integers(1, 300), min_size=1, max_size=5), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_changes(size, sizes, seed):
    before = made((sum(sizes),), seed)
    after = before + size * made((sum(sizes),), seed + 1)
    expected = [
        (a - b).double().square().mean().sqrt().item()
        for a, b in zip(after.split(sizes), before.split(sizes), strict=True)
    ]
    assert many.changes(before, after, np.array(sizes)) == pytest.approx(expected, rel=1e-6)


def nested():
    return torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)])


NOTHING = {
    "integers": lambda: torch.arange(4),
    "booleans": lambda: torch.tensor([True]),
    "nothing inside": lambda: torch.empty(0, 5),
    "sparse": lambda: torch.eye(3).to_sparse(),
    "meta": lambda: torch.empty(3, device="meta"),
    "quantized": lambda: torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
    "lazy": torch.nn.parameter.UninitializedParameter,
}


@pytest.mark.parametrize("name", NOTHING)
@pytest.mark.filterwarnings("ignore")
def test_nothing_to_measure(name):
    assert statistics.floats(NOTHING[name]()) is None


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_not_measured():
    assert statistics.floats(nested()) is None


@pytest.mark.parametrize(
    "values",
    [
        torch.tensor(2.0),
        torch.randn(4, 6).t(),
        torch.randn(4, 6)[:, ::2],
        torch.randn(1, 3).expand(5, 3),
        torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        torch.randn(3, dtype=torch.complex64),
        torch.randn(3, dtype=torch.complex64).conj(),
        torch.randn(3, requires_grad=True) * 2,
        torch.nn.Parameter(torch.randn(2, 2)),
    ],
    ids=["scalar", "transposed", "strided", "expanded", "channels last", "complex", "conjugate", "graph", "parameter"],
)
def test_odd_tensors(values):
    held = statistics.floats(values)
    assert held is not None
    assert not held.requires_grad
    plain = torch.view_as_real(values.detach().resolve_conj()) if values.is_complex() else values
    assert statistics.moments(held).stats()[Stat.RMS] == pytest.approx(reference(plain)[Stat.RMS], rel=1e-5)


def test_the_units_of_an_embedding_are_told_apart_by_column() -> None:
    """Constant tables whose rows are multiplied: every column gets the gradient of the others."""

    torch.manual_seed(0)
    with observing() as observation:
        tables = nn.ModuleList([nn.Embedding(20, 4), nn.Embedding(30, 4)])
        for table in tables:
            nn.init.constant_(table.weight, 0.5)
        optimizer = torch.optim.SGD(tables.parameters(), lr=0.1)
        for _ in range(3):
            rows = torch.randint(0, 20, (16,))
            (tables[0](rows) * tables[1](rows)).sum(1).sub(torch.randn(16)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    recording = observation.recording
    for role in (Role.WEIGHT, Role.WEIGHT_GRADIENT):
        track = recording.of_parameter("0.weight", Stat.DISTINCT_ROWS, role)
        assert track is not None
        assert track.values[0] == 0.25
