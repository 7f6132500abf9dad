"""All the faults."""

from __future__ import annotations

from tests.mutations import data, loop, loss, model
from tests.mutations.injection import Fault

FAULTS: tuple[Fault, ...] = (*loop.FAULTS, *loss.FAULTS, *model.FAULTS, *data.FAULTS)

# Measured, and not among the first three: they count in the table as what they are. Why, as far as it is known:
MISSED: dict[tuple[str, str], str] = {
    ("learning rate × 1000", "mlp_wine"): "it trains all the same (test accuracy 1.0); the units that died are named",
    ("weight decay × 10,000", "resnet_bn"): "the weights are gone: without the decay they do not come back either",
    ("weight decay × 10,000", "vit_digits"): "likewise",
    ("N(0, 1) weights", "mlp_wine"): "it learns, so that initial-loss is all that is said",
    ("no nonlinearity", "cnn_digits"): "two linear layers at the end, which does no harm",
    (
        "no nonlinearity",
        "functional_tensors",
    ): "products of loose tensors are not taken for layers, and it learns (0.99)",
    ("sorted labels, no shuffle", "mlp_wine"): "five batches an epoch, and it learns",
    ("raw targets", "multi_task"): "one of two terms of the loss",
    ("labels shuffled apart from the inputs", "mlp_wine"): "133 samples are learned by heart",
}
