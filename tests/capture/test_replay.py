"""The first captured step comes back on a copy, bit for bit: its losses, and the gradients that the optimizer saw."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from netdoctor.capture import functions
from netdoctor.errors import CannotReplayError
from netdoctor.experiments.sandbox import quiet
from tests.capture.observing import assert_replays, assert_same_gradients, replayed, trained


def mlp(inputs: int = 5, outputs: int = 3, *middle: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), *middle, nn.Linear(8, outputs))


def fit(log, model, loss, steps=3, make=lambda p: torch.optim.SGD(p, lr=0.1)):
    """The plainest loop: `loss()` makes the loss of the model on fresh data."""
    optimizer = log.watch(make(model.parameters()))
    for _ in range(steps):
        optimizer.zero_grad()
        log.backward(loss())
        optimizer.step()


# --- losses ----------------------------------------------------------------------------------------------------------


def classes(n=6, c=3):
    return torch.randn(n, 5), torch.randint(0, c, (n,))


LOSSES = {
    "functional": lambda m: F.cross_entropy(m(torch.randn(6, 5)), torch.randint(0, 3, (6,))),
    "module": lambda m: nn.CrossEntropyLoss(label_smoothing=0.1)(m(torch.randn(6, 5)), torch.randint(0, 3, (6,))),
    "written by hand": lambda m: ((m(torch.randn(6, 5)) - torch.randn(6, 3)) ** 2).mean(),
    "method chain": lambda m: m(torch.randn(6, 5)).log_softmax(-1)[:, 1].neg().sum() / 6,
    "squared penalty": lambda m: (
        m(torch.randn(6, 5)).square().mean() + 1e-2 * sum(p.square().sum() for p in m.parameters())
    ),
    "norm penalty": lambda m: m(torch.randn(6, 5)).square().mean() + 1e-2 * sum(p.norm() for p in m.parameters()),
    "l1 penalty": lambda m: (
        m(torch.randn(6, 5)).square().mean() + 1e-3 * torch.cat([p.view(-1) for p in m.parameters()]).abs().sum()
    ),
    "two passes": lambda m: (
        F.mse_loss(m(torch.randn(6, 5)), m(torch.randn(6, 5)).detach()) + m(torch.randn(2, 5)).mean()
    ),
    "python branch": lambda m: (lambda o: o.mean() if o.sum().item() > 1e9 else -o.mean())(m(torch.randn(6, 5))),
    "boolean mask": lambda m: (lambda o: o[o > 0].sum() + 0 * o.sum())(m(torch.randn(6, 5))),
    "stack and split": lambda m: torch.stack(m(torch.randn(6, 5)).chunk(3, dim=1)).square().mean(),
    "numpy target": lambda m: F.mse_loss(m(torch.randn(6, 5)), torch.from_numpy(torch.randn(6, 3).numpy())),
    "summed, not scalar": lambda m: m(torch.randn(1, 5)).sum(1),
    "noise after the model": lambda m: (m(torch.randn(6, 5)) + 0.1 * torch.randn(6, 3)).square().mean(),
    "dropout after the model": lambda m: F.dropout(m(torch.randn(6, 5)), 0.5).square().mean(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    def train(log):
        model = mlp()
        fit(log, model, lambda: LOSSES[name](model))

    assert_replays(train, steps=2)


# --- inputs and outputs of models ------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "mean, spread")


@dataclass
class Output:
    logits: Tensor
    loss: Tensor | None = None


class ModelOutput(OrderedDict):
    """What transformers' models return: an ordered dictionary whose entries are attributes too."""

    def __getattr__(self, name):
        return self[name]


class Shaped(nn.Module):
    """Returns two heads in the container that it was given a maker of."""

    def __init__(self, make):
        super().__init__()
        self.one, self.two, self.make = nn.Linear(5, 2), nn.Linear(5, 2), make

    def forward(self, x, scale=1.0, *, shift=None):
        x = x * scale if shift is None else x * scale + shift
        return self.make(self.one(x), self.two(x))


CONTAINERS = {
    "tuple": (lambda a, b: (a, b), lambda o: (o[0], o[1])),
    "list": (lambda a, b: [a, b], lambda o: (o[0], o[1])),
    "dict": (lambda a, b: {"a": a, "b": b}, lambda o: (o["a"], o["b"])),
    "nested": (lambda a, b: {"heads": [(a,), {"b": b}]}, lambda o: (o["heads"][0][0], o["heads"][1]["b"])),
    "named tuple": (Pair, lambda o: (o.mean, o.spread)),
    "dataclass": (lambda a, b: Output(a, b), lambda o: (o.logits, o.loss)),
    "model output": (lambda a, b: ModelOutput(a=a, b=b), lambda o: (o.a, o["b"])),
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers(name):
    make, take = CONTAINERS[name]

    def train(log):
        model = Shaped(make)

        def loss():
            first, second = take(model(torch.randn(4, 5), 2.0, shift=torch.randn(5)))
            return F.mse_loss(first, second.detach()) + second.square().mean()

        fit(log, model, loss)

    assert_replays(train, steps=2)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda a, b: torch.distributions.Normal(a, b.exp()), id="Normal"),
        pytest.param(
            lambda a, b: torch.distributions.Independent(torch.distributions.Normal(a, b.exp()), 1).base_dist,
            id="Independent",
        ),
        pytest.param(lambda a, b: SimpleNamespace(loc=a, scale=b.exp()), id="SimpleNamespace"),
    ],
)
def test_outputs_that_are_objects(make):
    def train(log):
        model = Shaped(make)

        def loss():
            out = model(torch.randn(4, 5))
            return (-(out.loc - 1).square() / out.scale).exp().mean()

        fit(log, model, loss)

    assert_replays(train, steps=2)


def test_batches_as_dictionaries_and_dataclasses():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp()

        def forward(self, batch, other):
            return self.net(batch["x"]) + self.net(other.logits)

    def train(log):
        model = Model()
        fit(log, model, lambda: model({"x": torch.randn(4, 5), "ids": [1, 2]}, other=Output(torch.randn(4, 5))).mean())

    assert_replays(train, steps=2)


# --- what the loop does ----------------------------------------------------------------------------------------------


def test_gradient_accumulation():
    def train(log):
        model = mlp()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(3):
            optimizer.zero_grad()
            for _ in range(4):
                log.backward(model(torch.randn(4, 5)).square().mean() / 4)
            optimizer.step()

    assert_replays(train, steps=3)


def test_backward_twice_with_a_shared_graph():
    def train(log):
        model = mlp()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(2):
            optimizer.zero_grad()
            out = model(torch.randn(4, 5))
            log.backward(out.square().mean(), retain_graph=True)
            log.backward(out.mean())
            optimizer.step()

    assert_replays(train, steps=2)


def test_backward_with_a_seed_gradient():
    def train(log):
        model = mlp()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(2):
            optimizer.zero_grad()
            out, seed = model(torch.randn(4, 5)), torch.randn(4, 3)
            out.backward(seed)
            optimizer.step()

    observation, log = trained(train)
    _, copy = replayed(observation.step, 2)
    assert copy.gradients
    assert_same_gradients(copy.gradients, log.gradients)


def test_torch_autograd_backward_of_several_losses():
    def train(log):
        model = mlp()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(2):
            optimizer.zero_grad()
            out = model(torch.randn(4, 5))
            first, second = out.mean(), out.square().sum()
            log.losses.append(first.item() + second.item())
            torch.autograd.backward([first, second])
            optimizer.step()

    assert_replays(train, steps=2, exact_sum=False)


def gan(log, real_first=True, penalty=False):
    generator, critic = mlp(2, 5), mlp(5, 1)
    g = log.watch(torch.optim.Adam(generator.parameters(), lr=1e-2))
    d = log.watch(torch.optim.Adam(critic.parameters(), lr=1e-2))
    for _ in range(3):
        real, fake = torch.randn(4, 5), generator(torch.randn(4, 2))
        d.zero_grad()
        if penalty:
            mix = torch.rand(4, 1)
            between = (mix * real + (1 - mix) * fake.detach()).requires_grad_(True)
            slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
            log.backward(
                critic(fake.detach()).mean() - critic(real).mean() + 10 * ((slope.norm(2, dim=1) - 1) ** 2).mean()
            )
        else:
            log.backward(F.binary_cross_entropy_with_logits(critic(real), torch.ones(4, 1)))
            log.backward(F.binary_cross_entropy_with_logits(critic(fake.detach()), torch.zeros(4, 1)))
        d.step()
        g.zero_grad()
        log.backward(-critic(fake).mean())
        g.step()


def test_gan():
    assert_replays(gan, steps=3)


def test_wgan_with_gradient_penalty():
    assert_replays(lambda log: gan(log, penalty=True), steps=3)


def test_two_optimizers_on_one_loss():
    def train(log):
        body, head = mlp(5, 4), nn.Linear(4, 2)
        one = log.watch(torch.optim.Adam(body.parameters(), lr=1e-2))
        two = log.watch(torch.optim.SGD(head.parameters(), lr=1e-2, momentum=0.9))
        for _ in range(3):
            one.zero_grad()
            two.zero_grad()
            log.backward(head(body(torch.randn(4, 5))).square().mean())
            one.step()
            two.step()

    assert_replays(train, steps=3)


def test_evaluation_in_between():
    def train(log):
        model = mlp(5, 3, nn.Dropout(0.5), nn.BatchNorm1d(8))
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(3):
            model.eval()
            with torch.no_grad():
                F.cross_entropy(model(torch.randn(9, 5)), torch.randint(0, 3, (9,))).item()
            with torch.inference_mode():
                model(torch.randn(9, 5)).argmax(1)
            model.train()
            optimizer.zero_grad()
            log.backward(F.cross_entropy(model(torch.randn(6, 5)), torch.randint(0, 3, (6,))))
            optimizer.step()

    assert_replays(train, steps=3)


def test_autocast():
    def train(log):
        model = mlp()

        def loss():
            with torch.autocast("cpu", torch.bfloat16):
                return F.mse_loss(model(torch.randn(4, 5)), torch.randn(4, 3))

        fit(log, model, loss)

    assert_replays(train, steps=2)


def test_gradient_scaler():
    def train(log):
        model = mlp()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for _ in range(3):
            optimizer.zero_grad()
            loss = model(torch.randn(4, 5)).square().mean()
            log.losses.append(loss.item())
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            scaler.step(optimizer)
            scaler.update()

    assert_replays(train, steps=3)


def test_frozen_again_after_training():
    """Users freeze a trained model before they deploy it; the copy must still train."""

    def train(log):
        model = mlp()
        fit(log, model, lambda: model(torch.randn(4, 5)).square().mean())
        model.requires_grad_(False)

    assert_replays(train, steps=2)


def test_a_dry_run_before_the_weights_are_set():
    """A forward pass to see the shapes, then initialisation: the start is what the first training step began with."""

    def train(log):
        model = mlp()
        model(torch.zeros(2, 5))
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.3)
        fit(log, model, lambda: model(torch.randn(4, 5)).square().mean())

    assert_replays(train, steps=2)


# --- what the model is -----------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids):
        return self.out(self.embed(ids))


class InPlace(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.act = nn.Linear(5, 5), nn.Linear(5, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        h = self.act(self.one(x))
        h = h + x
        h += x
        h[:, 0] = 0.5
        h.mul_(2)
        return self.two(h)


class Checkpointed(nn.Module):
    def __init__(self, reentrant):
        super().__init__()
        self.body, self.head, self.reentrant = mlp(5, 8, nn.Dropout(0.3)), nn.Linear(8, 2), reentrant

    def forward(self, x):
        return self.head(checkpoint(self.body, x.requires_grad_(), use_reentrant=self.reentrant))


class Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = mlp(5, 2), mlp(2, 5)

    def encode(self, x):
        return torch.tanh(self.encoder(x)) * 2

    def decode(self, z):
        return self.decoder(z).sigmoid()


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class Squaring(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, x):
        return Square.apply(self.net(x))


class Remembering(nn.Module):
    """Keeps its last output, with its graph, which deepcopy refuses."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.last = None
        self.all = []

    def forward(self, x):
        self.last = self.net(x)
        self.all.append(self.last)
        return self.last


class Locked(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.lock = mlp(), threading.Lock()

    def forward(self, x):
        with self.lock:
            return self.net(x)


class Noisy(nn.Module):
    """Draws from every random state there is."""

    def __init__(self):
        super().__init__()
        self.net = mlp(5, 3, nn.Dropout(0.5))

    def forward(self, x):
        import random

        import numpy as np

        return self.net(x + torch.randn_like(x)) * random.random() + float(np.random.rand())


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.rnn, self.head = nn.GRUCell(5, 4), nn.LSTM(4, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        h, steps = torch.zeros(x.shape[0], 4), []
        for t in range(3):
            h = self.cell(x + t, h)
            steps.append(h)
        return self.head(self.rnn(torch.stack(steps, 1))[0][:, -1])


MODELS = {
    "batch norm and dropout": lambda: mlp(5, 3, nn.BatchNorm1d(8), nn.Dropout(0.4)),
    "in place": InPlace,
    "checkpoint, reentrant": lambda: Checkpointed(True),
    "checkpoint, not reentrant": lambda: Checkpointed(False),
    "custom function": Squaring,
    "remembers its output": Remembering,
    "holds a lock": Locked,
    "draws numbers": Noisy,
    "recurrent": Recurrent,
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(5, 8)), nn.Linear(8, 3)),
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(5, 8)), nn.Linear(8, 3)),
    "double": lambda: mlp().double(),
    "one module twice": lambda: nn.Sequential(*[nn.Linear(5, 5)] * 3, nn.ReLU()),
    "transformer": lambda: nn.Sequential(
        nn.Unflatten(1, (5, 1)), nn.TransformerEncoderLayer(1, 1, 4, batch_first=True), nn.Flatten()
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    def train(log):
        model = MODELS[name]()
        dtype = next(model.parameters()).dtype
        fit(log, model, lambda: model(torch.randn(6, 5, dtype=dtype)).square().mean())

    assert_replays(train, steps=2)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_old_weight_norm():
    def train(log):
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(5, 8)), nn.Linear(8, 3))
        fit(log, model, lambda: model(torch.randn(6, 5)).square().mean())

    assert_replays(train, steps=2)


def test_tied_weights():
    def train(log):
        model = Tied()
        fit(log, model, lambda: F.cross_entropy(model(torch.randint(0, 7, (6,))), torch.randint(0, 7, (6,))))

    assert_replays(train, steps=3)


def test_parts_called_by_name():
    def train(log):
        model = Autoencoder()

        def loss():
            x = torch.randn(4, 5)
            z = model.encode(x)
            return F.mse_loss(model.decode(z + torch.randn_like(z)), x) + z.square().mean()

        fit(log, model, loss)

    assert_replays(train, steps=3)


def test_forward_called_directly():
    def train(log):
        model = Squaring()
        fit(log, model, lambda: model.forward(torch.randn(4, 5)).mean())

    assert_replays(train, steps=3)


def test_forward_called_directly_with_parameters_of_its_own():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale, self.net = nn.Parameter(torch.ones(5)), mlp()

        def forward(self, x):
            return self.net(F.relu(x * self.scale))

    def train(log):
        model = Model()
        fit(log, model, lambda: model.forward(torch.randn(4, 5)).square().mean(), steps=12)

    assert_replays(train, steps=12)


def test_custom_function_in_the_loss():
    def train(log):
        model = mlp()
        fit(log, model, lambda: Square.apply(model(torch.randn(4, 5))).mean())

    assert_replays(train, steps=3)


def test_old_lazy_modules():
    def train(log):
        model = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))
        model(torch.zeros(2, 5))
        fit(log, model, lambda: model(torch.randn(4, 5)).square().mean())

    assert_replays(train, steps=2)


# --- no modules at all -----------------------------------------------------------------------------------------------


def test_raw_tensors_with_an_optimizer():
    def train(log):
        w, b = torch.randn(5, 3, requires_grad=True), nn.Parameter(torch.zeros(3))
        optimizer = log.watch(torch.optim.SGD([w, b], lr=0.1))
        for _ in range(12):
            optimizer.zero_grad()
            log.backward(F.cross_entropy(torch.randn(6, 5) @ w + b, torch.randint(0, 3, (6,))))
            optimizer.step()

    assert_replays(train, steps=12)


def by_hand(log, update, steps=6):
    w, b = torch.randn(5, 3, requires_grad=True), torch.zeros(3, requires_grad=True)
    for _ in range(steps):
        loss = F.cross_entropy(torch.randn(6, 5) @ w + b, torch.randint(0, 3, (6,)))
        log.backward(loss)
        log.keep([w, b])
        for parameter in (w, b):
            update(parameter)
        w.grad = b.grad = None


def without_grad(parameter):
    with torch.no_grad():
        parameter -= 0.1 * parameter.grad


def through_data(parameter):
    parameter.data -= 0.1 * parameter.grad


def through_data_method(parameter):
    parameter.data.add_(parameter.grad, alpha=-0.1)


@pytest.mark.parametrize("update", [without_grad, through_data, through_data_method])
def test_the_first_step_of_updates_by_hand(update):
    assert_replays(lambda log: by_hand(log, update), steps=1)


@pytest.mark.parametrize("update", [without_grad, through_data, through_data_method])
def test_several_steps_of_updates_by_hand(update):
    """The rule is found from how the weights moved, so only nearly the same numbers can come back."""
    observation, log = trained(lambda log: by_hand(log, update))
    totals, _ = replayed(observation.step, 4)
    assert totals == pytest.approx(log.losses[:4], rel=1e-4)


# --- values changed in place after the model -------------------------------------------------------------------------

IN_PLACE = {
    "augmented": lambda o: o.__iadd__(1.0),
    "item": lambda o: (o.__setitem__((slice(None), 0), 2.0), o)[1],
    "row into a buffer": lambda o: (lambda buffer: (buffer.__setitem__(0, o[0]), buffer)[1])(torch.zeros(2, 3)),
    "relu_": lambda o: F.relu(o, inplace=True),
    "masked_fill_": lambda o: o.masked_fill_(torch.eye(4, 3, dtype=torch.bool), 0.0),
    "view changed": lambda o: (o[:, 0].mul_(3.0), o)[1],
    "diagonal changed": lambda o: (o.diagonal().fill_(0.0), o)[1],
    "base changed, view read": lambda o: (lambda v: (o.mul_(3.0), v)[1])(o[:, 1]),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_in_place_after_the_model(name):
    def train(log):
        model = mlp()
        fit(log, model, lambda: IN_PLACE[name](model(torch.randn(4, 5))).square().mean())

    assert_replays(train, steps=2)


# --- torch.func ------------------------------------------------------------------------------------------------------


def test_one_inner_step_of_meta_learning():
    """functional_call runs a module on other weights than its own: exactly so on the copy, or not at all."""

    def train(log):
        model = mlp()

        def loss():
            weights = dict(model.named_parameters())
            inner = torch.func.functional_call(model, weights, (torch.randn(4, 5),)).square().mean()
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            fast = {name: w - 0.1 * g for (name, w), g in zip(weights.items(), slopes, strict=True)}
            return torch.func.functional_call(model, fast, (torch.randn(4, 5),)).square().mean()

        fit(log, model, loss)

    with contextlib.suppress(CannotReplayError):
        assert_replays(train, steps=2)


def test_gradients_of_single_samples_in_the_loop():
    def train(log):
        model = mlp()

        def loss():
            weights = dict(model.named_parameters())
            one = lambda w, x: torch.func.functional_call(model, w, (x,)).square().mean()  # noqa: E731
            return torch.func.vmap(one, in_dims=(None, 0))(weights, torch.randn(4, 5)).mean()

        fit(log, model, loss)

    observation, _ = trained(train)
    with pytest.raises(CannotReplayError), quiet():
        replayed(observation.step, 1)


def test_an_adversary_moves_its_input():
    """The perturbation is a leaf that the loop overwrites; what comes back must have its values of that time."""

    def train(log):
        model = mlp()
        optimizer = log.watch(torch.optim.SGD(model.parameters(), lr=0.1))
        for _ in range(3):
            x, delta = torch.randn(4, 5), torch.zeros(4, 5, requires_grad=True)
            slope = torch.autograd.grad(model(x + delta).square().mean(), delta)[0]
            delta.data = 0.3 * slope.sign()
            optimizer.zero_grad()
            log.backward(model(x + delta).square().mean())
            optimizer.step()
            delta.data.zero_()

    assert_replays(train, steps=3)


@pytest.mark.parametrize(
    ("function", "draws"),
    [
        (F.dropout, True),
        (F.dropout2d, True),
        (F.rrelu, True),
        (F.gumbel_softmax, True),
        (F.scaled_dot_product_attention, True),
        (F.multi_head_attention_forward, True),
        (F.fractional_max_pool2d, True),
        (torch.randn_like, True),
        (torch.normal, True),
        (torch.multinomial, True),
        (torch.lstm, True),
        (Tensor.bernoulli_, True),
        (Tensor.uniform_, True),
        (lambda x: x, True),  # somebody else's: it may do anything
        (torch.add, False),
        (Tensor.mul, False),
        (Tensor.log_softmax, False),
        (F.cross_entropy, False),
        (F.linear, False),
    ],
)
def test_only_what_may_draw_has_its_random_state_kept(function, draws):
    assert functions.may_draw(function, functions.function_name(function)) is draws
