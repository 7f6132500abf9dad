"""What the loss says about a suspicion: is training hurt, and in which words."""

from __future__ import annotations

from netdoctor.trend import Trend

LITTLE = 0.15  # a regression that only finds the mean of its target falls by 5 to 10 %; learning falls by far more


def hurt(trend: Trend) -> bool:
    """Whether training does not work: it fails, or falls by so little that a constant predictor would do."""
    return trend.failing or (trend.kind == "falls" and trend.drop < LITTLE)


def learns(trend: Trend) -> bool:
    """Whether training works well enough to make a suspicion harmless; False when that could not be told."""
    return trend.learning and not hurt(trend)


def words(trend: Trend) -> str:
    """What the loss does, as a sentence."""
    levels = f"{trend.start:.4g} at the start, {trend.end:.4g} at the end"
    if trend.kind == "non-finite":
        return f"The loss became non-finite at step {trend.first_nonfinite}."
    if trend.failing:
        return f"The loss {'does not fall' if trend.kind == 'flat' else 'rises'}: {levels}."
    if hurt(trend):
        return f"The loss hardly falls: {levels}."
    if trend.learning:
        return f"Training goes on all the same: {levels}."
    return "Whether training suffers could not be told from the loss."
