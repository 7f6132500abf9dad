"""`dead-relu`: just below, at and above each limit, too short, and everything that must not set it off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdoctor.checks.units.dead_relu import DeadRelu
from netdoctor.finding import Abstention, Certainty, Finding, Severity
from netdoctor.recording import Recording, Role, Stat
from tests.checks.builders import Builder
from tests.checks.structure.models import Model

Active = Callable[[int], Any]


def units(dead: int, of: int = 20) -> list[float]:
    """A layer in which the first units are dead."""
    return [0.0] * dead + [1.0] * (of - dead)


def net(active: Active | list[float], samples: float = 100.0, steps: int = 60, path: str = "relu") -> Builder:
    build = Builder(steps).linear("fc", units=20, rms=1.0, weight_rms=0.1, update=1e-4)
    build.activation(path, "ReLU", units=20, active=active, samples=samples, line=9)
    return build.linear("out", units=20, fan_in=20).optimizer("SGD", lr=0.5)


def run(recording: Recording) -> list[Finding | Abstention]:
    return list(DeadRelu().judge(recording))


def only(recording: Recording) -> Finding:
    (finding,) = run(recording)
    assert isinstance(finding, Finding)
    return finding


@pytest.mark.parametrize(
    ("dead", "severity"),
    [(3, None), (4, Severity.WARNING), (9, Severity.WARNING), (10, Severity.ERROR), (20, Severity.ERROR)],
)
def test_share_of_dead_units(dead: int, severity: Severity | None) -> None:
    hurt = net(units(dead)).loss(2.3).facts(loss_family="cross_entropy", classes=10, loss_lower_bound=0.0)
    assert [f.severity for f in run(hurt.done())] == ([] if severity is None else [severity])


@pytest.mark.parametrize(("dead", "severity"), [(4, Severity.ADVICE), (9, Severity.ADVICE), (10, Severity.ERROR)])
def test_some_dead_units_where_the_loss_tells_nothing(dead: int, severity: Severity) -> None:
    assert only(net(units(dead)).done()).severity is severity


@pytest.mark.parametrize(("live", "severity"), [(19, Severity.WARNING), (21, Severity.ADVICE)])
def test_where_training_works_half_of_all_units_count(live: int, severity: Severity) -> None:
    """A dead layer of 20 beside one of others that live."""
    build = net(units(20)).activation("other", "ReLU", units=live, active=[1.0] * live, samples=100.0)
    build.loss([2.3 * 0.95**step for step in range(60)]).facts(loss_family="cross_entropy", classes=10)
    assert only(build.facts(loss_lower_bound=0.0).done()).severity is severity


@pytest.mark.parametrize(("steps", "judged"), [(3, False), (4, True)])
def test_needs_four_sampled_steps(steps: int, judged: bool) -> None:
    (found,) = run(net(units(20), steps=steps).done())
    assert isinstance(found, Finding) is judged


@pytest.mark.parametrize(("samples", "judged"), [(63.0, False), (64.0, True)])
def test_needs_256_samples_per_unit(samples: float, judged: bool) -> None:
    (found,) = run(net(units(19), samples=samples, steps=4).done())
    assert isinstance(found, Finding) is judged
    if isinstance(found, Abstention):
        assert "256" in found.reason


@pytest.mark.parametrize(("samples", "judged"), [(15.0, False), (16.0, True)])
def test_a_layer_that_is_silent_as_a_whole_needs_64_samples(samples: float, judged: bool) -> None:
    (found,) = run(net(units(20), samples=samples, steps=4).done())
    assert isinstance(found, Finding) is judged


@pytest.mark.parametrize(("width", "samples", "judged"), [(1, 32.0, False), (2, 32.0, True)])
def test_a_narrow_silent_layer_needs_more_samples(width: int, samples: float, judged: bool) -> None:
    build = Builder(4).linear("fc", units=width, rms=1.0, weight_rms=0.1, update=1e-4)
    build.activation("relu", "ReLU", units=width, active=[0.0] * width, samples=samples).linear("out")
    (found,) = run(build.done())
    assert isinstance(found, Finding) is judged


def test_sparse_but_live_units_are_silent() -> None:
    """Each unit fires in one of five sampled steps only; each step shows 80 % of the units idle."""

    def rotating(step: int) -> list[float]:
        return [float((step + unit) % 5 == 0) for unit in range(20)]

    assert run(net(rotating, steps=15).done()) == []


def test_small_batches_make_the_window_longer() -> None:
    """With 20 samples per step the window needs 13 steps, and a unit that fired 10 sampled steps ago is not dead."""
    build = net(lambda step: units(0) if step == 12 else units(20), samples=20.0, steps=21)
    assert run(build.done()) == []


def test_units_that_lived_first_and_are_dead_at_the_end_died() -> None:
    build = net(lambda step: units(0) if step <= 10 else units(14))
    ratios = build.done().parameters["fc.weight"].site(Role.UPDATE)
    build.track(ratios, Stat.RMS, lambda step: 0.5 if step == 10 else 1e-4)
    finding = only(build.done())
    assert finding.first_step == 10
    assert "14 of 20 units of relu are dead since step 10" in finding.title
    assert "5 times the scale of fc.weight" in finding.explanation
    assert "learning rate was 0.5" in finding.explanation
    assert finding.fixes[0].treatment == "lower-lr"
    assert "0.05" in finding.fixes[0].code


def test_units_that_die_and_come_back_are_silent() -> None:
    assert run(net(lambda step: units(20) if 5 <= step < 30 else units(0)).done()) == []


def test_dead_from_the_start_by_their_bias() -> None:
    build = net(units(20)).of_parameter("fc.bias", Stat.MEAN, -8.0)
    build.of_layer("fc", Stat.MEAN, -8.0).of_layer("fc", Stat.STD, 1.2)
    finding = only(build.done())
    assert finding.first_step == 0
    assert "from the start" in finding.title
    assert "mean -8 and standard deviation 1.2; the bias of fc starts at -8" in finding.explanation
    assert finding.fixes[0].code == "torch.nn.init.zeros_(model.fc.bias)"


def test_ordinary_bias_is_not_blamed() -> None:
    """A bias of -0.01 does not make a mean of -3: the weights do."""
    build = net(units(20)).of_parameter("fc.bias", Stat.MEAN, -0.01)
    finding = only(build.of_layer("fc", Stat.MEAN, -3.0).of_layer("fc", Stat.STD, 1.0).done())
    assert "bias" not in finding.explanation
    assert finding.fixes[0].treatment == "variance-scaling-init"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("self.act = nn.ReLU()", "self.act = nn.LeakyReLU(0.01)"),
        ("nn.ReLU(inplace=True),", "nn.LeakyReLU(0.01, inplace=True),"),
        ("x = F.relu(self.fc(x))", "x = F.leaky_relu(self.fc(x))"),
        ("x = torch.relu(x)", "x = torch.nn.functional.leaky_relu(x)"),
        ("", "nn.LeakyReLU(0.01)  # in place of nn.ReLU(); F.leaky_relu in place of F.relu"),
    ],
)
def test_leaky_relu_is_proposed_in_the_users_line(text: str, code: str) -> None:
    build = Builder(60).linear("fc").activation("relu", active=units(20), samples=100.0, line=9, text=text)
    assert only(build.done()).fixes[-1].code == code


@pytest.mark.parametrize(
    ("loss", "dead", "severity"),
    [
        (lambda s: 2.3 * 0.95**s, 20, Severity.WARNING),
        (lambda s: 2.3 * 0.95**s, 5, Severity.ADVICE),
        (lambda s: 2.3, 20, Severity.ERROR),
        (lambda s: 2.3, 5, Severity.WARNING),
    ],
)
def test_one_grade_less_where_the_loss_falls(loss: Callable[[int], float], dead: int, severity: Severity) -> None:
    assert only(net(units(dead)).loss(loss).facts(loss_family="mse", loss_lower_bound=0.0).done()).severity is severity


@pytest.mark.parametrize(("name", "code"), [("w1", "w1"), ("body.3.weight", "model.body[3].weight")])
def test_weights_of_a_functional_model_are_called_by_their_variable(name: str, code: str) -> None:
    build = Builder(60).parameter(name).layer("", "linear", units=20, weight=name)
    finding = only(build.activation("", "relu", units=20, active=units(20), samples=100.0).done())
    assert finding.fixes[0].code == f'torch.nn.init.kaiming_normal_({code}, nonlinearity="relu")'


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("h = F.relu(x @ params[0] + params[1])", '(params[0], mode="fan_out", nonlinearity="relu")'),
        ("h = F.relu(F.linear(x, w1, b1))", '(w1, nonlinearity="relu")'),
        ("h = F.relu(h)", ""),  # no name that could be pasted
    ],
)
def test_weights_without_a_name_are_read_off_the_line(text: str, code: str) -> None:
    build = Builder(60).parameter("parameter 0").layer("", "linear", units=20, weight="parameter 0")
    finding = only(build.activation("", "relu", units=20, active=units(20), samples=100.0, line=9, text=text).done())
    assert finding.fixes[0].code == (f"torch.nn.init.kaiming_normal_{code}" if code else "")


def test_small_side_branch_of_a_net_that_learns_is_advice() -> None:
    """A squeeze of 3 units is dead in a net of 60: nothing that training misses."""
    build = net(units(0)).activation("wide", units=40, active=[1.0] * 40, samples=100.0)
    build.activation("squeeze", units=3, active=[0.0] * 3, samples=100.0).loss(lambda s: 2.3 * 0.95**s)
    assert only(build.facts(loss_family="mse", loss_lower_bound=0.0).done()).severity is Severity.ADVICE


@pytest.mark.parametrize(
    ("start", "end", "measured", "severity"),
    [
        (2.3, 0.047, 0.001, Severity.WARNING),  # 2 % of ln 10 is 0.0461
        (2.3, 0.045, 0.001, Severity.ADVICE),
        (2.3, 0.045, 0.021, Severity.WARNING),  # in evaluation mode it is more
        (230.0, 1.0, None, Severity.WARNING),  # little of what it began with, and much of a constant prediction's loss
        (2.3, 0.045, None, Severity.ADVICE),
    ],
)
def test_what_died_is_not_missed_where_next_to_nothing_is_left(
    start: float, end: float, measured: float | None, severity: Severity
) -> None:
    build = Model(steps=60).loss(lambda step: start if step < 8 else end if step >= 30 else (start * end) ** 0.5)
    hidden = build.run(build.value((64, 20)), "fc")
    build.compare(hidden).facts(loss_family="cross_entropy", classes=10.0, loss_lower_bound=0.0)
    build.layers("fc").activation("relu", "ReLU", units=20, active=units(20), samples=100.0, line=9)
    if measured is not None:
        build.arm("final/evaluation", [0.1], left=measured)
    assert only(build.done()).severity is severity


def test_adversarial_training_is_one_grade_less() -> None:
    assert only(net(units(5)).loss(2.3).facts(several_optimizers=True).done()).severity is Severity.ADVICE


@pytest.mark.parametrize(("share", "certainty"), [(1.0, Certainty.MEASURED), (0.0, Certainty.INFERRED)])
def test_weight_gradients_of_zero_confirm(share: float, certainty: Certainty) -> None:
    build = net(units(20)).of_parameter("fc.weight", Stat.UNIT_ZERO_GRADIENT, [share] * 20, Role.WEIGHT_GRADIENT)
    finding = only(build.done())
    assert finding.certainty is certainty
    assert finding.evidence[-1].measured == 100 * share


def test_one_finding_for_all_layers_at_the_first_grave_one() -> None:
    build = net(units(5)).activation("second", "ReLU", units=20, active=units(20), samples=100.0)
    build.linear("third").activation("", "relu", units=20, active=units(20), samples=100.0)
    finding = only(build.done())
    assert finding.location.module == "second"
    assert finding.places == ("relu", "second", "the model (relu)")
    assert finding.share == 1.0


def test_one_module_used_behind_different_layers_is_judged_call_by_call() -> None:
    build = Builder(60).linear("conv1", units=20).activation("act", units=20, active=units(0), samples=100.0)
    build.linear("conv2", units=20).activation("act", units=20, active=units(20), samples=100.0, call=1)
    assert only(build.done()).places == ("act [call 2]",)


def test_calls_that_share_their_weights_are_one_set_of_units() -> None:
    """A siamese net: a unit that fires in one tower only is alive."""
    build = Builder(60).linear("conv", units=20).activation("act", units=20, active=units(20), samples=100.0)
    build.layer("conv", "Linear", units=20, weight="conv.weight", call=1)
    build.activation("act", units=20, active=units(0), samples=100.0, call=1)
    assert run(build.done()) == []


def test_idle_units_of_a_frozen_part_are_silent() -> None:
    build = Builder(60).linear("fc", units=20, requires_grad=False)
    assert run(build.activation("relu", units=20, active=units(6), samples=100.0).done()) == []


@pytest.mark.parametrize(("dead", "severity"), [(9, Severity.ADVICE), (10, Severity.ERROR)])
def test_a_part_of_a_layer_is_no_warning_where_a_nan_ended_the_training(dead: int, severity: Severity) -> None:
    build = net(units(dead))
    assert only(build.loss(lambda step: 1.0 if step < 50 else float("nan")).done()).severity is severity


def test_only_steps_before_the_first_nan_count() -> None:
    build = net(lambda step: units(0) if step < 8 else units(20)).origin("forward", "NaN", 8)
    assert run(build.done()) == []


def test_activations_that_pass_gradient_below_zero_are_not_looked_at() -> None:
    assert run(Builder(60).linear("fc").activation("act", "LeakyReLU", rms=0.0).done()) == []


@given(st.integers(1, 64), st.integers(4, 300), st.integers(0, 2**31))
def test_a_unit_that_fires_in_the_last_sampled_step_is_never_dead(width: int, steps: int, seed: int) -> None:
    """Whatever the history: live at the end is live, and never a finding for a layer that is all live at the end."""
    rng = np.random.default_rng(seed)
    build = Builder(steps).linear("fc", units=width)
    history = (rng.random((len(build.steps), width)) < 0.3).astype(float)
    history[-1] = 1.0
    build.activation("relu", units=width, active=history, samples=500.0)
    assert run(build.done()) == []


@pytest.mark.parametrize(("dead", "blanked", "fires"), [(12, 0.5, False), (20, 0.5, True), (12, 0.4, True)])
def test_units_of_a_model_that_reads_nothing_are_not_dead_unless_all_are(
    dead: int, blanked: float, fires: bool
) -> None:
    build = net(units(dead)).arm("inputs/given", [0.5] * 20).arm("inputs/blanked", [blanked] * 20)
    assert bool(list(DeadRelu().judge(build.done()))) is fires
