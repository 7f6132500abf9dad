"""What a recording says of a training, against the same training run a second time with plain autograd."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netdoctor.recording import Kind, Role, Stat
from tests.capture.observing import observing, seed


class Net(nn.Module):
    """Modules, operations written in forward, one module used twice, in-place operations."""

    def __init__(self, width=8):
        super().__init__()
        self.one, self.two, self.out = nn.Linear(5, width), nn.Linear(width, width), nn.Linear(width, 3)
        self.act = nn.ReLU()

    def places(self, x):
        """The activations by the layer's name, in order."""
        found = {}
        h = found["one"] = self.one(x)
        h = found["act"] = self.act(h)
        h = found["two"] = self.two(h)
        h = found["act [call 2]"] = self.act(h)
        h = found["the model (tanh)"] = torch.tanh(h)
        found["out"] = self.out(h)
        return found

    def forward(self, x):
        return self.places(x)["out"]


def small(values):
    flat = values.detach().double()
    return {
        Stat.MEAN: float(flat.mean()),
        Stat.RMS: float(flat.square().mean().sqrt()),
        Stat.STD: float(flat.std(correction=0)),
        Stat.ABSMAX: float(flat.abs().max()),
    }


def observed(model, batches, make):
    """The recording of a training on these batches."""
    with observing(every=1) as observation:
        optimizer = make(model.parameters())
        observation.observer.names.add_root(model)
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return observation.recording


def plain(model, batches, make):
    """Per step: activations, their gradients, and per parameter (before, gradient, after), by plain autograd."""
    optimizer, steps = make(model.parameters()), []
    for x, y in batches:
        optimizer.zero_grad()
        places = model.places(x)
        for value in places.values():
            value.retain_grad()
        F.cross_entropy(places["out"], y).backward()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        gradients = {n: p.grad.detach().clone() for n, p in model.named_parameters()}
        optimizer.step()
        steps.append((places, before, gradients, {n: p.detach().clone() for n, p in model.named_parameters()}))
    return steps


def batches(count, size):
    return [(torch.randn(size, 5), torch.randint(0, 3, (size,))) for _ in range(count)]


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
}


@given(st.integers(1, 9), st.integers(1, 12), st.integers(0, 20), st.sampled_from(sorted(OPTIMIZERS)))
@settings(max_examples=10, deadline=None)
def test_against_autograd(size, width, number, optimizer):
    seed(number)
    model = Net(width)
    twin, data = copy.deepcopy(model), batches(4, size)
    recording = observed(model, data, OPTIMIZERS[optimizer])
    steps = plain(twin, data, OPTIMIZERS[optimizer])
    assert [layer.name for layer in recording.layers] == list(steps[0][0])
    for layer in recording.layers:
        for step, (places, *_) in enumerate(steps):
            value = places[layer.name]
            check(recording.track(layer.site(Role.OUTPUT), s).values[step] for s in small(value)).equals(small(value))
            gradient = small(value.grad)
            check(recording.of_layer(layer, s, Role.OUTPUT_GRADIENT).values[step] for s in gradient).equals(gradient)
    for name in recording.parameters:
        for step, (_, before, gradients, after) in enumerate(steps):
            check_parameter(recording, name, step, before[name], gradients[name], after[name])


class check:
    """`check(found).equals(expected)`: numbers of single precision."""

    def __init__(self, found):
        self.found = [float(value) for value in found]

    def equals(self, expected):
        scale = abs(expected[Stat.RMS])
        assert self.found == [pytest.approx(v, rel=2e-3, abs=1e-3 * scale + 1e-12) for v in expected.values()]


def check_parameter(recording, name, step, before, gradient, after):
    def read(stat, role=Role.WEIGHT):
        return float(recording.of_parameter(name, stat, role).values[step])

    assert read(Stat.RMS) == pytest.approx(small(before)[Stat.RMS], rel=1e-4, abs=1e-12)
    assert read(Stat.RMS, Role.WEIGHT_GRADIENT) == pytest.approx(small(gradient)[Stat.RMS], rel=1e-4, abs=1e-12)
    assert read(Stat.RMS, Role.UPDATE) == pytest.approx(small(after - before)[Stat.RMS], rel=1e-2, abs=1e-9)
    if gradient.dim() > 1:
        rows = recording.of_parameter(name, Stat.UNIT_ZERO_GRADIENT, Role.WEIGHT_GRADIENT)
        assert rows.values[step].tolist() == (gradient == 0).all(1).double().tolist()
    if gradient.dim() > 1 and step == 0:
        distinct = len({tuple(row) for row in before.tolist()}) / len(before)
        assert read(Stat.DISTINCT_ROWS) == pytest.approx(distinct)


def recorded(model, x, loss=lambda o: o.square().mean(), steps=2):
    """The recording of a short training by SGD."""
    with observing(every=1) as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        observation.observer.names.add_root(model)
        for _ in range(steps):
            optimizer.zero_grad()
            loss(model(x)).backward()
            optimizer.step()
    return observation.recording


def test_units_of_a_convolution_are_its_channels():
    seed()
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    with torch.no_grad():
        model[1].bias[2] = -100.0
    recording = recorded(model, torch.randn(5, 1, 8, 8))
    relu = recording.layer_at("2")
    assert relu.units == 4
    assert recording.of_layer(relu, Stat.UNIT_ACTIVE).values[0].tolist() == [1, 1, 0, 1]
    assert recording.of_layer(relu, Stat.SAMPLES).values[0] == 5 * 36
    gradients = recording.of_parameter("0.weight", Stat.UNIT_ZERO_GRADIENT, Role.WEIGHT_GRADIENT)
    assert gradients.values[0].tolist() == [0, 0, 1, 0]


def test_units_of_a_sequence_are_its_features():
    seed()
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1))
    with torch.no_grad():
        model[0].bias[1] = -100.0
    recording = recorded(model, torch.randn(4, 7, 3))
    relu = recording.layer_at("1")
    assert recording.of_layer(relu, Stat.UNIT_ACTIVE).values[0].tolist() == [1, 0, 1, 1, 1, 1]
    assert recording.of_layer(relu, Stat.SAMPLES).values[0] == 28


def test_saturated_share():
    seed()
    model = nn.Sequential(nn.Linear(3, 6), nn.Sigmoid(), nn.Linear(6, 1))
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.copy_(torch.tensor([9.0, -9, 0, 0, 0, 0]))
    recording = recorded(model, torch.randn(4, 3))
    sigmoid = recording.layer_at("1")
    assert recording.of_layer(sigmoid, Stat.SATURATED_SHARE).values[0] == pytest.approx(2 / 6)
    assert recording.of_layer(sigmoid, Stat.UNIT_SATURATED).values[0].tolist() == [1, 1, 0, 0, 0, 0]
    assert recording.of_parameter("0.weight", Stat.DISTINCT_ROWS).values[0] == pytest.approx(1 / 6)


def test_the_batch_spread_of_a_layer_that_ignores_its_input():
    seed()
    model = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 1))
    with torch.no_grad():
        model[0].weight.zero_()
    recording = recorded(model, torch.randn(4, 3))
    assert recording.of_layer(recording.layer_at("0"), Stat.BATCH_STD).values[0] == pytest.approx(0, abs=1e-7)


def test_half_precision():
    seed()
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 1)).to(torch.bfloat16)
    x = torch.randn(4, 3, dtype=torch.bfloat16)
    expected = small(model[0](x))
    recording = recorded(model, x)
    layer = recording.layer_at("0")
    assert recording.of_layer(layer, Stat.RMS).values[0] == pytest.approx(expected[Stat.RMS], rel=1e-4)
    assert recording.parameters["0.weight"].dtype == "bfloat16"


def test_in_place_operations_do_not_overwrite_what_was_measured():
    """pytorch#95617: a hook that keeps the tensor sees it after the next in-place operation."""
    seed()
    model = nn.Sequential(nn.Linear(3, 6), nn.ReLU(inplace=True), nn.Linear(6, 1))
    x = torch.randn(4, 3)
    expected = small(model[0](x).clone())
    recording = recorded(model, x)
    assert recording.of_layer(recording.layer_at("0"), Stat.MEAN).values[0] == pytest.approx(
        expected[Stat.MEAN], rel=1e-4
    )


def test_gradient_norm_lr_and_loss_of_every_step():
    seed()
    model, losses, norms, lrs = Net(), [], [], []
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        for x, y in batches(30, 4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            losses.append(loss.item())
            norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1e9)))
            lrs.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
    recording = observation.recording
    assert recording.loss.values.tolist() == losses
    assert recording.scalars["lr"].values.tolist() == lrs
    assert recording.scalars["gradient norm"].values.tolist() == pytest.approx(norms, rel=1e-5)
    assert recording.steps == 30
    assert recording.counts["step"] == recording.counts["backward"] == recording.counts["zero_grad"] == 30


def test_the_gradient_norm_is_from_before_clipping():
    seed()
    model = Net()
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(12, 4):
            optimizer.zero_grad()
            (1e3 * F.cross_entropy(model(x), y)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()
    scalars = observation.recording.scalars
    unclipped = scalars.get("norm at clipping", scalars["gradient norm"]).values
    assert min(unclipped) > 1


@pytest.mark.parametrize("listed", [True, False])
def test_clipping_that_is_given_nothing_is_counted(listed):
    seed()
    model = Net()
    with observing() as observation, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of an empty generator
        weights = list(model.parameters()) if listed else model.parameters()
        optimizer = torch.optim.SGD(weights, lr=0.1)
        for x, y in batches(40, 4):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
    assert observation.recording.counts["clip"] == 40
    assert observation.recording.counts.get("clip of nothing", 0) == (0 if listed else 40)


def test_a_long_accumulation_is_one_step():
    seed()
    model = Net()
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            for x, y in batches(40, 2):
                (F.cross_entropy(model(x), y) / 40).backward()
            optimizer.step()
    assert observation.recording.steps == 3
    assert [len(i.backwards) for i in observation.step.iterations] == [40, 40, 40]


def test_a_loop_that_never_steps_counts_its_backward_calls():
    seed()
    model = Net()
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(60, 2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
    assert observation.observer.step >= 40
    assert observation.recording.counts["backward"] == 60


def test_lbfgs_takes_one_step_however_often_it_asks():
    seed()
    model, (x, y) = Net(), batches(1, 8)[0]

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with observing() as observation:
        optimizer = torch.optim.LBFGS(model.parameters(), max_iter=20, line_search_fn="strong_wolfe")
        for _ in range(3):
            optimizer.step(closure)
    assert observation.recording.counts["backward"] > 20
    assert observation.recording.steps == 3


def test_a_scaled_loss_is_recorded_unscaled():
    seed()
    model = Net()
    scaler, losses = torch.amp.GradScaler("cpu", init_scale=512.0), []
    with observing() as observation:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in batches(4, 4):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            losses.append(loss.item())
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
    assert observation.recording.loss.values.tolist() == losses


class Odd(nn.Module):
    """Makes tensors that no statistic is defined on."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(4, 4)

    def forward(self, x):
        h = self.net(x)
        spectrum = torch.fft.fft(h).conj() * torch.fft.fft(h)
        scalar = h.sum()
        empty = h[:, :0].sum()
        sparse = torch.sparse.mm(torch.eye(x.shape[0]).to_sparse(), h)
        index = h.argmax(1)
        return torch.relu(spectrum.abs()).sum() + scalar.tanh() + empty + sparse.t().contiguous().sum() + index.sum()


def test_odd_tensors_do_no_harm():
    seed()
    recording = recorded(Odd(), torch.randn(3, 4), loss=lambda o: o, steps=6)
    assert recording.faults == []
    assert recording.steps == 6
    assert [layer.name for layer in recording.of_kind(Kind.ACTIVATION)] == ["the model (relu)", "the model (tanh)"]


def test_an_empty_batch_does_no_harm():
    seed()
    recording = recorded(Net(), torch.randn(0, 5), loss=lambda o: o.sum(), steps=4)
    assert recording.faults == []
    assert recording.steps == 4


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_do_no_harm():
    seed()
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2)
    x, padded = torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    padded[0, 3:] = True
    with observing() as observation:
        for _ in range(3):
            model.eval()
            with torch.no_grad():
                model(x, src_key_padding_mask=padded)
                torch.nested.nested_tensor([torch.randn(2, 3), torch.randn(4, 3)]) * 2
            model.train()
            model(x, src_key_padding_mask=padded).sum().backward()
    assert observation.recording.faults == []


def test_lazy_modules():
    seed()
    with observing() as observation:
        model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(4, 5)).square().mean().backward()
            optimizer.step()
    recording = observation.recording
    assert [layer.name for layer in recording.layers] == ["0", "1", "2"]
    assert recording.of_parameter("0.weight", Stat.RMS).values[0] > 0
    assert math.isfinite(recording.update_ratio("0.weight").values[0])


def test_weights_are_parameters_of_the_graph_though_their_making_was_seen():
    """Under `netdoctor run` the model is built while operations are watched."""
    seed()
    with observing() as observation:
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        F.cross_entropy(model(torch.randn(4, 5)), torch.randint(0, 3, (4,))).backward()
        optimizer.step()
    graph = observation.recording.graph
    first = next(o for o in graph.operations if o.name == "linear")
    values = [graph.values[i] for i in first.inputs]
    assert [(v.origin, v.name) for v in values[1:]] == [("parameter", "0.weight"), ("parameter", "0.bias")]
