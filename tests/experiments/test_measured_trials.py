"""Trials that measure what the finding is about: the control has it, the treated copy has not, and numbers are told."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.experiments.verdict import by_measure
from netdoctor.finding import Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Recording
from netdoctor.report import Report
from tests.capture.observing import observing
from tests.experiments.capturing import captured, fit

X = torch.randn(192, 6, generator=torch.Generator().manual_seed(1))
Y = (X[:, 0] > 0).long()


def tried(
    step: TrainingStep,
    fix: Fix,
    check: str = "x",
    at: Location | None = None,
    places: tuple[str, ...] = (),
    steps: int = 6,
) -> Trial | None:
    found = Finding(check, "title", Severity.WARNING, "why", at or Location(), fixes=(fix,), places=places)
    known = Recording(facts={"loss_lower_bound": 0.0}, steps=steps)
    report = Report("train.py", "sick", steps, findings=(found,))
    made = try_fixes(report, known, step, Places(step), (), Budget(120), lambda _: None)
    assert made.crashes == ()
    return made.findings[0].fixes[0].trial


def measured(trial: Trial | None) -> tuple[Verdict, float, float]:
    assert trial is not None
    assert trial.measured is not None
    return trial.verdict, trial.measured.control, trial.measured.treated


def network(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.ReLU(), nn.Linear(16, 2))


# --- the rule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("control", "treated", "losses", "verdict"),
    [
        (1.0, 0.1, None, Verdict.CURED),
        (1.0, 0.1, Verdict.WORSE, Verdict.EASED),
        (1.0, 0.11, None, Verdict.EASED),
        (1.0, 0.5, None, Verdict.EASED),
        (1.0, 0.5, Verdict.WORSE, Verdict.NO_EFFECT),
        (1.0, 0.51, None, Verdict.NO_EFFECT),
        (1.0, 2.0, None, Verdict.WORSE),
        (1.0, math.nan, None, Verdict.NO_EFFECT),
        (0.1, 0.0, None, Verdict.NOT_REPRODUCED),
        (math.nan, 0.0, None, None),
        (math.nan, 0.0, Verdict.CURED, Verdict.CURED),
    ],
)
def test_the_verdict_of_a_number(
    control: float, treated: float, losses: Verdict | None, verdict: Verdict | None
) -> None:
    assert by_measure(control, treated, 0.1, losses) is verdict


# --- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("middle", [nn.BatchNorm1d(16), nn.Dropout(0.4)], ids=["norm", "dropout"])
def test_evaluation_mode(middle: nn.Module) -> None:
    verdict, control, treated = measured(tried(fit(network(middle), F.cross_entropy, X, Y), Fix("eval-mode", "")))
    assert verdict is Verdict.CURED
    assert control > 1
    assert treated < 1e-3


def test_a_model_that_has_one_mode_needs_none() -> None:
    trial = tried(fit(network(nn.LayerNorm(16)), F.cross_entropy, X, Y), Fix("eval-mode", ""))
    assert measured(trial)[0] is Verdict.NOT_REPRODUCED


class Dropping(nn.Module):
    """Drops at all times in three ways, or by its mode."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.a, self.b = how, nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if self.how == "function":
            h = F.dropout(h, p=0.3)
        elif self.how == "fresh layer":
            h = nn.Dropout(0.3)(h)
        elif self.how == "attention":
            h = F.scaled_dot_product_attention(h[:, None], h[:, None], h[:, None], None, 0.3)[:, 0]
        else:
            h = F.dropout(h, 0.3, self.training)
        out: Tensor = self.b(h)
        return out


@pytest.mark.parametrize(
    ("how", "verdict"),
    [
        ("function", Verdict.CURED),
        ("fresh layer", Verdict.CURED),
        ("attention", Verdict.CURED),
        ("by its mode", Verdict.NOT_REPRODUCED),
    ],
)
def test_the_training_flag(how: str, verdict: Verdict) -> None:
    trial = tried(fit(Dropping(how), F.cross_entropy, X, Y), Fix("training-flag", ""))
    assert measured(trial)[0] is verdict


@pytest.mark.parametrize(("momentum", "verdict"), [(0.001, Verdict.CURED), (0.5, Verdict.NOT_REPRODUCED)])
def test_running_statistics(momentum: float, verdict: Verdict) -> None:
    far = 4 * X + 3
    model = network(nn.BatchNorm1d(16, momentum=momentum))
    step = fit(model, F.cross_entropy, far, Y, lambda p: torch.optim.Adam(p, lr=3e-2), steps=24, size=8)
    assert measured(tried(step, Fix("batchnorm-momentum", "")))[0] is verdict


@pytest.mark.parametrize(("size", "verdict"), [(4, Verdict.CURED), (96, Verdict.NOT_REPRODUCED)])
def test_statistics_of_the_last_batch(size: int, verdict: Verdict) -> None:
    """The more samples a batch holds, the less it matters which one was the last."""
    model = network(nn.BatchNorm1d(16, momentum=0.99))
    step = fit(model, F.cross_entropy, X, Y, lambda p: torch.optim.Adam(p, lr=3e-2), min(24, 192 // size), size)
    assert measured(tried(step, Fix("batchnorm-memory", "")))[0] is verdict


def test_frozen_norms() -> None:
    model = network(nn.BatchNorm1d(16))
    norm = model[1]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        hidden = model[0](X)
    norm.running_mean.copy_(hidden.mean(0) + 0.3 * hidden.std(0))  # loaded, from data that was a little different
    norm.running_var.copy_(hidden.var(0))
    norm.requires_grad_(False)
    verdict, control, treated = measured(tried(fit(model, F.cross_entropy, X, Y), Fix("freeze-norms", "")))
    assert (verdict, treated) == (Verdict.CURED, 0.0)
    assert control > 0.1


# --- composition -----------------------------------------------------------------------------------------------------


class Tokens(nn.Module):
    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.embedding, self.mix, self.decoder = nn.Embedding(9, 12), nn.Linear(12, 12), nn.Linear(12, 9)
        self.decoder.weight = self.embedding.weight if tied else nn.Parameter(self.embedding.weight.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.decoder(self.mix(self.embedding(x)))
        return out


@pytest.mark.parametrize(("tied", "verdict"), [(False, Verdict.CURED), (True, Verdict.NOT_REPRODUCED)])
def test_tied_weights(tied: bool, verdict: Verdict) -> None:
    tokens = torch.arange(192) % 9
    step = fit(Tokens(tied), F.cross_entropy, tokens, (tokens + 1) % 9)
    trial = tried(step, Fix("tie-weights", ""), places=("decoder.weight", "embedding.weight"))
    assert measured(trial)[0] is verdict


def test_group_norm() -> None:
    step = fit(network(nn.BatchNorm1d(16)), F.cross_entropy, X, Y, steps=12, size=4)
    verdict, control, treated = measured(tried(step, Fix("groupnorm", "")))
    assert verdict is Verdict.CURED
    assert control > 10
    assert treated < 1e-3


def test_dropout_on_the_output() -> None:
    model = nn.Sequential(nn.Linear(6, 2), nn.Dropout(0.5))
    trial = tried(fit(model, F.cross_entropy, X, Y), Fix("dropout-rate", "", "nn.Identity()"), places=("1",))
    verdict, control, treated = measured(trial)
    assert (verdict, treated) == (Verdict.CURED, 0.0)
    assert 30 < control < 70


class Slope(torch.autograd.Function):
    """x sigmoid(x), with a wrong derivative."""

    @staticmethod
    def forward(ctx, x):  # type: ignore[no-untyped-def]
        gate = torch.sigmoid(x)
        ctx.save_for_backward(gate)
        return x * gate

    @staticmethod
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        (gate,) = ctx.saved_tensors
        return grad * gate


class Curved(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(Slope.apply(self.a(x)))  # type: ignore[no-untyped-call]
        return out


def test_a_derivative_by_autograd() -> None:
    apply = torch.autograd.Function.__dict__["apply"]
    trial = tried(fit(Curved(), F.cross_entropy, X, Y), Fix("derive-again", ""), places=("Slope",))
    verdict, control, treated = measured(trial)
    assert verdict is Verdict.CURED
    assert control > 1 > treated
    assert torch.autograd.Function.__dict__["apply"] is apply


# --- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("to_none", "tried_at_all"), [(False, True), (True, False)])
def test_frozen_parameters(to_none: bool, tried_at_all: bool) -> None:
    model = network()

    def train() -> None:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
        for number in range(8):
            if number == 4:
                model[0].requires_grad_(False)
            optimizer.zero_grad(set_to_none=to_none)
            F.cross_entropy(model(X[:32]), Y[:32]).backward()
            optimizer.step()

    trial = tried(captured(train), Fix("drop-frozen", ""))
    assert (trial is not None) is tried_at_all
    if tried_at_all:
        verdict, before, after = measured(trial)
        assert (verdict, after) == (Verdict.CURED, 0.0)
        assert before > 0


@pytest.mark.parametrize("named", [("0.weight", "0.bias"), ("0",), ()])
def test_a_module_that_a_flag_did_not_freeze(named: tuple[str, ...]) -> None:
    trial = tried(fit(network(), F.cross_entropy, X, Y), Fix("freeze-module", ""), places=named)
    assert (trial is not None) is ("0.weight" in named)
    if trial is not None:
        verdict, before, after = measured(trial)
        assert (verdict, after) == (Verdict.CURED, 0.0)
        assert before > 0


def test_kept_histories() -> None:
    verdict, control, treated = measured(tried(fit(network(), F.cross_entropy, X, Y), Fix("detach-history", "")))
    assert (verdict, control, treated) == (Verdict.CURED, 16.0, 0.0)


def test_less_decay() -> None:
    def heavy(parameters):  # type: ignore[no-untyped-def]
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=1.0)

    step = fit(network(), F.cross_entropy, X, Y, heavy, steps=6)
    trial = tried(step, Fix("less-decay", "", "weight_decay=0.01"))
    assert trial is not None
    assert trial.verdict is Verdict.CURED


def test_less_penalty() -> None:
    model = network()

    def loss(out: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(out, target) + 0.5 * sum(p.square().sum() for p in model.parameters())

    step = fit(model, loss, X, Y, lambda p: torch.optim.SGD(p, lr=0.1), steps=24, size=8)
    trial = tried(step, Fix("less-penalty", "", "loss = data_loss + 0.01 * penalty"))
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    assert trial.control[-1] > 0.6 > trial.treated[-1]


# --- held-out data ---------------------------------------------------------------------------------------------------


def evaluated(shift: float = 1.0, steps: int = 300, noise: float = 0.0, gaps: float = math.inf) -> TrainingStep:
    """A training with an evaluation every ten steps, in whose data what is larger than `gaps` is missing."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(160, 6, generator=generator)
    y = x[:, :1] + noise * torch.randn(160, 1, generator=generator)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 64), nn.Tanh(), nn.Linear(64, 1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    with observing() as observation:
        for number in range(steps):
            optimizer.zero_grad()
            F.mse_loss(model(x[:40]), y[:40]).backward()
            optimizer.step()
            if number % 10 == 0:
                with torch.no_grad():
                    F.mse_loss(model(torch.where(x[40:] > gaps, math.nan, shift * x[40:])), y[40:])
    return replace(observation.step, held=observation.observer.evaluation.held())


def test_evaluations_are_kept_in_bounds_and_come_back() -> None:
    step = evaluated(steps=200)
    ((_, passes),) = step.held.items()
    assert len(passes) == 4
    assert all(math.isfinite(backward.value) for backward in passes)


def test_the_same_preprocessing() -> None:
    verdict, control, treated = measured(tried(evaluated(30.0), Fix("same-preprocessing", "")))
    assert verdict is Verdict.CURED
    assert control > 10 * treated
    assert measured(tried(evaluated(1.0), Fix("same-preprocessing", "")))[0] is Verdict.NOT_REPRODUCED


def test_clean_held_out_inputs() -> None:
    found = measured(tried(evaluated(gaps=2.5, steps=100), Fix("clean-held-out-input", "")))
    assert found == (Verdict.CURED, 100.0, 0.0)
    assert measured(tried(evaluated(steps=100), Fix("clean-held-out-input", "")))[0] is Verdict.NOT_REPRODUCED


def test_early_stopping() -> None:
    verdict, control, treated = measured(tried(evaluated(noise=1.0), Fix("early-stopping", ""), steps=300))
    assert verdict is Verdict.CURED
    assert control > 20
    assert treated <= 1
