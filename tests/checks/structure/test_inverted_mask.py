from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdoctor.checks.structure.attention_masks import masks
from netdoctor.checks.structure.inverted_mask import InvertedMask
from netdoctor.checks.structure.mask_trials import AS_IT_IS, INVERTED, LONG, SEEN
from netdoctor.checks.structure.negated import negated_line
from netdoctor.finding import Abstention, Severity, Verdict
from netdoctor.recording import Arm
from tests.checks.builders import Builder

TEXT = "x = self.encoder(x, src_key_padding_mask=mask.bool())"
FACTS: dict[str, Any] = {
    "kind": "padding",
    "kept": 0.4,
    "operation": "multi_head_attention_forward",
    "argument": "key_padding_mask",
    "module": "encoder.layers.0.self_attn",
    "file": "train.py",
    "line": 47.0,
    "text": TEXT,
}


def curve(end: float, steps: int = LONG, start: float = 1.0):
    return np.concatenate([[start], np.full(steps - 1, end)])


def judged(own=1.0, turned=0.1, run=1.0, steps=LONG, control=None, pair=True, failure="", **facts):
    """What the check says of two arms that end at `own` and `turned`, and a run that ends at `run`; all begin at 1."""
    build = Builder(steps=100).optimizer("Adam").loss(lambda step: run + (1 - run) * 0.97**step)
    recording = build.facts(loss_lower_bound=0.0).done()
    recording.arms[SEEN] = Arm(SEEN, np.empty(0), facts=FACTS | facts)
    if pair:
        losses = curve(own, steps) if control is None else np.asarray(control)
        recording.arms[AS_IT_IS] = Arm(AS_IT_IS, losses, failure=failure)
        recording.arms[INVERTED] = Arm(INVERTED, curve(turned, steps))
    return list(InvertedMask().judge(recording))


def test_a_mask_that_lets_nothing_but_padding_through():
    (found,) = judged()
    assert found.severity is Severity.ERROR
    assert found.certainty.value == "proven by trial"
    assert found.title.endswith("is the wrong way round: it lets nothing but padding through")
    assert (found.location.file, found.location.line) == ("train.py", 47)
    assert found.fixes[0].code == "x = self.encoder(x, src_key_padding_mask=~mask.bool())"
    assert found.fixes[0].trial.verdict is Verdict.CURED


@pytest.mark.parametrize(("turned", "said"), [(0.84, 1), (0.86, 0)])
def test_where_training_is_hurt_the_turned_mask_must_learn(turned, said):
    assert len(judged(turned=turned)) == said


@pytest.mark.parametrize(
    ("own", "turned", "run", "said"),
    [
        (0.4, 0.2, 0.4, 1),  # half of what is left
        (0.4, 0.22, 0.4, 0),
        (0.4, 0.2, 0.25, 0),  # not enough ahead of the whole run
        (0.8, 0.59, 0.75, 1),  # twice as much lost
        (0.8, 0.62, 0.75, 0),
    ],
)
def test_where_training_works_it_must_do_far_better(own, turned, run, said):
    found = judged(own=own, turned=turned, run=run)
    assert [finding.severity for finding in found] == [Severity.WARNING] * said


def test_trials_that_are_too_short_tell_nothing():
    assert judged(steps=LONG - 1) == []


def test_a_control_that_ends_in_nan_lost_nothing():
    (found,) = judged(control=[1.0, float("nan")])
    assert "end at NaN as it is" in found.explanation
    assert judged(control=[float("nan")], turned=0.9) == []


def test_a_causal_mask_is_told_only_where_training_is_hurt():
    (found,) = judged(kind="causal")
    assert "it lets only the future through" in found.title
    assert judged(kind="causal", own=0.4, turned=0.1, run=0.4) == []
    assert judged(kind="causal", own=0.4, run=0.4, pair=False) == []


def test_nothing_at_all_takes_part():
    assert "it lets nothing through" in judged(kept=0.0)[0].title


def test_a_causal_part_that_is_right_stays():
    assert "stays" in judged(beside=True)[0].fixes[0].code


def test_masks_in_the_right_sense_are_no_finding():
    recording = Builder(steps=100).optimizer("Adam").loss(lambda step: 1.0).done()
    assert list(InvertedMask().judge(recording)) == []
    recording.arms[SEEN] = Arm(SEEN, np.empty(0), facts={"says": "what masks keep differs between samples"})
    assert list(InvertedMask().judge(recording)) == []


def test_it_abstains_where_the_trial_failed():
    assert isinstance(judged(failure="no time")[0], Abstention)
    assert isinstance(judged(pair=False)[0], Abstention)


@pytest.mark.parametrize(
    ("text", "operation", "argument", "code"),
    [
        ("a(x, key_padding_mask=ids != 0)", "multi_head_attention_forward", "key_padding_mask", "a(x, key_padding_mask=ids == 0)"),
        ("s = s.masked_fill(~m, -1e9)", "masked_fill", "mask", "s = s.masked_fill(m, -1e9)"),
        ("s.masked_fill(mask=m[:, None], value=-9e9)", "masked_fill", "mask", "s.masked_fill(mask=~m[:, None], value=-9e9)"),
        ("s = torch.where(a | b, s, low)", "where", "condition", "s = torch.where(~(a | b), s, low)"),
        ("y = f(q, k, v, attn_mask=m)", "scaled_dot_product_attention", "attn_mask", "y = f(q, k, v, attn_mask=~m)"),
        ("s[ids > 0] = -1e9", "setitem", "mask", "s[ids <= 0] = -1e9"),
        ("h = self.tr(", "multi_head_attention_forward", "key_padding_mask", ""),
        ("f(a, src_key_padding_mask=m, memory_key_padding_mask=n)", "multi_head_attention_forward", "key_padding_mask", ""),
        ("s += mask", "iadd", "other", ""),
    ],
)  # fmt: skip
def test_the_users_own_line(text, operation, argument, code):
    assert negated_line(text, operation, argument) == code


def scored(name, low=0.0, high=1.0, dtype="bool", finite=True, after="softmax", trained=False):
    """Scores that an operation takes some away of, and what reads them then."""
    build = Builder(steps=10)
    scores = build.operation("linear", build.value((8, 12)), build.weight("w", (12, 12)), shape=(8, 12), module="score")
    mask = build.value((8, 12), dtype, low=low, high=high, finite=finite, trained=trained)
    first = build.operation(name, scores, mask, shape=(8, 12), line=5)
    build.backward(build.operation("sum", build.operation(after, first, shape=(8, 12)), shape=()))
    return masks(build.done().graph)


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ({"name": "masked_fill"}, 1),
        ({"name": "masked_fill", "after": "relu"}, 0),
        ({"name": "add", "low": -1e9, "high": 0.0, "dtype": "float32"}, 1),
        ({"name": "add", "low": 0.0, "high": 0.0, "dtype": "float32", "finite": False}, 1),
        ({"name": "add", "low": -50.0, "high": 0.0, "dtype": "float32"}, 1),
        ({"name": "add", "low": -49.0, "high": 0.0, "dtype": "float32"}, 0),
        ({"name": "add", "low": -1e9, "high": 0.1, "dtype": "float32"}, 0),
        ({"name": "add", "low": -1e9, "high": 0.0, "dtype": "float32", "trained": True}, 0),
        ({"name": "sub", "low": 0.0, "high": 1e9, "dtype": "float32"}, 1),
        ({"name": "multi_head_attention_forward"}, 1),
        ({"name": "scaled_dot_product_attention", "low": 0.0, "high": 0.0, "dtype": "float32", "finite": False}, 1),
        ({"name": "scaled_dot_product_attention", "low": -1.0, "high": 0.0, "dtype": "float32"}, 0),
    ],
)
def test_which_operations_hide_keys(case, count):
    assert len(scored(**case)) == count
