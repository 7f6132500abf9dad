from __future__ import annotations

import pytest

from netdoctor.checks.loss.kl_div_averaged import KlDivAveraged
from netdoctor.finding import Finding, Severity
from tests.checks.builders import Builder
from tests.checks.training.trials import falls, flat, network


def distilled(classes: int, rescued: bool = True, name: str = "kl_div", text: str = "", **attributes: str) -> Builder:
    """A training that stands still; a rate 100 times as high trains or not."""
    build = network(1e-6, 60, lr=1e-3, line="optimizer = SGD(model.parameters(), 1e-3)").loss(flat(steps=60))
    build.arm("trial/control", flat()).arm("trial/lr x10", flat())
    build.arm("trial/lr x100", falls(0.8) if rescued else flat())
    scores, target = build.value((32, classes), requires_grad=True), build.value((32, classes))
    loss = build.operation(name, scores, target, shape=(), text=text, line=9, **attributes)
    return build.backward(loss)


def judged(build: Builder) -> list[Finding]:
    return list(KlDivAveraged().judge(build.done()))


@pytest.mark.parametrize(
    ("build", "fires"),
    [
        (distilled(8), True),
        (distilled(7), False),
        (distilled(100, reduction="mean"), True),
        (distilled(100, reduction="batchmean"), False),
        (distilled(100, reduction="sum"), False),
        (distilled(100, name="mse_loss"), False),
        (distilled(100, rescued=False), False),
    ],
)
def test_when_the_classes_are_averaged_as_well(build: Builder, fires: bool) -> None:
    found = judged(build)
    assert [f.severity for f in found] == [Severity.WARNING] * fires


def test_the_line_is_told_the_reduction() -> None:
    (found,) = judged(distilled(100, text="loss = F.kl_div(scores, target)"))
    assert found.fixes[0].code == 'loss = F.kl_div(scores, target, reduction="batchmean")'
    assert "learning-rate-too-low" in KlDivAveraged.explains
    assert found.evidence[0].measured == 100
