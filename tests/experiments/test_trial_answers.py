"""Trials whose losses may fall either way: what the loss's own probabilities are, and what norms and dropouts do."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.measuring import by_number
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments import answers
from netdoctor.experiments.treatments.treatment import Bench, Measure
from netdoctor.finding import Fix, Location, Verdict
from tests.experiments.capturing import captured, fit, mlp, watched
from tests.experiments.test_measured_trials import tried as tried_on
from tests.experiments.test_trial_measures import measured, tried

Loss = Callable[[Tensor, Tensor], Tensor]
X = torch.randn(256, 6, generator=torch.Generator().manual_seed(3))
SIDES = (X[:, :1] + 0.5 > 0).float()
CLASSES = X[:, :3].argmax(1)
LABELS = (X[:, :4] > -0.5).float()  # about three of four


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=1e-2)


def seen(model: nn.Module, loss: Loss, y: Tensor, size: int = 32) -> tuple[TrainingStep, Any]:
    def train() -> None:
        optimizer = adam(model.parameters())
        for rows in torch.arange(len(X)).split(size):
            optimizer.zero_grad()
            loss(model(X[rows]), y[rows]).backward()
            optimizer.step()

    return watched(train)


# --- the rule of a second witness ------------------------------------------------------------------------------------

NUMBER = Measure("n", lambda _: 0.0, 1.0, second=True)
DEAF = Measure("n", lambda _: 0.0, 1.0, witness=False, second=True)


@pytest.mark.parametrize(
    ("measure", "control", "treated", "losses", "verdict", "told"),
    [
        (NUMBER, 4.0, 1.0, Verdict.NOT_REPRODUCED, Verdict.CURED, True),
        (NUMBER, 4.0, 1.0, Verdict.CURED, Verdict.CURED, False),
        (NUMBER, 4.0, 1.0, Verdict.WORSE, Verdict.WORSE, False),
        (DEAF, 4.0, 1.0, Verdict.WORSE, Verdict.CURED, True),
        (NUMBER, 4.0, 2.0, Verdict.NO_EFFECT, Verdict.EASED, True),
        (NUMBER, 4.0, 2.0, Verdict.EASED, Verdict.EASED, False),
        (NUMBER, 4.0, 4.0, Verdict.EASED, Verdict.EASED, False),
        (NUMBER, 1.0, 0.0, Verdict.NO_EFFECT, Verdict.NO_EFFECT, False),
        (NUMBER, math.nan, 0.0, Verdict.EASED, Verdict.EASED, False),
    ],
)
def test_a_second_witness(
    measure: Measure, control: float, treated: float, losses: Verdict, verdict: Verdict, told: bool
) -> None:
    found, number = by_number(measure, control, treated, [1.0] * 40, losses)
    assert (found, number is not None) == (verdict, told)


def test_a_loss_that_rises_is_no_cure() -> None:
    rising = [1.0 + 0.1 * step for step in range(60)]
    assert by_number(DEAF, 4.0, 1.0, rising, Verdict.NO_EFFECT)[0] is Verdict.EASED


# --- squashed twice --------------------------------------------------------------------------------------------------


def test_a_sigmoid_before_the_loss_for_raw_scores() -> None:
    torch.manual_seed(0)
    step, graph = seen(mlp(outputs=1), lambda s, t: F.binary_cross_entropy_with_logits(torch.sigmoid(s), t), SIDES)
    for treatment in ("remove-sigmoid", "loss-for-probabilities"):
        trial = tried(step, graph, "probabilities-into-logit-loss", treatment, Location(operation="sigmoid"))
        control, treated = measured(trial)
        assert control > 30 > 10 > treated
        assert trial.verdict is Verdict.CURED


def test_perfect_answers_squashed_twice() -> None:
    """The limit is what the second sigmoid or softmax leaves of 0 and 1: written out."""
    torch.manual_seed(0)
    step, _ = seen(mlp(outputs=1), F.binary_cross_entropy_with_logits, SIDES)
    measure = answers.squashed_twice(step)
    share = float(SIDES.mean())
    assert measure is not None
    assert measure.limit == pytest.approx(100 * ((1 - share) * 0.5 + share * (1 - 1 / (1 + math.exp(-1)))), abs=0.01)
    for classes, limit in ((3, 100 * (1 - math.e / (math.e + 2))), (8, 50.0)):
        step, _ = seen(mlp(outputs=classes), F.cross_entropy, CLASSES)
        measure = answers.squashed_twice(step)
        assert measure is not None
        assert measure.limit == pytest.approx(limit, abs=0.01)


def test_what_the_loss_gives_right_answers() -> None:
    step, _ = seen(mlp(), F.cross_entropy, CLASSES)
    bench = Bench(Sandbox(step), step.iterations)
    model = bench.sandbox.modules()[0]
    with torch.no_grad():
        right = model(X).double().softmax(1).gather(1, CLASSES[:, None])
    assert answers.lacking(bench) == pytest.approx(100 * float((1 - right).mean()), rel=1e-5)


def test_a_softmax_over_two_classes_that_trains_as_well() -> None:
    torch.manual_seed(0)
    step, graph = seen(mlp(outputs=2), lambda s, t: F.cross_entropy(s.softmax(1), t), SIDES.long()[:, 0])
    trial = tried(step, graph, "double-softmax", "remove-softmax", Location(operation="softmax"))
    assert trial.verdict is Verdict.CURED


@pytest.mark.parametrize("loss", [F.mse_loss, F.l1_loss])
def test_no_probabilities_no_measure(loss: Loss) -> None:
    step, _ = seen(mlp(outputs=1), loss, SIDES)
    assert answers.squashed_twice(step) is None
    assert answers.several_labels(step) is None


def test_soft_targets_have_no_right_answer() -> None:
    step, _ = seen(mlp(), F.cross_entropy, torch.rand(256, 3).softmax(1))
    assert answers.squashed_twice(step) is None


# --- several labels --------------------------------------------------------------------------------------------------


def test_several_labels_need_a_loss_of_their_own() -> None:
    torch.manual_seed(0)
    step, graph = seen(mlp(outputs=4), F.cross_entropy, LABELS)
    says = "Use binary_cross_entropy_with_logits."
    trial = tried(step, graph, "wrong-loss", "fitting-loss", says=says)
    assert trial.verdict is Verdict.CURED
    measure = answers.several_labels(step)
    assert measure is not None
    counts = LABELS.sum(1)[LABELS.sum(1) > 1]
    assert measure.limit == pytest.approx(100 * float((counts - 1).sum() / counts.sum()), abs=0.01)
    assert answers.missed(Bench(Sandbox(step), step.iterations)) > measure.limit


def test_one_label_per_sample_is_no_exclusion() -> None:
    step, _ = seen(mlp(), F.cross_entropy, F.one_hot(CLASSES, 3).float())
    assert answers.several_labels(step) is None


# --- logarithms ------------------------------------------------------------------------------------------------------


def test_a_probability_that_is_rounded_to_zero() -> None:
    torch.manual_seed(0)

    def loss(scores: Tensor, target: Tensor) -> Tensor:
        logs = torch.log(torch.softmax(3000 * scores, 1))
        return -logs[torch.arange(len(target)), target].mean()

    step, graph = seen(mlp(), loss, CLASSES)
    trial = tried(step, graph, "softmax-then-log", "log-softmax")
    assert not math.isfinite(trial.control[-1])
    assert all(map(math.isfinite, trial.treated))
    assert trial.verdict is Verdict.CURED


def test_logarithms_that_are_numbers() -> None:
    step, _ = seen(mlp(), lambda s, t: -s.softmax(1).log()[torch.arange(len(t)), t].mean(), CLASSES)
    bench = Bench(Sandbox(step), step.iterations)
    assert answers.lost(bench) == 0.0
    with torch.no_grad():
        bench.sandbox.modules()[0][-1].weight.mul_(1e4)
    assert 1 < answers.lost(bench) < 100


# --- modes -----------------------------------------------------------------------------------------------------------


def evaluated(*layers: nn.Module) -> TrainingStep:
    """Trained in evaluation mode, on inputs that its norms know nothing of."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), *layers, nn.ReLU(), nn.Linear(32, 3)).eval()
    return fit(model, F.cross_entropy, 2 * X + 3, CLASSES, steps=8)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(32), nn.Dropout(0.3)], ids=["norm", "dropout"])
def test_training_mode(layer: nn.Module) -> None:
    trial = tried_on(evaluated(layer), Fix("train-mode", ""))
    assert trial is not None
    assert trial.verdict is Verdict.CURED
    if isinstance(layer, nn.Dropout):
        assert trial.measured is not None
        assert (trial.measured.control, trial.measured.treated) == (100.0, 0.0)


def test_a_model_in_training_mode_has_nothing_to_cure() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    trial = tried_on(fit(model, F.cross_entropy, X, CLASSES, steps=8), Fix("train-mode", ""))
    assert trial is not None
    assert trial.verdict is Verdict.NOT_REPRODUCED


def test_norms_that_are_up_to_date_leave_the_dropouts() -> None:
    """Trained in training mode, then on in evaluation mode at a rate that moves nothing: only the dropout is at fault."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 3))
    with torch.no_grad():
        for _ in range(60):
            model(X)
    model.eval()
    step = captured(lambda: _slowly(model))
    trial = tried_on(step, Fix("train-mode", ""))
    assert trial is not None
    assert trial.measured is not None
    assert trial.measured.quantity.startswith("dropouts")
    assert trial.verdict is Verdict.CURED


def _slowly(model: nn.Module) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for rows in torch.arange(256).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(X[rows]), CLASSES[rows]).backward()
        optimizer.step()
