"""What follows from data out of scale; the checks here declare it as explained."""

from __future__ import annotations

from netdoctor.checks.signal.consequences import EXPLODING, LEARNING_RATE, NO_TRAINING, NON_FINITE

# A learning rate that suits the scale of the data is too low or too high for all others: the data comes first.
OF_SCALE = NO_TRAINING | NON_FINITE | EXPLODING | LEARNING_RATE | {"vanishing-gradients", "dead-relu", "sensitive-loss"}
# Sorted batches make any training oscillate, whatever its rate and its model.
_ORDER_NAMES = """
loss-not-decreasing loss-diverging unstable-loss learning-rate-too-high learning-rate-too-low noisy-gradients
    dead-relu constant-layer saturated-activation input-independent-output exploding-gradients batchnorm-drift
    train-eval-shift overfitting underfitting class-imbalance initial-loss cannot-overfit-tiny-batch
"""
OF_ORDER = frozenset(_ORDER_NAMES.split())
# Units that die over labels without a pattern are no cause: the model has shown that it can learn them by heart.
_OF_LABELS = "loss-not-decreasing overfitting input-independent-output learning-rate-too-low dead-relu"
OF_LABELS = frozenset(_OF_LABELS.split())
