"""cross-sample-leakage, causal-leak and input-independent-output, on hand-made arms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from netdoctor.checks.structure.causal_leak import CausalLeak
from netdoctor.checks.structure.cross_sample_leakage import CrossSampleLeakage
from netdoctor.checks.structure.input_independent_output import InputIndependentOutput
from netdoctor.finding import Abstention, Certainty, Finding, Severity
from netdoctor.recording import Arm, Recording, Series
from tests.checks.builders import Builder

STEPS = np.arange(100)
STUCK = 2.3 + 0.01 * np.sin(7.0 * STEPS)
LEARNS = 2.3 * 0.95**STEPS
BORN = {"operation": "lstm", "module": "rnn", "file": "train.py", "line": 12.0, "text": "h = self.rnn(x)"}


def leak(name: str, share: float, **facts: Any) -> Recording:
    known = {"leaks": share > 1e-4, "share": share, "dimension": 0.0, "size": 32.0, **BORN, **facts}
    return Recording(arms={name: Arm(name, np.empty(0), facts=known)})


def findings(check: Any, recording: Recording) -> list[Finding]:
    return [item for item in check.judge(recording) if isinstance(item, Finding)]


CHECKS = [(CrossSampleLeakage(), "leakage/samples"), (CausalLeak(), "leakage/positions")]


@pytest.mark.parametrize(("check", "arm"), CHECKS)
@pytest.mark.parametrize(
    ("share", "fires"), [(0.0, False), (1e-3, False), (1.001e-3, True), (0.5, True), (math.inf, True)]
)
def test_a_change_beyond_rounding(check: Any, arm: str, share: float, fires: bool) -> None:
    found = findings(check, leak(arm, share))
    assert len(found) == fires
    if fires:
        assert (found[0].severity, found[0].certainty) == (Severity.ERROR, Certainty.PROVEN)
        assert (found[0].location.module, found[0].location.line) == ("rnn", 12)
        assert "inf" not in found[0].title.replace("Inf", "")


@pytest.mark.parametrize(("inside", "whole", "fires"), [(True, True, True), (False, True, False), (True, False, False)])
def test_samples_that_meet_inside_of_a_model_whose_output_reads_nothing(inside: bool, whole: bool, fires: bool) -> None:
    """A transformer that takes the batch for the sequence, and whose output is read at a token that all samples have."""
    build = Builder(60).loss(0.693).facts(loss_family="cross_entropy", classes=2, loss_lower_bound=0.0)
    build.arm("leakage/samples", share=0.0, dimension=0.0, size=32.0, inside=inside, **BORN)
    found = findings(CrossSampleLeakage(), build.arm("usage/0", whole=whole).done())
    assert bool(found) is fires
    assert all(f.fixes[0].code == "batch_first=True" for f in found)


@pytest.mark.parametrize(("check", "arm"), CHECKS)
def test_what_could_not_run_is_told(check: Any, arm: str) -> None:
    failed = Recording(arms={arm: Arm(arm, np.empty(0), failure="no model is called with data alone")})
    (said,) = check.judge(failed)
    assert isinstance(said, Abstention)
    assert said.reason == "no model is called with data alone"
    (said,) = check.judge(Recording())
    assert isinstance(said, Abstention)
    assert said.reason.startswith("no experiment ")


def test_other_targets_pass_without_a_word() -> None:
    assert list(CausalLeak().judge(leak("leakage/samples", 0.0))) == []


@pytest.mark.parametrize(
    ("operation", "dimension", "code"),
    [
        ("gru", 0.0, "batch_first=True"),
        ("gru", 1.0, "batch_first=False"),
        ("scaled_dot_product_attention", 0.0, "batch_first=True"),
        ("view", 0.0, "x = x.flatten(1)"),
        ("softmax", 0.0, ""),
    ],
)
def test_the_fix_for_mixed_samples(operation: str, dimension: float, code: str) -> None:
    (found,) = findings(CrossSampleLeakage(), leak("leakage/samples", 0.5, operation=operation, dimension=dimension))
    assert found.fixes[0].code == code


@pytest.mark.parametrize(
    ("operation", "treatment"),
    [
        ("lstm", "one-direction"),
        ("conv1d", "pad-left"),
        ("pad", "pad-left"),
        ("scaled_dot_product_attention", "causal-mask"),
        ("matmul", "causal-mask"),
    ],
)
def test_the_fix_for_seen_futures(operation: str, treatment: str) -> None:
    (found,) = findings(CausalLeak(), leak("leakage/positions", 0.5, operation=operation))
    assert found.fixes[0].treatment == treatment


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("h = self.conv(F.pad(x, (self.pad, self.pad)))", "h = self.conv(F.pad(x, (self.pad + self.pad, 0)))"),
        ("x = nn.functional.pad(x, [1, 1])", "x = nn.functional.pad(x, (1 + 1, 0))"),
        ("x = F.pad(x, self.amounts)", "x = torch.nn.functional.pad(x, (left + right, 0))"),
    ],
)
def test_padding_in_the_scripts_own_line(text: str, code: str) -> None:
    (found,) = findings(CausalLeak(), leak("leakage/positions", 0.5, operation="pad", text=text))
    assert found.fixes[0].code == code


# --- input-independent-output ----------------------------------------------------------------------------------------


def blind(losses: Any = STUCK, given: Any = (2.3, 2.2), blanked: Any = (2.3, 2.2), steps: int = 8) -> Recording:
    made = Recording(steps=100, losses={"loss": Series(STEPS, losses)})
    made.facts["loss_lower_bound"] = 0.0
    for name, ends in (("inputs/given", given), ("inputs/blanked", blanked)):
        made.arms[name] = Arm(name, np.linspace(*ends, steps))
    return made


@pytest.mark.parametrize(
    ("recording", "fires"),
    [
        (blind(), True),
        (blind(blanked=(2.3, 2.2 + 0.9e-5 * 2.3)), True),
        (blind(blanked=(2.3, 2.2 + 1.1e-5 * 2.3)), False),
        (blind(steps=7), False),
        (blind(losses=LEARNS), False),
        (blind(given=(2.3, math.nan), blanked=(2.3, math.nan)), False),
    ],
)
def test_nothing_is_read_and_nothing_is_learned(recording: Recording, fires: bool) -> None:
    found = findings(InputIndependentOutput(), recording)
    assert [f.severity for f in found] == ([Severity.ERROR] if fires else [])


def test_a_game_of_two_has_no_such_harm() -> None:
    made = blind()
    made.facts["several_optimizers"] = True
    assert list(InputIndependentOutput().judge(made)) == []


def test_without_experiments_nothing_is_said_of_inputs() -> None:
    made = blind()
    made.arms.clear()
    (said,) = InputIndependentOutput().judge(made)
    assert isinstance(said, Abstention)


def test_inputs_that_do_not_vary_cannot_tell() -> None:
    made = blind()
    made.arms["inputs/blanked"] = Arm("inputs/blanked", np.empty(0), failure="no input of a model varies")
    (said,) = InputIndependentOutput().judge(made)
    assert isinstance(said, Abstention)
    assert said.reason == "no input of a model varies"


# --- a model that is given its target --------------------------------------------------------------------------------


def copying(**facts: Any) -> Recording:
    known = {"causal": True, "right": 1.0, "follows": 1.0, "others": 1.0, "alone": 1.0, "shifted": False}
    call = {"keyword": "", "place": 1.0, "arguments": 2.0, "looped": False, "file": "train.py", "line": 12.0}
    text = {"text": "loss = criterion(net(x, y), y)"}
    return Recording(
        arms={"leakage/copies": Arm("leakage/copies", np.empty(0), facts={**known, **call, **text, **facts})}
    )


@pytest.mark.parametrize(
    ("facts", "fires"),
    [
        ({}, True),
        ({"follows": 0.9}, True),
        ({"follows": 0.89}, False),
        ({"right": 0.9, "alone": 0.9}, True),
        ({"right": 0.89, "alone": 0.89}, False),
        ({"alone": 0.95}, True),
        ({"alone": 0.94}, False),
        ({"causal": False}, False),
        ({"shifted": True}, False),
    ],
)
def test_a_target_that_is_copied_from_an_input(facts: dict[str, Any], fires: bool) -> None:
    assert bool(findings(CausalLeak(), copying(**facts))) is fires


def test_where_the_target_is_given_and_what_to_write() -> None:
    (found,) = findings(CausalLeak(), copying())
    assert (found.severity, found.certainty, found.location.line) == (Severity.ERROR, Certainty.PROVEN, 12)
    assert found.places == ("y",)
    made, line = found.fixes[0].code.splitlines()
    assert made == "y_in = torch.cat([torch.full_like(y[:, :1], BOS), y[:, :-1]], 1)"
    assert line == "loss = criterion(net(x, y_in), y)"
    (found,) = findings(CausalLeak(), copying(text=""))
    assert found.location.file is None
    assert "decoder_input = " in found.fixes[0].code


def test_tokens_that_could_not_be_exchanged_are_told() -> None:
    failed = Recording(arms={"leakage/copies": Arm("leakage/copies", np.empty(0), failure="no copy")})
    (said,) = CausalLeak().judge(failed)
    assert isinstance(said, Abstention)
    assert said.reason == "no copy"
