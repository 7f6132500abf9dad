"""The form that every check keeps, so that a new one reads and behaves as the others."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

import pytest

from netdoctor import catalogue
from netdoctor.check import Check
from netdoctor.recording import Recording, Stat

HEADINGS = ("What it is", "Why it hurts", "How it is decided", "When it stays silent", "Fix", "Sources")
CATALOGUE = catalogue.all_checks()
NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
# The whole catalogue; checks that are promised there but not written yet may already be explained.
PROMISED = """
nan-input non-finite-activation non-finite-gradient non-finite-parameter non-finite-evaluation half-precision-overflow
half-precision-underflow lost-updates exploding-activations vanishing-activations exploding-gradients
vanishing-gradients recurrent-gradients poor-initialization symmetric-initialization lstm-forget-bias batchnorm-masking
depth-without-shortcuts dead-relu saturated-activation constant-layer input-independent-output redundant-units
detached-graph no-gradient parameter-not-in-optimizer unregistered-parameters broken-weight-tying teacher-in-optimizer
missing-stop-gradient frozen-by-mistake missing-zero-grad grads-zeroed-before-step missing-optimizer-step
learning-rate-too-high learning-rate-too-low lr-decays-too-fast frozen-parameter-moves accumulation-scaling
scheduler-order clip-too-small unstable-loss noisy-gradients loss-not-decreasing loss-diverging memory-growth
adam-l2-weight-decay sgd-without-momentum over-regularised resumed-without-optimizer-state output-activation
double-softmax probabilities-into-logit-loss logits-into-probability-loss wrong-loss loss-shape-broadcast
loss-sum-reduction initial-loss softmax-then-log sensitive-loss wrong-dim-softmax wrong-dim-similarity
unnormalised-input feature-scales unnormalised-target constant-feature sentinel-values input-outliers unshuffled-data
class-imbalance conflicting-labels label-input-mismatch label-range cross-sample-leakage wrong-reshape causal-leak
inverted-mask missing-positional-encoding missing-nonlinearity missing-bias bias-before-norm eval-mode-in-training
train-mode-in-eval batchnorm-tiny-batch batchnorm-drift dropout-too-high recurrent-dropout ignored-input
nondeterministic-eval wrong-custom-backward oversized-model slow-data-loading padding-share unaligned-width overfitting
underfitting train-eval-shift cannot-overfit-tiny-batch rank-desync rank-imbalance schedule-too-long sampler-weights
stale-statistics misaligned-targets shifted-target zero-second-derivative carried-graph term-without-gradient
logit-scale-too-large resampled-action group-rates-overwritten clipping-without-effect state-kept-by-reference
generator-helps-discriminator kl-div-averaged data-changed-by-access pair-labels-inverted
"""

pytestmark = pytest.mark.parametrize("check", CATALOGUE, ids=lambda check: check.name)


def path(check: Check) -> Path:
    return Path(inspect.getfile(type(check)))


def source(check: Check) -> str:
    return path(check).read_text(encoding="utf-8")


def test_its_name_is_its_file(check):
    assert NAME.fullmatch(check.name)
    assert path(check).stem.replace("_", "-") == check.name
    assert path(check).parent.name == check.family


def test_its_name_is_promised_by_the_catalogue(check):
    assert check.name in PROMISED.split()


def test_its_file_holds_this_one_check_in_at_most_100_lines(check):
    assert len(source(check).splitlines()) <= 100
    assert [c.name for c in CATALOGUE if path(c) == path(check)] == [check.name]


def test_it_is_a_frozen_dataclass(check):
    assert type(check).__dataclass_params__.frozen
    with pytest.raises(dataclasses.FrozenInstanceError):
        check.anything = 1


def test_its_docstring_has_the_headings_in_order(check):
    text = inspect.getdoc(type(check)) or ""
    places = [match.start() if (match := re.search(rf"^{h}\b", text, re.MULTILINE)) else -1 for h in HEADINGS]
    assert -1 not in places, f"missing: {[h for h, at in zip(HEADINGS, places, strict=True) if at < 0]}"
    assert places == sorted(places)
    ends = [*places[1:], len(text)]
    bodies = [text[a + len(h) : b].strip(" :\n") for h, a, b in zip(HEADINGS, places, ends, strict=True)]
    assert all(len(body) >= 15 for body in bodies)
    assert text.partition("\n")[0].endswith(".")


def test_every_threshold_gives_its_reason(check):
    lines = source(check).splitlines()
    for field in dataclasses.fields(check):
        declared = [line for line in lines if re.match(rf"    {field.name}: ", line)]
        assert len(declared) == 1, field.name
        at = lines.index(declared[0])
        reason = declared[0].partition("#")[2] or (lines[at - 1].partition("#")[2] if "#" in lines[at - 1] else "")
        assert len(reason.strip()) >= 10, f"{field.name} has no comment with its reason"


def test_thresholds_have_defaults_that_configuration_can_override(check):
    values = {field.name: getattr(check, field.name) for field in dataclasses.fields(check)}
    (same,) = catalogue.load([check.name], thresholds={check.name: values})
    assert same == check


def test_what_it_explains_exists_and_is_not_itself(check):
    assert isinstance(check.explains, frozenset)
    assert check.explains <= set(PROMISED.split())
    assert check.name not in check.explains


def test_what_it_needs_is_declared(check):
    assert isinstance(check.needs, frozenset)
    assert isinstance(check.arms, frozenset)
    used = {stat for stat in Stat if re.search(rf"\bStat\.{stat.name}\b", source(check))}
    assert used <= check.needs, f"used but not declared: {sorted(stat.name for stat in used - check.needs)}"


def test_nothing_seen_is_no_finding(check):
    from netdoctor.finding import Finding

    assert [item for item in check.judge(Recording()) if isinstance(item, Finding)] == []


def test_it_judges_without_torch(check):
    assert not re.search(r"^\s*(import|from) torch\b", source(check), re.MULTILINE)
