"""The first NaN or Inf is traced to its operation, module, line and step: by running the step again on a copy."""

from __future__ import annotations

import linecache
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.capture.observing import observing, seed


def origin_of(train):
    """The origin that a training leaves behind."""
    seed()
    with observing() as observation:
        train()
    found = observation.recording.origin
    assert found is not None
    return found


class Layer(nn.Module):
    """A module of the user's that does one thing to the output of a linear layer."""

    def __init__(self, work):
        super().__init__()
        self.work = work

    def forward(self, x):
        return self.work(x)


def model_with(work, width=4):
    return nn.Sequential(nn.Linear(5, width), Layer(work), nn.Linear(width, 3))


def fit(model, steps=3, inputs=lambda step: torch.randn(6, 5), loss=lambda out: out.square().mean()):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        optimizer.zero_grad()
        loss(model(inputs(step))).backward()
        optimizer.step()


def clone_and_set(x, value):
    x = x.clone()
    x[0, 0] = value
    return x


class BadForward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return torch.log(x - x - 1)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class BadBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1

    @staticmethod
    def backward(ctx, gradient):
        return gradient / 0.0


def masked_softmax(x, whole_rows):
    mask = torch.zeros_like(x, dtype=torch.bool)
    mask[:, 1:] = True
    if whole_rows:
        mask[0] = True
    return torch.softmax(x.masked_fill(mask, -math.inf), dim=-1)


FORWARD = {
    "log of zero": (lambda x: torch.log(x.relu() * 0), "log", "Inf"),
    "log of a negative": (lambda x: (-x.abs() - 1).log(), "log", "NaN"),
    "zero by zero": (lambda x: (x * 0) / (x * 0), "div", "NaN"),
    "root of a negative": (lambda x: torch.sqrt(-x.abs() - 1), "sqrt", "NaN"),
    "overflow of exp": (lambda x: torch.exp(x.abs() * 0 + 1000), "exp", "Inf"),
    "masked row": (lambda x: masked_softmax(x, True), "softmax", "NaN"),
    "power": (lambda x: (-x.abs() - 1) ** 0.5, "pow", "NaN"),
    "infinity less infinity": (lambda x: (x * 0 + 1000).exp() - (x * 0 + 1000).exp(), "exp", "Inf"),
    "spread of one": (lambda x: x - x[:1].std(0), "std", "NaN"),
    "custom function": (BadForward.apply, "log", "NaN"),
    "arccos": (lambda x: torch.acos(x * 0 + 2), "acos", "NaN"),
    "product of zero and infinity": (lambda x: (x * 0) * torch.full_like(x, math.inf), "mul", "NaN"),
}


@pytest.mark.filterwarnings("ignore:std\\(\\).*degrees of freedom")
@pytest.mark.parametrize("name", FORWARD)
def test_forward(name):
    work, operation, kind = FORWARD[name]
    found = origin_of(lambda: fit(model_with(work)))
    assert (found.phase, found.operation, found.step, found.reproduced) == ("forward", operation, 0, True)
    assert found.kind == kind
    assert found.module == "1"
    assert found.source.file == __file__
    if name not in ("masked row", "custom function"):
        assert found.source.line == work.__code__.co_firstlineno
    assert linecache.getline(__file__, found.source.line).strip() == found.source.text


BACKWARD = {
    "root of zero": (lambda x: torch.sqrt(x * 0), "sqrt"),
    "norm of zero": (lambda x: x + (x * 0).square().sum(1, keepdim=True).sqrt(), "sqrt"),
    "where over a branch": (lambda x: torch.where(x > 1e9, (x * 0).sqrt(), x), "sqrt"),
    "where over a NaN branch": (lambda x: torch.where(x > 1e9, torch.log(x * 0), x), "log"),
    "power of zero": (lambda x: (x * 0) ** 0.5, "pow"),
}


@pytest.mark.parametrize("name", BACKWARD)
def test_backward(name):
    work, operation = BACKWARD[name]
    found = origin_of(lambda: fit(model_with(work)))
    assert (found.phase, found.step, found.reproduced) == ("backward", 0, True)
    assert found.operation == operation
    assert found.module == "1"
    assert found.source.line == work.__code__.co_firstlineno


def test_a_custom_function_that_breaks_backward_is_named():
    found = origin_of(lambda: fit(model_with(lambda x: BadBackward.apply(x))))
    assert (found.phase, found.module) == ("backward", "1")
    assert "BadBackward" in found.operation


def test_the_loss_outside_of_the_model():
    model = nn.Linear(5, 3)
    found = origin_of(lambda: fit(model, loss=lambda out: torch.log(out * 0).mean()))
    assert (found.phase, found.operation, found.module) == ("forward", "log", "")
    assert "torch.log(out * 0)" in found.source.text


def test_a_module_is_named_with_the_line_that_built_it():
    def train():
        model = nn.Sequential(nn.Linear(5, 4), nn.Softmax(dim=-1))  # built here
        with torch.no_grad():
            model[0].weight.fill_(1e38)
        fit(model, inputs=lambda step: torch.full((6, 5), 1e10))

    found = origin_of(train)
    assert (found.operation, found.module, found.kind) == ("linear", "0", "Inf")
    assert found.source.text.endswith("# built here")


def test_a_mask_is_no_fault():
    seed()
    with observing() as observation:
        fit(model_with(lambda x: masked_softmax(x, False)))
    assert observation.recording.origin is None


def test_the_mask_is_not_blamed_for_a_real_fault():
    found = origin_of(lambda: fit(model_with(lambda x: torch.log(masked_softmax(x, False) * 0 - 1))))
    assert found.operation == "log"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_in_the_input(value):
    def inputs(step):
        x = torch.randn(6, 5)
        if step == 2:
            x[4, 3] = value
        return x

    found = origin_of(lambda: fit(model_with(torch.tanh), inputs=inputs))
    assert (found.phase, found.step) == ("input", 2)
    assert (found.samples, found.columns) == ((4,), (3,))


def test_in_a_whole_column_of_the_input():
    def inputs(step):
        x = torch.randn(6, 5)
        x[:, 2] = math.nan
        return x

    found = origin_of(lambda: fit(model_with(torch.relu), inputs=inputs))
    assert found.phase == "input"
    assert found.columns == (2,)


def test_in_the_target():
    target = torch.zeros(6, 3)
    target[1] = math.nan
    found = origin_of(lambda: fit(nn.Linear(5, 3), loss=lambda out: F.mse_loss(out, target)))
    assert found.phase == "input"
    assert found.operation == "mse_loss"
    assert found.samples == (1,)


def test_a_weight_that_was_never_finite():
    def train():
        model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
        with torch.no_grad():
            model[1].weight[0, 0] = math.nan
        fit(model)

    found = origin_of(train)
    assert (found.phase, found.parameter, found.module) == ("parameter", "1.weight", "1")


def test_a_weight_that_the_optimizer_broke():
    def train():
        model = nn.Linear(5, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        for step in range(4):
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            optimizer.param_groups[0]["lr"] = math.inf if step == 1 else 0.01
            optimizer.step()

    found = origin_of(train)
    assert (found.phase, found.step) == ("optimizer", 1)
    assert found.parameter in ("weight", "bias")


def test_a_raw_weight_that_is_not_finite():
    def train():
        w = torch.full((5, 3), math.nan, requires_grad=True)
        for _ in range(2):
            (torch.randn(4, 5) @ w).sum().backward()

    found = origin_of(train)
    assert found.phase in ("parameter", "optimizer")


def test_batch_norm_after_the_fault():
    """Its running statistics have the NaN in them by then; training does not read them."""
    work = lambda x: torch.sqrt(x)  # noqa: E731
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), Layer(work), nn.BatchNorm1d(4), nn.Linear(4, 3))
    found = origin_of(lambda: fit(model))
    assert (found.phase, found.operation, found.module) == ("forward", "sqrt", "2")


def test_running_statistics_that_are_not_finite():
    def train():
        model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        model[1].running_var[0] = math.nan
        model.eval()
        fit(model)

    found = origin_of(train)
    assert found.module == "1"
    assert found.phase == "parameter"


@pytest.mark.parametrize("step", [1, 9, 30])
def test_a_later_step_with_dropout(step):
    """Steps that are not looked at in full are found as well, with the random numbers that they drew."""

    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.drop, self.two = nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, 3)

        def forward(self, x):
            h = self.drop(self.one(x))
            return self.two(torch.log(h.tanh() + 2 - 9 * (x[:, :1] > 100)))

    def inputs(number):
        x = torch.randn(6, 5)
        if number == step:
            x[2, 0] = 1e3
        return x

    found = origin_of(lambda: fit(Counting(), steps=step + 2, inputs=inputs))
    assert (found.phase, found.operation, found.step, found.samples) == ("forward", "log", step, (2,))
    assert "torch.log(h" in found.source.text


def test_of_several_calls_of_one_module_the_first_bad_one_is_named():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.bad = nn.Linear(5, 5), Layer(lambda x: torch.log(x))

        def forward(self, x):
            h = self.bad(x.abs() + 1)
            return self.bad(-self.one(h).abs() - 1)

    found = origin_of(lambda: fit(Twice()))
    assert (found.operation, found.module, found.call) == ("log", "bad", 1)


def test_the_search_leaves_the_training_as_it_was():
    """Weights, gradients, buffers, random numbers: bit for bit, though the step ran again."""

    def train():
        model = nn.Sequential(
            nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), Layer(lambda x: x.abs().sqrt()), nn.Linear(4, 3)
        )
        optimizer, state = torch.optim.Adam(model.parameters()), []
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(6, 5)).square().mean().backward()
            state += [p.grad.clone() for p in model.parameters()]
            optimizer.step()
        return [*state, *model.state_dict().values(), torch.get_rng_state()]

    seed()
    alone = train()
    seed()
    with observing() as observation:
        watched = train()
    assert observation.recording.origin.phase == "backward"
    assert all(torch.equal(a.nan_to_num(7e7), b.nan_to_num(7e7)) for a, b in zip(alone, watched, strict=True))


def test_a_scaler_that_is_still_looking_for_its_scale():
    """Gradients that overflow while the loss scale is too high are the scaler's own business: it skips the step."""

    def train():
        model = nn.Linear(5, 3)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1e38)
        for _ in range(4):
            optimizer.zero_grad()
            scaler.scale(1e3 * model(torch.randn(6, 5)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update()

    seed()
    with observing() as observation:
        train()
    assert observation.recording.origin is None


def test_a_step_that_the_scaler_skipped():
    seed()
    with observing() as observation:
        model = nn.Linear(5, 3)
        optimizer, scaler = torch.optim.SGD(model.parameters(), lr=0.1), torch.amp.GradScaler("cpu", init_scale=1e38)
        for _ in range(6):
            optimizer.zero_grad()
            scaler.scale(1e3 * model(torch.randn(6, 5)).square().mean()).backward()
            scaler.step(optimizer)
            scaler.update(1.0)
    assert observation.recording.counts.get("scaler-skip", 0) == 1
    assert [len(iteration.backwards) for iteration in observation.step.iterations] == [1] * 5
