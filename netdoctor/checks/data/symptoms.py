"""What follows from data out of scale; the checks here declare it as explained."""

from __future__ import annotations

from netdoctor.checks.signal.consequences import EXPLODING, LEARNING_RATE, NO_TRAINING, NON_FINITE

# A learning rate that suits the scale of the data is too low or too high for all others: the data comes first.
OF_SCALE = NO_TRAINING | NON_FINITE | EXPLODING | LEARNING_RATE | {"vanishing-gradients", "dead-relu", "sensitive-loss"}
