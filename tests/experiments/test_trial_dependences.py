"""Trials of fixes that the loss cannot judge: whether the model still sees what it must not see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments.leakage import SAMPLES, leakage
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.treatment import Places
from netdoctor.experiments.trial import try_fixes
from netdoctor.experiments.verdict import by_itself
from netdoctor.finding import Finding, Fix, Location, Severity, Trial, Verdict
from netdoctor.recording import Arm, Recording
from netdoctor.report import Report
from tests.experiments.test_leakage import Language, flat, labelled, next_tokens, padded, trained

FALLS = [1.0 - 0.01 * n for n in range(40)]


class Reader(nn.Module):
    def __init__(self, batch_first: bool) -> None:
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 8, batch_first=batch_first), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.rnn(x)[0].mean(1))
        return out


class Stacked(nn.Module):
    """Two layers that take the batch for the sequence, as an encoder makes them from one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(8, 2) for _ in range(2))
        self.first, self.out = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for layer in self.layers:
            h = h + layer(h, h, h)[0]
        out: Tensor = self.out(h.mean(1))
        return out


def attend(h: Tensor) -> Tensor:
    return (h @ h.transpose(1, 2)).softmax(-1) @ h


def fused(h: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(h, h, h)


def masked(h: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(h, h, h, is_causal=True)


def tried(
    step: TrainingStep,
    check: str,
    treatment: str,
    module: str = "",
    operation: str = "",
    line: tuple[str, int] | None = None,
    arms: dict[str, Arm] | None = None,
) -> Trial | None:
    place = Location(module or None, operation or None, *(line or ()))
    found = Finding(check, "title", Severity.ERROR, "why", place, fixes=(Fix(treatment, ""),))
    known = Recording(facts={"loss_lower_bound": 0.0}, arms=arms or {})
    report = Report("train.py", "sick", 3, findings=(found,))
    return try_fixes(report, known, step, Places(step), (), Budget(60), lambda _: None).findings[0].fixes[0].trial


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return 5 * F.normalize(self.first(x), 2, dim=0)


def test_a_norm_along_the_samples() -> None:
    code = Normed.forward.__code__
    line = code.co_filename, code.co_firstlineno + 1
    step = trained(Normed(), labelled(12, 5), F.cross_entropy)
    trial = tried(step, "cross-sample-leakage", "keep-samples-apart", "", "normalize", line)
    assert trial is not None
    assert trial.verdict is Verdict.CURED


class Marked(nn.Module):
    """Reads the answer at a token that every sample has, of an attention that takes the batch for the sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.mark = nn.Parameter(torch.zeros(1, 1, 16))
        self.first = nn.Linear(5, 16)
        self.mix = nn.MultiheadAttention(16, 2)
        self.out = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.mark.expand(len(x), -1, -1), self.first(x)], 1)
        out: Tensor = self.out((h + self.mix(h, h, h)[0])[:, 0])
        return out


def test_samples_that_meet_inside_are_judged_by_the_loss() -> None:
    """The output shows no leak, with the fix or without: nothing of the input reaches it."""

    def batch() -> tuple[Tensor, Tensor]:
        x = 4 * torch.randn(64, 1, 1).expand(-1, 6, 5)
        return x, (x[:, 0, 0] > 0).long()

    step = trained(Marked(), batch, F.cross_entropy)
    arms = leakage(Recording(), step, Budget(60))
    assert (arms[SAMPLES].facts["leaks"], arms[SAMPLES].facts["inside"]) == (False, True)
    trial = tried(step, "cross-sample-leakage", "batch-dimension", "mix", arms=arms)
    assert trial is not None
    assert trial.verdict in {Verdict.CURED, Verdict.EASED}


@pytest.mark.parametrize(("batch_first", "verdict"), [(False, Verdict.CURED), (True, Verdict.NOT_REPRODUCED)])
def test_the_batch_dimension(batch_first: bool, verdict: Verdict) -> None:
    step = trained(Reader(batch_first), labelled(12, 7, 5), F.cross_entropy)
    trial = tried(step, "cross-sample-leakage", "batch-dimension", "rnn")
    assert trial is not None
    assert trial.verdict is verdict


def test_the_batch_dimension_of_all_layers_of_a_stack() -> None:
    trial = tried(
        trained(Stacked(), labelled(12, 7, 5), F.cross_entropy), "cross-sample-leakage", "batch-dimension", "layers.0"
    )
    assert trial is not None
    assert trial.verdict is Verdict.CURED


@pytest.mark.parametrize(
    ("mix", "verdict"),
    [(attend, Verdict.CURED), (fused, Verdict.CURED), (masked, Verdict.NOT_REPRODUCED)],
)
def test_the_causal_mask(mix, verdict: Verdict) -> None:
    trial = tried(trained(Language(mix), next_tokens, flat), "causal-leak", "causal-mask")
    assert trial is not None
    assert trial.verdict is verdict


@pytest.mark.parametrize(("left", "right", "verdict"), [(1, 1, Verdict.CURED), (2, 0, Verdict.NOT_REPRODUCED)])
def test_padding_by_hand(left: int, right: int, verdict: Verdict) -> None:
    step = trained(Language(padded(left, right)), next_tokens, flat)
    trial = tried(step, "causal-leak", "pad-left", operation="pad")
    assert trial is not None
    assert trial.verdict is verdict


def test_a_mask_does_not_help_against_another_leak() -> None:
    mix = lambda h: attend(h) + h.roll(-1, 1)  # noqa: E731
    trial = tried(trained(Language(mix), next_tokens, flat), "causal-leak", "causal-mask")
    assert trial is not None
    assert trial.verdict is Verdict.NO_EFFECT


@pytest.mark.parametrize(
    ("before", "after", "losses", "verdict"),
    [
        (False, True, FALLS, Verdict.CURED),
        (False, True, FALLS[::-1], Verdict.EASED),
        (False, True, [*FALLS, float("nan")], Verdict.EASED),
        (False, False, FALLS, Verdict.NO_EFFECT),
        (True, True, FALLS, Verdict.NOT_REPRODUCED),
    ],
)
def test_what_decides(before: bool, after: bool, losses: list[float], verdict: Verdict) -> None:
    assert by_itself(before, after, losses) is verdict


def test_a_layer_without_such_a_dimension_is_not_tried() -> None:
    step = trained(nn.Sequential(nn.Linear(5, 3)), labelled(12, 5), F.cross_entropy)
    assert tried(step, "cross-sample-leakage", "batch-dimension", "0") is None
