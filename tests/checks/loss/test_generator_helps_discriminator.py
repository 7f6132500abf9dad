from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdoctor.checks.loss.game import AS_IT_IS, CLASSES, LABELS, PUSHES, SIGN, TURNED, turned_line
from netdoctor.checks.loss.generator_helps_discriminator import GeneratorHelpsDiscriminator
from netdoctor.finding import Abstention, Certainty, Severity, Verdict
from netdoctor.recording import Arm
from tests.checks.builders import Builder

FACTS: dict[str, Any] = {
    "helps": 3.0,
    "turns": 3.0,
    "levels": 15.0,
    "form": LABELS,
    "up": True,
    "shared": False,
    "file": "train.py",
    "line": 41.0,
    "text": "loss_g = bce(D(fake), torch.zeros(64, 1))",
}


def judged(control: float | None = None, treated: float = 0.0, start: float = 3.0, failure: str = "", **facts: Any):
    """What the check says of a player with these facts, and of copies whose samples end this far from the others."""
    recording = Builder(steps=100).optimizer("Adam").done()
    recording.arms[PUSHES] = Arm(PUSHES, np.empty(0), facts=FACTS | facts, failure=failure)
    if control is not None:
        for name, distance in ((AS_IT_IS, control), (TURNED, treated)):
            facts = {"distance": distance, "start": start}
            recording.arms[name] = Arm(name, np.zeros(200), facts=facts, failure=failure)
    return list(GeneratorHelpsDiscriminator().judge(recording))


def test_a_helping_player_is_an_error_at_its_line():
    (found,) = judged(4.0, 1.0)
    assert (found.severity, found.certainty) == (Severity.ERROR, Certainty.PROVEN)
    assert (found.location.file, found.location.line) == ("train.py", 41)
    assert found.fixes[0].code == "loss_g = bce(D(fake), torch.ones(64, 1))"
    assert "scores of generated samples down" in found.explanation
    assert "label" in found.title


def test_labels_the_other_way():
    (found,) = judged(up=False, form=SIGN, text="loss_g = -critic(fake).mean()")
    assert "scores of generated samples up" in found.explanation
    assert "sign" in found.title
    assert found.fixes[0].code == "loss_g = critic(fake).mean()"


@pytest.mark.parametrize(("helps", "said"), [(2.0, 0), (3.0, 1)])
def test_in_every_turn(helps, said):
    assert len(judged(helps=helps)) == said


@pytest.mark.parametrize(
    ("control", "treated", "start", "verdict"),
    [
        (4.0, 2.0, 3.0, Verdict.CURED),
        (4.0, 2.01, 3.0, Verdict.EASED),
        (8.0, 4.0, 3.0, Verdict.EASED),  # half of it, but further than at the start
        (4.0, 3.2, 3.0, Verdict.EASED),
        (4.0, 3.3, 3.0, Verdict.NO_EFFECT),
        (float("inf"), 1.0, 3.0, Verdict.CURED),
    ],
)
def test_what_the_trial_shows(control, treated, start, verdict):
    (found,) = judged(control, treated, start)
    assert found.fixes[0].trial.verdict is verdict
    assert found.certainty is (Certainty.PROVEN if verdict is Verdict.CURED else Certainty.MEASURED)


def test_without_a_trial_it_is_measured():
    for (found,) in (judged(), judged(float("nan"), 1.0)):
        assert found.fixes[0].trial is None
        assert found.certainty is Certainty.MEASURED


def test_what_cannot_be_replayed_is_an_abstention():
    (said,) = judged(failure="no copy")
    assert isinstance(said, Abstention)
    assert list(GeneratorHelpsDiscriminator().judge(Builder(steps=9).done())) == []


GENERAL_LABELS = "loss_g = loss_fn(scores, torch.ones_like(scores))  # the label of real samples"
GENERAL_SIGN = "loss_g = -scores.mean()  # up where the discriminator's loss pushes them down"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("g = F.binary_cross_entropy(p, torch.zeros_like(p))", "g = F.binary_cross_entropy(p, torch.ones_like(p))"),
        ("errG = criterion(output, label)", "errG = criterion(output, torch.ones_like(label))"),
        ("g = mse(D(x), target=zeros) + 3 * l1", "g = mse(D(x), target=torch.ones_like(zeros)) + 3 * l1"),
        (
            "g = bce(D(x), torch.full((8, 1), 0.0))",
            "g = bce(D(x), torch.ones_like(torch.full((8, 1), 0.0)))",
        ),
        ("return self.loss(", GENERAL_LABELS),
        ("", GENERAL_LABELS),
    ],
)
def test_the_line_with_the_other_label(text, code):
    assert turned_line(FACTS | {"text": text}) == code


def test_classes_have_no_ones():
    (found,) = judged(form=CLASSES, text="g = F.cross_entropy(D(fake), zeros)")
    assert "label" in found.title
    assert found.fixes[0].code.startswith("loss_g = F.cross_entropy(scores, real_class)")


def test_real_samples_that_are_zeros():
    assert turned_line(FACTS | {"up": False, "text": "g = bce(s, ones)"}) == "g = bce(s, torch.zeros_like(ones))"
    assert turned_line(FACTS | {"up": False, "text": "g = bce(s, torch.ones(3))"}) == "g = bce(s, torch.zeros(3))"


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("g = self.gan(self.D(fake), False) + l1", "g = self.gan(self.D(fake), True) + l1"),
        ("g = adversarial(D(fake), is_real=False)", "g = adversarial(D(fake), is_real=True)"),
        ("g = bce_with(D(fake), 0.0)", "g = bce_with(D(fake), 1.0)"),
        ("g = bce_with(D(fake), 0.3)", GENERAL_LABELS),
        ("loss_g.backward()", GENERAL_LABELS),
    ],
)
def test_a_loss_function_that_both_players_use(text, code):
    assert turned_line(FACTS | {"shared": True, "text": text}) == code


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("g = critic(fake).mean()", "g = -critic(fake).mean()"),
        ("g = torch.mean(D(fake)) + 2 * gp", "g = -torch.mean(D(fake)) + 2 * gp"),
        ("g = -torch.log(1 - D(fake)).mean()", "g = torch.log(1 - D(fake)).mean()"),
        ("g = F.softplus(D(fake)).mean()", "g = F.softplus(-D(fake)).mean()"),
        ("g = F.softplus(-s).mean()", "g = F.softplus(s).mean()"),
        ("g = F.relu(1 + D(fake)).mean()", GENERAL_SIGN),
        ("g = s.mean() if plus else -s.mean()", GENERAL_SIGN),
        ("g = score(fake)", GENERAL_SIGN),
    ],
)
def test_the_line_with_the_other_sign(text, code):
    assert turned_line(FACTS | {"form": SIGN, "text": text}) == code
