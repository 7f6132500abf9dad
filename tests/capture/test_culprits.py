"""Beside the operation: what made its guilty operand, what breaks along with it, and who computed what is no part of the model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from netdoctor.capture.births import Births
from netdoctor.recording import MAX_SKIPS, NORMALISED
from tests.capture.test_origin import fit, model_with, origin_of

PLAIN = 40  # steps in which a loop has become plain


def rooted(x):
    size = (x * 0).square().sum(1, keepdim=True).sqrt()
    return x / size


def normalised(x):
    e = torch.exp(x.abs() * 0 + 1000)
    return e / e.sum(1, keepdim=True)


def product(x):
    p = torch.sigmoid(x - 50).prod(1, keepdim=True)
    q = p * 2
    return x + torch.log(q)


def twice(x):
    a = torch.log(x * 0)
    b = torch.log(x * 0)
    return a + b


def both(x):
    zero = x * 0
    return (x / zero) + zero.log()


def test_the_guilty_operand_is_the_denominator():
    found = origin_of(lambda: fit(model_with(rooted)))
    assert (found.operation, found.upstream) == ("div", "sqrt")
    assert "size =" in found.upstream_source.text


def test_what_is_divided_by_its_sum():
    found = origin_of(lambda: fit(model_with(normalised)))
    assert found.operation == "exp"
    assert f"{NORMALISED}1" in found.downstream


def test_where_zeros_are_from():
    found = origin_of(lambda: fit(model_with(product)))
    assert (found.operation, found.upstream, found.born) == ("log", "mul", "prod")
    assert ".prod(1" in found.born_source.text


def test_the_same_operation_on_another_line():
    found = origin_of(lambda: fit(model_with(twice)))
    assert [(each.operation, each.source.text) for each in found.also] == [("log", "b = torch.log(x * 0)")]


def test_another_operation_on_the_same_line():
    found = origin_of(lambda: fit(model_with(both)))
    assert {found.operation} | {each.operation for each in found.also} == {"div", "log"}


def regression(make, steps=PLAIN + 2):
    """A training whose last but one step is the bad one; `make(step, bad)` gives input and target."""
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        x, y = make(step == PLAIN)
        loss = F.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_an_input_that_the_loop_computes_is_traced_to_its_line_in_a_plain_step():
    def train():
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(PLAIN + 2):
            counts = torch.rand(6, 3) + 0.1
            if step == PLAIN:
                counts[4, 1] = 0
            x = torch.log(counts)
            loss = F.mse_loss(model(x), counts.sum(1, keepdim=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    found = origin_of(train)
    assert (found.phase, found.operation, found.step, found.constant) == ("forward", "log", PLAIN, True)
    assert found.source.text == "x = torch.log(counts)"
    assert found.samples == (4,)


def test_what_comes_with_the_batch_stays_the_batchs_under_the_users_own_name():
    def make(bad):
        features = torch.rand(6, 3)
        if bad:
            features[2, 1] = float("nan")
        return features, torch.rand(6, 1)

    found = origin_of(lambda: regression(make))
    assert (found.phase, found.inputs[0].name, found.samples, found.columns) == ("input", "x", (2,), (1,))


def test_what_a_loss_function_computes_of_its_target_is_traced():
    def divergence(p, log_q):
        return (p * (p.log() - log_q)).sum(-1).mean()

    target = F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).float()
    found = origin_of(lambda: fit(nn.Linear(5, 3), loss=lambda out: divergence(target, out.log_softmax(-1))))
    assert (found.operation, found.constant) == ("log", True)
    assert "p.log()" in found.source.text


def test_a_function_with_side_effects_is_not_called_again():
    calls = []

    def load(bad):
        calls.append(bad)
        return torch.full((6, 3), float("nan")) if bad else torch.rand(6, 3)

    def train():
        model = nn.Linear(3, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(PLAIN + 1):
            x = load(step == PLAIN)
            loss = F.mse_loss(model(x), torch.rand(6, 1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    assert origin_of(train).phase == "input"
    assert len(calls) == PLAIN + 1


def test_a_long_chain_of_masked_sums_is_no_fault_of_the_mask():
    def train():
        weights = torch.zeros(4, 4, requires_grad=True)
        allowed = torch.ones(4, 4).triu().bool()
        allowed[:, 0] = False
        optimizer = torch.optim.SGD([weights], lr=0.1)
        masked = weights.masked_fill(~allowed, -torch.inf)
        alpha = torch.zeros(2, 4)
        for _ in range(12):
            alpha = torch.logsumexp(alpha.unsqueeze(2) + masked, dim=1)
        optimizer.zero_grad()
        (-torch.logsumexp(alpha, -1).mean()).backward()
        optimizer.step()

    found = origin_of(train)
    assert (found.phase, found.operation) == ("backward", "logsumexp")


def test_a_scaler_that_skips_every_step_is_traced():
    def train(steps):
        model = nn.Linear(4, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(steps):
            out = model(torch.rand(6, 4))
            loss = (out[:, None] - out[None]).square().sum(-1).sqrt().mean()
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()

    found = origin_of(lambda: train(MAX_SKIPS + 2))
    assert (found.phase, found.operation, found.reproduced) == ("backward", "sqrt", True)


def test_what_only_hands_values_on_made_no_nan() -> None:
    """A DataLoader stacks samples that are gone by the time the batch is looked at."""
    births = Births()
    samples = [torch.tensor([1.0, float("nan")]) for _ in range(2)]
    batch = torch.stack(samples)
    births.note("stack", ("t.py", 3), (samples,), {}, batch)
    logs = torch.log(torch.zeros(2))
    births.note("log", ("t.py", 4), (torch.zeros(2),), {}, logs)
    del samples
    assert births.maker(batch) is None
    made = births.maker(logs)
    assert made is not None
    assert made.name == "log"
