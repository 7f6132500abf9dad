"""The update ratios that speak of the learning rate: of weight matrices that started at a scale of their own."""

from __future__ import annotations

import numpy as np

from netdoctor.recording import Recording, Stat, median

FIRST_STEPS = 5  # Adam's first updates are lr times a sign whatever the gradient, and warm-up starts at almost nothing
SAMPLES = 4  # the median of fewer sampled steps is decided by single ones


def medians(recording: Recording) -> dict[str, float]:
    """Median rms(update)/rms(weight) per weight matrix or kernel over the sampled steps from the sixth on.

    Left out: vectors (biases, norms, gains), which start at 0 or are tiny on purpose; embeddings, whose rows are rarely
    touched; matrices that started at zero (residual ends, LoRA's B), whose ratio is without a meaning at first.
    """
    found: dict[str, float] = {}
    for name, parameter in recording.parameters.items():
        if not parameter.requires_grad or len(parameter.shape) < 2 or "Embedding" in parameter.module_type:
            continue
        weight, ratio = recording.of_parameter(name, Stat.RMS), recording.update_ratio(name)
        if weight is None or ratio is None or weight.values[0] == 0:
            continue
        late = ratio.values[(ratio.steps >= FIRST_STEPS) & np.isfinite(ratio.values)]
        if late.size >= SAMPLES:
            found[name] = median(late)
    return found
