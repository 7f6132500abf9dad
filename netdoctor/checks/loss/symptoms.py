"""What follows when the loss compares the wrong things; the checks here declare it as explained."""

from __future__ import annotations

_NO_LEARNING = """
loss-not-decreasing loss-diverging unstable-loss cannot-overfit-tiny-batch learning-rate-too-low
learning-rate-too-high underfitting initial-loss noisy-gradients sgd-without-momentum clip-too-small
over-regularised lr-decays-too-fast class-imbalance label-input-mismatch
"""
NO_LEARNING = frozenset(_NO_LEARNING.split())
_NO_SIGNAL = """
vanishing-gradients vanishing-activations dead-relu constant-layer saturated-activation input-independent-output
no-gradient lost-updates redundant-units depth-without-shortcuts poor-initialization
"""
NO_SIGNAL = frozenset(_NO_SIGNAL.split())
_EXPLOSION = """
exploding-gradients exploding-activations non-finite-activation non-finite-gradient non-finite-parameter
half-precision-overflow
"""
EXPLOSION = frozenset(_EXPLOSION.split())
EVERYTHING = NO_LEARNING | NO_SIGNAL | EXPLOSION
