"""A training gives the same numbers, bit for bit, with and without an observation."""

from __future__ import annotations

import copy
import pickle
import random
import threading

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader, TensorDataset

from tests.capture.observing import observing, seed


def state_of(model, optimizer, *more):
    """Everything that a training changes: weights, buffers, gradients, optimizer state, random states."""
    found = [*model.state_dict().values(), *(p.grad for p in model.parameters() if p.grad is not None), *more]
    found += [v for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor)]
    return [
        *(t.detach().clone() for t in found),
        torch.get_rng_state(),
        torch.from_numpy(np.random.get_state()[1].astype(np.int64)),
        torch.tensor([random.getstate()[1]]),
    ]


def assert_unchanged(train, every=None, faultless=True):
    """`train()` returns tensors; they are the same when it is observed, and the observation saw it."""
    seed()
    alone = train()
    seed()
    with observing(every, faultless) as observation:
        watched = train()
    assert len(alone) == len(watched)
    assert [n for n, (a, b) in enumerate(zip(alone, watched, strict=True)) if not torch.equal(a, b)] == []
    return observation


def fit(
    model,
    loss=lambda model: model(torch.randn(4, 5)).square().mean(),
    steps=12,
    make=lambda p: torch.optim.AdamW(p, 1e-2),
):
    optimizer, losses = make(model.parameters()), []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(value.detach())
    return state_of(model, optimizer, *losses)


def mlp(*middle):
    return nn.Sequential(nn.Linear(5, 8), *middle, nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("every", [None, 1, 3])
def test_dropout_and_batch_norm(every):
    observation = assert_unchanged(lambda: fit(mlp(nn.BatchNorm1d(8), nn.Dropout(0.5))), every)
    assert observation.recording.steps == 12


class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp(nn.Dropout(0.3))

    def forward(self, x):
        return self.net(x + torch.randn_like(x)) * random.random() + float(np.random.rand())


class Loader(nn.Module):
    """Not a leaf module, not a tensor in or out."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, batch, module=None, *, work=None, where=None):
        return {"out": self.net(batch[0])}


def with_hooks():
    """The user's own hooks replace inputs, outputs and gradients."""
    model = mlp()
    model[0].register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    model[0].register_forward_hook(lambda module, args, output: output + 1)
    model[2].register_full_backward_hook(lambda module, gin, gout: (gin[0] * 0.5,))
    model[2].weight.register_hook(lambda gradient: gradient * 3)
    return model


class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        h = self.net(x)
        h.register_hook(lambda gradient: gradient * 0.1)
        h.retain_grad()
        return h


class Functional(nn.Module):
    """torch.func inside of a model: per-sample gradients of an inner loss, with vmap."""

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(5, 1)

    def forward(self, x):
        weights = dict(self.net.named_parameters())
        energy = lambda one: torch.func.functional_call(self.net, weights, (one,)).tanh().sum()  # noqa: E731
        return torch.func.vmap(torch.func.grad(energy))(x) + self.net(x)


class Scripted(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = torch.jit.script(nn.Sequential(nn.Linear(5, 8), nn.ReLU()))
        self.two = nn.Linear(8, 3)

    def forward(self, x):
        return self.two(self.one(x))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(1, 4, num_layers=2, dropout=0.2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.rnn(x.unsqueeze(-1))[0][:, -1])


MODELS = {
    "random numbers": Noisy,
    "the user's hooks": with_hooks,
    "hooks on tensors": Hooked,
    "torch.func": Functional,
    "scripted": Scripted,
    "recurrent": Recurrent,
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8)), nn.Linear(8, 3)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)), nn.Linear(8, 3)),
    "one module many times": lambda: nn.Sequential(*[nn.Linear(5, 5)] * 12),
    "in place": lambda: nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3)),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3)),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    observation = assert_unchanged(lambda: fit(MODELS[name]()))
    assert observation.recording.steps == 12


def test_arguments_with_the_names_of_our_own():
    """`forward(self, batch, module=...)` is the user's to name."""

    def loss(model):
        return model([torch.randn(4, 5)], module=1, work=2, where=3)["out"].square().mean()

    assert_unchanged(lambda: fit(Loader(), loss))


def test_a_transformer_with_evaluation():
    layer = lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)  # noqa: E731

    def train():
        model = nn.TransformerEncoder(layer(), 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        outputs = []
        for _ in range(4):
            model.eval()
            with torch.no_grad():
                outputs.append(model(torch.randn(2, 3, 8)))
            model.train()
            optimizer.zero_grad()
            model(torch.randn(2, 3, 8)).square().mean().backward()
            optimizer.step()
        return state_of(model, optimizer), outputs

    seed()
    alone, evaluated = train()
    seed()
    with observing():
        watched, observed = train()
    assert all(torch.equal(a, b) for a, b in zip(alone, watched, strict=True))
    # The fast path of evaluation is off while operations are watched; it rounds otherwise, and that alone may differ.
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(evaluated, observed, strict=True))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_models(backend):
    def train():
        torch._dynamo.reset()
        return fit(torch.compile(mlp(), backend=backend), steps=4)

    observation = assert_unchanged(train)
    assert observation.recording.steps == 4


@pytest.mark.slow
def test_workers_of_a_data_loader():
    def train():
        data = TensorDataset(torch.randn(24, 5), torch.randint(0, 3, (24,)))
        loader = iter(DataLoader(data, 4, shuffle=True, num_workers=2))

        def loss(model):
            x, y = next(loader)
            return F.cross_entropy(model(x), y)

        return fit(mlp(nn.Dropout(0.2)), loss, steps=6)

    assert_unchanged(train)


def test_exceptions_in_forward_and_backward():
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 1

        @staticmethod
        def backward(ctx, gradient):
            raise KeyError("backward broke")

    class Fragile(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(nn.Dropout(0.3))

        def forward(self, x, fails=""):
            h = self.net(x)
            if fails == "forward":
                raise ValueError("forward broke")
            return Failing.apply(h) if fails == "backward" else h

    def train():
        model, step = Fragile(), iter(range(1000))

        def loss(model):
            number = next(step)
            for kind in ("forward", "backward") if number % 3 == 1 else ():
                with pytest.raises((ValueError, KeyError), match="broke"):
                    model(torch.randn(4, 5), fails=kind).sum().backward()
            return model(torch.randn(4, 5)).square().mean()

        return fit(model, loss)

    observation = assert_unchanged(train)
    assert observation.recording.steps == 12
    assert observation.observer.stack == []


def test_a_thread_that_runs_a_model_beside():
    def train():
        done, results = threading.Event(), []
        other, x = mlp(), torch.randn(4, 5)

        def beside():
            while not done.is_set():
                results.append(other(x).sum().item())

        thread = threading.Thread(target=beside)
        thread.start()
        try:
            state = fit(mlp())
        finally:
            done.set()
            thread.join()
        assert len(set(results)) == 1
        return state

    observation = assert_unchanged(train)
    assert observation.recording.steps == 12
    assert len(observation.recording.parameters) == 4


def test_copies_and_pickles_in_the_middle_of_training():
    def train():
        model, copies = mlp(), []

        def loss(model):
            copies.append(copy.deepcopy(model))
            copies.append(pickle.loads(pickle.dumps(model)))
            return model(torch.randn(4, 5)).square().mean()

        state = fit(model, loss, steps=5)
        for one in copies:
            for module in one.modules():
                assert not module._forward_hooks
                assert not module._forward_pre_hooks
                assert not module._backward_hooks
        assert b"netdoctor" not in pickle.dumps(copies)
        return [*state, *(t for one in copies for t in one.state_dict().values())]

    assert_unchanged(train)


class Doubling(TorchFunctionMode):
    """A mode of the user's that doubles what relu gives."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is F.relu or func is torch.relu else result


@pytest.mark.parametrize("around", ["step", "model", "loss"])
def test_a_function_mode_of_the_users_own(around):
    """Pushed and popped at any place between ours; theirs must end where it ends."""

    def loss(model):
        if around == "step":
            with Doubling():
                return model(torch.randn(4, 5)).square().mean()
        if around == "model":
            with Doubling():
                out = model(torch.randn(4, 5))
            return out.square().mean() + torch.relu(out).mean()
        out = model(torch.randn(4, 5))
        with Doubling():
            return torch.relu(out).mean()

    observation = assert_unchanged(lambda: fit(mlp(), loss, steps=40))
    assert torch._C._len_torch_function_stack() == 0
    assert observation.recording.steps == 40


def test_a_default_device():
    def train():
        with torch.device("cpu"):
            model = mlp()
        torch.set_default_device("cpu")
        try:
            return fit(model)
        finally:
            torch.set_default_device(None)

    assert_unchanged(train)


def test_gradient_penalties_and_several_optimizers():
    def train():
        generator, critic = nn.Linear(2, 5), mlp()
        g, d = torch.optim.Adam(generator.parameters(), 1e-2), torch.optim.RMSprop(critic.parameters(), 1e-2)
        for _ in range(5):
            for _ in range(2):
                real, fake = torch.randn(4, 5), generator(torch.randn(4, 2)).detach()
                mixed = (real + fake).requires_grad_()
                slope = torch.autograd.grad(critic(mixed).sum(), mixed, create_graph=True)[0]
                d.zero_grad()
                (critic(fake).mean() - critic(real).mean() + slope.norm(dim=1).sub(1).square().mean()).backward()
                d.step()
            g.zero_grad()
            (-critic(generator(torch.randn(4, 2))).mean()).backward()
            g.step()
        return state_of(critic, d) + state_of(generator, g)

    assert_unchanged(train)


def test_lbfgs_and_closures():
    def train():
        model, x = mlp(), torch.randn(4, 5)
        optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")

        def closure():
            optimizer.zero_grad()
            loss = model(x).square().mean()
            loss.backward()
            return loss

        losses = [optimizer.step(closure).detach() for _ in range(3)]
        return [*model.state_dict().values(), *losses]

    assert_unchanged(train)


def test_a_tensor_subclass():
    class Named(torch.Tensor):
        pass

    assert_unchanged(lambda: fit(mlp(), lambda model: model(torch.randn(4, 5).as_subclass(Named)).square().mean()))
