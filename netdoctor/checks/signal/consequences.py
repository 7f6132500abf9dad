"""Groups of checks whose findings follow from a signal out of scale; the checks here declare them as explained."""

from __future__ import annotations

NON_FINITE = frozenset(
    {
        "half-precision-overflow",
        "initial-loss",
        "non-finite-activation",
        "non-finite-gradient",
        "non-finite-parameter",
    }
)
NO_TRAINING = frozenset(
    {
        "cannot-overfit-tiny-batch",
        "clip-too-small",
        "loss-diverging",
        "loss-not-decreasing",
        "noisy-gradients",
        "sgd-without-momentum",
        "underfitting",
        "unstable-loss",
    }
)
NO_SIGNAL = frozenset(
    {
        "constant-layer",
        "dead-relu",
        "half-precision-underflow",
        "input-independent-output",
        "lost-updates",
        "no-gradient",
        "redundant-units",
        "saturated-activation",
    }
)
LEARNING_RATE = frozenset({"learning-rate-too-high", "learning-rate-too-low", "lr-decays-too-fast"})
EXPLODING = frozenset({"exploding-activations", "exploding-gradients"})
VANISHING = frozenset({"depth-without-shortcuts", "vanishing-activations", "vanishing-gradients"})
# Units that stay one unit: the layer passes on next to nothing, or far too much of the same.
OF_SYMMETRY = NON_FINITE | NO_TRAINING | NO_SIGNAL | LEARNING_RATE | EXPLODING | VANISHING | {"poor-initialization"}
