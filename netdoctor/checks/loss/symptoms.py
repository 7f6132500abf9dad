"""What follows when the loss compares the wrong things; the checks here declare it as explained."""

from __future__ import annotations

NO_LEARNING = frozenset(
    """
    loss-not-decreasing loss-diverging unstable-loss cannot-overfit-tiny-batch learning-rate-too-low
    learning-rate-too-high underfitting initial-loss noisy-gradients sgd-without-momentum clip-too-small
    over-regularised lr-decays-too-fast class-imbalance label-input-mismatch
    """.split()
)
NO_SIGNAL = frozenset(
    """
    vanishing-gradients vanishing-activations dead-relu constant-layer saturated-activation input-independent-output
    no-gradient lost-updates redundant-units depth-without-shortcuts poor-initialization
    """.split()
)
EXPLOSION = frozenset(
    """
    exploding-gradients exploding-activations non-finite-activation non-finite-gradient non-finite-parameter
    half-precision-overflow
    """.split()
)
EVERYTHING = NO_LEARNING | NO_SIGNAL | EXPLOSION
