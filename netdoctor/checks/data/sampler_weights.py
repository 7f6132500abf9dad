"""The check `sampler-weights`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from netdoctor.check import Check
from netdoctor.checks.data.symptoms import OF_ORDER
from netdoctor.checks.training.optimizer_line import first_source
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Recording

_CODE = """weights = class_weights[labels]  # the weight of its class for each sample: len(weights) == len(dataset)
sampler = WeightedRandomSampler(weights, num_samples=len(weights), replacement=True)"""


@dataclass(frozen=True)
class SamplerWeights(Check):
    """The weighted sampler has a weight for each class in place of one for each sample.

    What it is: `WeightedRandomSampler` draws indices of samples, with one weight for each. Given the weights of two
    classes it draws the samples 0 and 1 of the data, again and again.
    Why it hurts: the other samples are never seen. The training loss falls to nothing, for a handful of samples is
    learned by heart, and the evaluation is no better than chance.
    How it is decided: by counting: there are fewer weights than samples. An error under half of them.
    When it stays silent: as many weights as samples; other samplers; streams.
    Fix: `weights = class_weights[labels]`.
    Sources: PyTorch's documentation of WeightedRandomSampler ("a sequence of weights, not necessary summing up to one",
    for elements from [0, ..., len(weights) - 1]).
    """

    name = "sampler-weights"
    explains = OF_ORDER | {
        "train-eval-shift",
        "overfitting",
        "conflicting-labels",
        "label-input-mismatch",
        "class-imbalance",
        "constant-feature",
        "unnormalised-input",
        "feature-scales",
        "unshuffled-data",
        "dead-relu",
    }

    grave: float = 0.5  # of the samples: with more the training may still do

    def judge(self, recording: Recording) -> Iterator[Finding]:
        weights, samples = (int(recording.facts.get(f"sampler_{name}", 0)) for name in ("weights", "samples"))
        if not 0 < weights < samples:
            return
        yield Finding(
            self.name,
            f"the sampler has {weights} weights for {samples} samples: only the first {weights} are ever drawn",
            Severity.ERROR if weights < self.grave * samples else Severity.WARNING,
            "WeightedRandomSampler takes one weight for each sample; what it was given has the length of something else, "
            "such as the number of classes.",
            Location.at(first_source(recording, "sampler")),
            (Evidence("samples that can be drawn", weights, "<", samples),),
            (Fix("weight-per-sample", "Give each sample the weight of its class.", _CODE, Reach.RUN),),
            first_step=0,
            share=1 - weights / samples,
        )
