"""Trials of shifting what a model is given, where it is its target."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.copying import look
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Recording
from netdoctor.report import Report
from tests.experiments.test_copying import SAMPLES, TOKENS, Decoder, Language, Writer, cross_entropy, shifted, trained

LENGTH = 6


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def counting(start: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A first token, and those that follow it in their order."""
    first = torch.randint(0, TOKENS, (SAMPLES, 1)) if start is None else start
    return first, (first + 1 + torch.arange(LENGTH)) % TOKENS


def decoded(model: nn.Module) -> Tensor:
    first, target = counting()
    return cross_entropy(model(first.expand_as(target), target), target)


def drawn_anew(model: nn.Module) -> Tensor:
    first, target = counting()
    return cross_entropy(model(first.expand_as(target), anything := torch.randint(0, TOKENS, target.shape)), anything)


def as_it_should_be(model: nn.Module) -> Tensor:
    first, target = counting()
    return cross_entropy(model(first.expand_as(target), shifted(target)), target)


def language(model: nn.Module) -> Tensor:
    tokens = counting()[1]
    return cross_entropy(model(tokens), tokens)


def written(model: nn.Module) -> Tensor:
    first, target = counting()
    state, losses = F.one_hot(first[:, 0], 32).float(), []
    for place in range(LENGTH):
        logits, state = model(target[:, place], state)
        losses.append(F.cross_entropy(logits, target[:, place]))
    return torch.stack(losses).mean()


def tried(step: TrainingStep) -> Trial | None:
    found = Finding("causal-leak", "t", Severity.ERROR, "w", Location(), fixes=(Fix("shift-target", ""),))
    report = Report("train.py", "sick", 60, findings=(found,))
    recording = Recording(arms=look(Recording(), step, Budget(60)), steps=60)
    made = try_fixes(report, recording, step, Places(step), (), Budget(60), lambda _: None)
    assert made.crashes == ()
    return made.findings[0].fixes[0].trial


@pytest.mark.parametrize(
    ("make", "loss", "says"),
    [
        (Decoder, decoded, ""),
        (Writer, written, ""),
        (Language, language, "its input moved on in place of the target back, which is the same"),
    ],
    ids=["decoder", "loop", "language"],
)
def test_a_copy_that_is_given_earlier_tokens_alone_learns(
    make: Callable[[], nn.Module], loss: Callable[[nn.Module], Tensor], says: str
) -> None:
    trial = tried(trained(make(), loss))
    assert trial is not None
    assert trial.measured is not None
    assert trial.verdict is Verdict.CURED
    assert trial.measured.control > 100
    assert trial.measured.treated < 60
    assert trial.says == says


def test_where_nothing_can_be_predicted_it_does_not_help() -> None:
    """Tokens at random: shifted they teach nothing, and the copy is no better than a constant."""
    trial = tried(trained(Decoder(), drawn_anew))
    assert trial is not None
    assert trial.measured is not None
    assert trial.verdict is not Verdict.CURED
    assert trial.measured.treated > 90


def test_a_model_that_is_not_given_its_target_is_not_tried() -> None:
    assert tried(trained(Decoder(), as_it_should_be)) is None


def test_too_few_batches() -> None:
    assert tried(trained(Decoder(), decoded, steps=5)) is None
