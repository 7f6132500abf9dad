"""What a reader calls an experiment. Its own name stays its identity: in JSON, in the recording, and wherever there is no title."""

from __future__ import annotations

_GROUPS = {
    "overfit": "overfitting a tiny batch",
    "overfit-tiny-batch": "overfitting a tiny batch",
    "trial": "other learning rates",
    "learning-rate-trials": "other learning rates",
    "lr-range-test": "a learning-rate range test",
    "batchnorm": "BatchNorm bypassed",
    "batchnorm-bypass": "BatchNorm bypassed",
    "final": "the trained model on the captured batches",
    "determinism": "the same batch twice in evaluation mode",
    "data": "an item of the dataset read again",
    "leakage": "samples and positions exchanged",
    "targets": "which token each position learns",
    "derivatives": "derivatives with a graph",
    "curvature": "second derivatives of a smooth model",
    "game": "two players that push scores",
    "stability": "each step on its own batch",
    "single-sample": "a step on each sample",
    "batchnorm-put-back": "BatchNorm put back over mended weights",
    "regularisation": "going on without regularisation",
    "decay": "training with a weak weight decay",
    "time": "gradients on their way back through time",
    "side-terms": "a side term of the loss made small",
    "masks": "masks of attention turned round",
    "scores": "smaller scores of a softmax",
    "rates": "a tenth of the learning rate",
    "rounding": "half-precision weights kept in float32",
    "underflow": "gradients of a scaled loss",
    "usage": "what of the input is read",
    "labels": "equal inputs with other targets",
    "custom backward": "custom backward passes beside finite differences",
    "redundancy": "directions that wide layers use",
    "positions": "positions permuted",
    "width": "a wider model",
    "classes": "numbers taken for classes",
    "revival": "going on with a living learning rate",
    "scaling": "standardised data",
    "inputs": "inputs blanked",
    "noise": "gradients of several batches",
    "pairing": "targets shuffled",
    "pair labels": "labels of pairs turned round",
    "alignment": "dense targets turned",
    "combination": "all fixes together",
}
_ARMS = {"control": "as it is", "own": "as it is"}
# Those with one arm, or with numbered ones.
_ALONE = frozenset(
    {
        "curvature",
        "derivatives",
        "noise",
        "determinism",
        "labels",
        "redundancy",
        "single-sample",
        "targets",
        "underflow",
        "usage",
    }
)


def of_group(name: str) -> str:
    """The title of the experiment that an arm "group/arm" belongs to."""
    return _GROUPS.get(name.partition("/")[0], name)


def of_experiment(name: str) -> str:
    """The title of one row: with the arm where an experiment has several."""
    group, _, arm = name.partition("/")
    title = _GROUPS.get(group)
    if title is None:
        return name
    return title if not arm or group in _ALONE else f"{title} ({of_arm(name)})"


def of_arm(name: str) -> str:
    """What a curve is called beside the others of its experiment."""
    arm = name.partition("/")[2] or name
    return _ARMS.get(arm, arm.replace("lr x", "lr ×").replace("adam ", "Adam at "))
