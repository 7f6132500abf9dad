"""Each treatment of the loss and the data against the same change made by hand."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments import treatment_of
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations, passing
from netdoctor.experiments.treatments.treatment import Bench, Treatment
from netdoctor.finding import Fix, Location
from netdoctor.recording import Recording
from tests.experiments.capturing import captured, fit, watched
from tests.experiments.test_trial_treatments import SGD, STEPS, by_hand, case, data, run, seeded, step_of, treated

# --- losses and data -------------------------------------------------------------------------------------------------


def test_minus_sign() -> None:
    step = step_of(seeded(), lambda p, y: -F.cross_entropy(p, y))
    assert treated(step, "drop-minus-sign") == pytest.approx(by_hand(seeded()))
    found = treatment_of(case(step, Fix("drop-minus-sign", "")))
    assert found is not None
    assert (found.unit, found.control_unit) == (1.0, -1.0)


def test_division_by_the_backward_calls() -> None:
    x, y = data()
    model = seeded()

    def train() -> None:
        optimizer = SGD(model.parameters())
        for _ in range(2):
            optimizer.zero_grad()
            for number in range(3):
                rows = slice(32 * number, 32 * number + 32)
                F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    step = captured(train)
    found = treatment_of(case(step, Fix("divide-loss", "")))
    assert found is not None
    losses = run(step, found)
    assert found.unit == 3.0
    plain, x_y = seeded(), F.cross_entropy(seeded()(x), y).item()
    assert losses[0] == pytest.approx(x_y)
    optimizer = SGD(plain.parameters())
    F.cross_entropy(plain(x), y).backward()
    optimizer.step()
    assert losses[1] == pytest.approx(F.cross_entropy(plain(x), y).item())


def test_shapes_that_broadcast() -> None:
    def loss(p: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(p, y.float())

    with pytest.warns(UserWarning, match="target size"):
        step = step_of(seeded(outputs=1), loss)
    expected = by_hand(seeded(outputs=1), loss=lambda p, y: F.mse_loss(p.squeeze(1), y.float()))
    assert treated(step, "match-shapes") == pytest.approx(expected)


def test_softmax_before_cross_entropy() -> None:
    train_loss: Any = lambda p, y: F.cross_entropy(torch.softmax(p, 1), y)  # noqa: E731
    x, y = data()
    model = seeded()

    def train() -> None:
        optimizer = SGD(model.parameters())
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            train_loss(model(x[rows]), y[rows]).backward()
            optimizer.step()

    step, graph = watched(train)
    seen = Recording(graph=graph)
    at = Location(operation="softmax")
    assert treated(step, "remove-softmax", seen=seen, at=at) == pytest.approx(by_hand(seeded()))


def test_a_distribution_that_is_given_probabilities_as_logits() -> None:
    """Its own softmax, of the entropy, stays."""

    def policy(p: Tensor, y: Tensor, **given: Any) -> Tensor:
        taken = torch.distributions.Categorical(**given)
        return -taken.log_prob(y).mean() - 0.1 * taken.entropy().mean()

    x, y = data()
    model = nn.Sequential(*seeded(), nn.Softmax(-1))

    def train() -> None:
        optimizer = SGD(model.parameters())
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            policy(x, y[rows], logits=model(x[rows])).backward()
            optimizer.step()

    step, graph = watched(train)
    graph.operations[:] = [replace(o, module=o.module.rpartition("\x1f")[2]) for o in graph.operations]  # as told
    losses = treated(step, "remove-softmax", seen=Recording(graph=graph), check="double-softmax")
    expected = by_hand(seeded(), loss=lambda p, y: policy(p, y, probs=p.softmax(-1)))
    assert losses == pytest.approx(expected, rel=1e-4)


class Ending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = seeded()

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.body(torch.softmax(x, 1) + x), 1)


def test_only_the_operation_on_the_line_is_left_out() -> None:
    step, module = step_of(Ending()), Ending()
    line = Ending.forward.__code__.co_firstlineno + 1
    place = (Ending.forward.__code__.co_filename, line)
    names = frozenset({"softmax"})

    def losses(where: tuple[str, int] | None) -> list[float]:
        def apply(bench: Bench) -> None:
            copied = bench.copy_of(step.modules[0])
            exchange_operations(bench, [Exchange(copied, names, passing, where)])

        return run(step, Treatment(apply))

    plain = by_hand(nn.Sequential(module))
    assert losses((place[0], line + 100)) == pytest.approx(plain)
    assert losses(place) != pytest.approx(plain)
    assert losses(None) == pytest.approx(losses(place))


def test_the_right_loss_is_measured_in_both_arms() -> None:
    step = step_of(seeded(), lambda p, y: F.nll_loss(p, y))
    found = treatment_of(
        case(step, Fix("loss-for-logits", ""), at=Location(operation="nll_loss"), check="logits-into-probability-loss")
    )
    assert found is not None
    assert run(step, found) == pytest.approx(by_hand(seeded()))
    with quiet(), ExitStack() as stack:
        sandbox = Sandbox(step)
        bench = Bench(sandbox, step.iterations, stack)
        found.beside(bench)
        losses = sandbox.run(bench.iterations, 6, Budget(30)).losses
    assert bench.measured[0] == pytest.approx(by_hand(seeded())[0])
    assert len(bench.measured) == len(losses)
    assert losses[-1] < 0 < bench.measured[-1]


def test_filling_in() -> None:
    x, y = data()
    x[3, 2] = math.nan
    x[50] = math.inf
    model = seeded()
    step = fit(model, F.cross_entropy, x, y, SGD)
    losses = treated(step, "clean-input")
    assert all(map(math.isfinite, losses))
    filled = x[:32].clone()
    filled[3, 2] = x[:32, 2][torch.isfinite(x[:32, 2])].mean()
    assert losses[0] == pytest.approx(F.cross_entropy(seeded()(filled), y[:32]).item())


def test_codes_for_missing_values() -> None:
    x, y = data()
    x[[3, 9], 2] = -999.0
    step = fit(seeded(), F.cross_entropy, x, y, SGD)
    filled = x[:32].clone()
    filled[[3, 9], 2] = x[[row for row in range(32) if row not in (3, 9)], 2].median()
    losses = treated(step, "impute", "missing = x == -999\nx = torch.where(missing, 0.1, x)")
    assert losses[0] == pytest.approx(F.cross_entropy(seeded()(filled), y[:32]).item())


def test_standardising() -> None:
    x, y = data()
    model = seeded()
    step = fit(model, F.cross_entropy, 50.0 + 1000.0 * x, y, SGD)
    scaled = (x - x.double().mean(0)) / x.double().std(0)
    expected = F.cross_entropy(seeded()(scaled[:32].float()), y[:32]).item()
    assert treated(step, "standardise-input")[0] == pytest.approx(expected, rel=1e-4)


def test_shuffling_keeps_pairs_together() -> None:
    x = torch.arange(96.0)[:, None].repeat(1, 6)
    y = torch.arange(96) % 3
    step = fit(seeded(), F.cross_entropy, x, y, SGD)
    found = treatment_of(case(step, Fix("shuffle", "")))
    assert found is not None
    bench = Bench(Sandbox(step), step.iterations)
    found.apply(bench)
    rows: list[float] = []
    for iteration in bench.iterations:
        entries = iteration.backwards[0].entries
        given, target = entries[0].args[0].tensor, entries[-1].args[1].tensor
        assert torch.equal(given[:, 0].long() % 3, target)
        rows += given[:, 0].tolist()
    assert sorted(rows) == list(range(96))
    assert rows != list(range(96))


def test_labels_are_mapped() -> None:
    def sick(p: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(p.squeeze(1), 2.0 * y - 1)

    def right(p: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(p.squeeze(1), y.float())

    step = step_of(seeded(outputs=1), sick)
    expected = by_hand(seeded(outputs=1), loss=right)
    assert treated(step, "map-labels", "target = (target + 1) / 2") == pytest.approx(expected)
    assert treatment_of(case(step, Fix("map-labels", "These are class numbers."))) is None


@pytest.mark.parametrize(
    ("name", "two_steps", "one_step"),
    [
        ("log-softmax", lambda p: torch.log(torch.softmax(p, 1)), lambda p: torch.log_softmax(p, 1)),
        ("logsigmoid", lambda p: torch.sigmoid(p).log(), F.logsigmoid),
    ],
)
def test_logs_are_fused(name: str, two_steps: Any, one_step: Any) -> None:
    step = step_of(seeded(), lambda p, y: F.nll_loss(two_steps(1000 * p), y))
    assert not math.isfinite(Sandbox(step).run(step.iterations, STEPS, Budget(30)).losses[-1])
    expected = by_hand(seeded(), loss=lambda p, y: F.nll_loss(one_step(1000 * p), y))
    assert treated(step, name, check="softmax-then-log") == pytest.approx(expected)


class Swapping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = seeded()

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.reshape(-1, 2, 3)
        turned = pairs.view(-1, 3, 2)
        return self.head(turned.reshape(x.shape))


def test_a_view_becomes_a_transpose() -> None:
    step = step_of(Swapping())
    line = Swapping.forward.__code__.co_firstlineno + 2
    at = Location("", "view", Swapping.forward.__code__.co_filename, line)
    losses = treated(step, "transpose", "turned = pairs.transpose(1, 2)", at=at)
    x, y = data()
    turned = x[:32].reshape(-1, 2, 3).transpose(1, 2).reshape(32, 6)
    assert losses[0] == pytest.approx(F.cross_entropy(seeded()(turned), y[:32]).item())


class Heads(nn.Module):
    """Attention without weights, whose heads are split and merged with or without a transposition."""

    def __init__(self, right: bool) -> None:
        super().__init__()
        self.head, self.right = seeded(), right

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.reshape(-1, 3, 2)
        if self.right:
            q = k = pairs.reshape(-1, 3, 2, 1).transpose(1, 2)
            return self.head((q @ k.mT @ k).transpose(1, 2).reshape(x.shape))
        q = pairs.reshape(-1, 2, 3, 1)
        k = pairs.view(-1, 2, 3, 1)
        y = (q @ k.mT @ k).reshape(pairs.shape)
        return self.head(y.reshape(x.shape))


def test_all_lines_of_one_mistake_become_transposes() -> None:
    x, y = data()
    model = Heads(right=False)

    def train() -> None:
        optimizer = SGD(model.parameters())
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    step, graph = watched(train)
    torn = graph.named({"reshape", "view"})[1]
    at = Location("", torn.name, torn.file, torn.line)
    losses = treated(step, "transpose", "q = pairs.reshape(-1, 3, 2, 1)", seen=Recording(graph=graph), at=at)
    right = Heads(right=True)
    assert losses == pytest.approx(by_hand(right))
    assert losses != pytest.approx(by_hand(Heads(right=False)))


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.rnn, self.out = nn.GRU(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x.transpose(0, 1))[0])


def test_predictions_in_the_order_of_their_targets() -> None:
    x, tags = torch.randn(12, 7, 5), torch.randint(0, 3, (12, 7))
    model = TimeFirst()

    def train() -> None:
        optimizer = SGD(model.parameters())
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x).reshape(-1, 3), tags.reshape(-1)).backward()
            optimizer.step()

    step, graph = watched(train)
    found = treatment_of(case(step, Fix("same-order", ""), Recording(graph=graph)))
    assert found is not None
    expected = F.cross_entropy(TimeFirst()(x).transpose(0, 1).reshape(-1, 3), tags.reshape(-1))
    assert run(step, found)[0] == pytest.approx(expected.item())


def test_a_control_that_squashes_twice_is_measured_like_the_treated_arm() -> None:
    """Otherwise its loss has a floor of its own, and every removal looks like a cure."""
    sick: Any = lambda p, y: F.binary_cross_entropy_with_logits(torch.sigmoid(p.squeeze(1)), y.float())  # noqa: E731
    x, y = data()
    model = seeded(outputs=1)

    def train() -> None:
        optimizer = SGD(model.parameters())
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            sick(model(x[rows]), y[rows]).backward()
            optimizer.step()

    step, graph = watched(train)
    fix = Fix("remove-sigmoid", "")
    found = treatment_of(case(step, fix, Recording(graph=graph), at=Location(operation="sigmoid")))
    assert found is not None
    with quiet(), ExitStack() as stack:
        sandbox = Sandbox(step)
        bench = Bench(sandbox, step.iterations, stack)
        found.beside(bench)
        own = sandbox.run(bench.iterations, 6, Budget(30)).losses
    first = F.binary_cross_entropy(torch.sigmoid(seeded(outputs=1)(x[:32])).squeeze(1), y[:32].float()).item()
    assert bench.measured[0] == pytest.approx(first)
    assert len(bench.measured) == len(own)
    assert run(step, found)[0] == pytest.approx(first)


def test_both_arms_of_a_trial_are_told_in_the_loss_that_is_meant() -> None:
    """A control in its own loss and a treated arm in another would make a cure of a change of units."""
    from netdoctor.experiments.sandbox import Budget
    from netdoctor.experiments.treatments.treatment import Places
    from netdoctor.experiments.trial import STEPS, try_fixes
    from netdoctor.finding import Finding, Severity
    from netdoctor.recording import Recording
    from netdoctor.report import Report
    from tests.experiments.capturing import fit

    torch.manual_seed(0)
    x = torch.randn(96, 6)
    y = (torch.rand(96, 4) < 0.5).float()
    step = fit(nn.Linear(6, 4), F.cross_entropy, x, y, steps=3)
    fix = Fix("fitting-loss", "Use binary_cross_entropy_with_logits.")
    found = Finding("wrong-loss", "title", Severity.ERROR, "why", fixes=(fix,))
    known = Recording(facts={"loss_lower_bound": 0.0})
    report = Report("train.py", "sick", 3, findings=(found,))
    trial = try_fixes(report, known, step, Places(step), (), Budget(60), lambda _: None).findings[0].fixes[0].trial
    assert trial is not None
    assert len(trial.control) == len(trial.treated) == STEPS
    assert trial.control[0] == pytest.approx(trial.treated[0])
