from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from netdoctor.checks.loss.lines import without
from netdoctor.checks.loss.output_activation import OutputActivation
from netdoctor.finding import Severity
from netdoctor.recording import SourceLine
from tests.checks.data.facts import facts
from tests.checks.loss.steps import BATCH, CLASSES, Step, judged


def regression(activation: str, low: float, high: float, std: float = 1.0) -> Step:
    step = Step()
    out = step.then(activation, step.scores((BATCH, 1)), text=f"return F.{activation}(self.fc(x))")
    return step.loss_of("mse_loss", out, step.numbers((BATCH, 1), low, high, std=std))


@pytest.mark.parametrize(
    ("activation", "low", "high", "fires"),
    [
        ("relu", -0.26, 3.0, True),  # a quarter of the standard deviation is the limit
        ("relu", -0.25, 3.0, False),
        ("relu", 0.0, 300.0, False),
        ("sigmoid", 0.0, 1.26, True),
        ("sigmoid", 0.0, 1.0, False),
        ("tanh", -1.0, 1.0, False),
        ("tanh", -2.0, 2.0, True),
        ("gelu", -0.41, 2.0, False),
        ("gelu", -0.43, 2.0, True),
        ("silu", -2.0, 2.0, True),
        ("elu", -1.2, 2.0, False),
        ("leaky_relu", -2.0, 2.0, False),
    ],
)
def test_a_regression_must_reach_its_targets(activation, low, high, fires):
    found = judged(OutputActivation(), regression(activation, low, high))
    assert [f.severity for f in found] == ([Severity.ERROR] if fires else [])
    assert all(f.fixes[0].code == "return self.fc(x)" for f in found)


@pytest.mark.parametrize(("activation", "fires"), [("silu", False), ("relu", True)])
def test_an_output_that_is_one_number_has_another_cause(activation, fires):
    """A ReLU that is dead gives one number as well; what dips and comes back does not."""
    step = regression(activation, -2.0, 2.0)
    prediction = step.graph.operations[-1].inputs[0]
    step.graph.values[prediction] = replace(step.graph.values[prediction], low=0.4, high=0.4)
    assert bool(judged(OutputActivation(), step)) is fires


@pytest.mark.parametrize(("highest", "fires"), [(1.24, False), (1.26, True), (7.0, True)])
def test_a_target_may_grow_beyond_what_it_was_in_the_first_step(highest, fires):
    step = regression("tanh", -0.5, 0.5)
    target = step.graph.operations[-1].inputs[1]
    values = np.array([[0.0], [0.0], [highest]])
    step.recording.targets = [replace(facts(values, value=target), std=1.0)]
    found = judged(OutputActivation(), step)
    assert bool(found) is fires
    assert all(f"against targets from -0.5 to {highest:.3g}" in one.explanation for one in found)


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softplus"])
def test_classes_want_any_number(activation):
    step = Step()
    (found,) = judged(
        OutputActivation(), step.loss_of("cross_entropy", step.then(activation, step.scores()), step.labels())
    )
    assert found.severity is Severity.ERROR


@pytest.mark.parametrize(
    ("activation", "options", "fires"),
    [
        ("softplus", {}, True),  # torch's default takes logarithms
        ("softplus", {"log_input": True}, True),
        ("softplus", {"log_input": False}, False),
        ("tanh", {}, False),
        ("logsigmoid", {}, False),
    ],
)
def test_a_poisson_loss_takes_the_logarithm_of_a_rate(activation, options, fires):
    step = Step()
    found = judged(
        OutputActivation(),
        step.loss_of(
            "poisson_nll_loss", step.then(activation, step.scores((BATCH, 1))), step.numbers((BATCH, 1)), **options
        ),
    )
    assert bool(found) is fires
    assert all([f.treatment for f in one.fixes] == ["loss-of-rates", "remove-activation"] for one in found)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("loss = F.poisson_nll_loss(out, y)", "loss = F.poisson_nll_loss(out, y, log_input=False)"),
        ("loss = F.poisson_nll_loss(out, y, log_input=True)", "loss = F.poisson_nll_loss(out, y, log_input=False)"),
        ("self.crit = nn.PoissonNLLLoss()", "self.crit = nn.PoissonNLLLoss(log_input=False)"),
        ("loss = crit(out, y)", "criterion = nn.PoissonNLLLoss(log_input=False)"),
    ],
)
def test_how_the_loss_is_told(text, code):
    step = Step()
    step.loss_of("poisson_nll_loss", step.then("softplus", step.scores((BATCH, 1))), step.numbers((BATCH, 1)), text)
    assert judged(OutputActivation(), step)[0].fixes[0].code == code


def test_a_relu_with_which_training_learns_is_a_warning():
    step = Step()
    step.loss_of("cross_entropy", step.then("relu", step.scores()), step.labels())
    step.loss(lambda at: 2.3 * 0.9**at)
    assert [f.severity for f in judged(OutputActivation(), step)] == [Severity.WARNING]


def test_a_softmax_over_one_unit_is_always_one():
    step = Step()
    made = step.then("softmax", step.scores((BATCH, 1)), low=1.0, high=1.0, dim=1)
    (found,) = judged(OutputActivation(), step.loss_of("binary_cross_entropy", made, step.numbers((BATCH, 1), 0)))
    assert "always 1" in found.title


def test_a_difference_by_hand():
    step = Step()
    gap = step.operation("sub", step.then("tanh", step.scores((BATCH, 1))), step.numbers((BATCH, 1), -4.0, 4.0))
    step.backward(step.operation("mean", step.operation("pow", gap, **{"1": 2}), shape=()))
    assert len(judged(OutputActivation(), step)) == 1


def test_a_sigmoid_before_its_loss_is_right():
    step = Step()
    step.loss_of("binary_cross_entropy", step.then("sigmoid", step.scores()), step.numbers((BATCH, CLASSES), 0))
    assert judged(OutputActivation(), step) == []


@pytest.mark.parametrize(
    ("operation", "module"), [("relu", "ReLU"), ("silu", "SiLU"), ("gelu", "GELU"), ("tanh", "Tanh")]
)
def test_only_the_last_activation_of_a_line_is_taken_out(operation, module):
    text = f"out = nn.Sequential(nn.Linear(8, 8), nn.{module}(), nn.Linear(8, 1), nn.{module}())"
    cured = f"out = nn.Sequential(nn.Linear(8, 8), nn.{module}(), nn.Linear(8, 1), nn.Identity())"
    assert without(SourceLine("train.py", 1, text), operation) == cured
