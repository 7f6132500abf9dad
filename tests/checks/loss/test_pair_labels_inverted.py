from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from netdoctor.checks.loss.pair_labels import AS_THEY_ARE, DIFFERENCE, LABEL, SIGN, TRIPLET, TURNED, pair_sites
from netdoctor.checks.loss.pair_labels_inverted import PairLabelsInverted
from netdoctor.checks.loss.turned_labels import turned_code
from netdoctor.finding import Abstention, Severity, Verdict
from netdoctor.recording import Arm, Recording
from tests.checks.builders import Builder

FACTS: dict[str, Any] = {
    "kind": LABEL,
    "operation": "mul",
    "module": "",
    "file": "train.py",
    "line": 31.0,
    "text": "pull = (1 - same) * d.pow(2)",
    "low": 0.0,
    "high": 1.0,
}
BATCH = 32


def judged(own=0.0, turned=0.8, first=0.0, losses=(0.4, 0.1), pairs=64.0, failure="", both=True, **facts):
    """What the check says of two copies whose labels save so much, with their lowest held-out losses."""
    recording = Recording()
    told = FACTS | {"at first": first, "pairs": pairs} | facts
    curves = np.array([0.5, losses[0]]), np.array([0.5, losses[1]])
    recording.arms[AS_THEY_ARE] = Arm(AS_THEY_ARE, curves[0], facts=told | {"saved": own, "loss": losses[0]})
    if both:
        known = told | {"saved": turned, "loss": losses[1]}
        recording.arms[TURNED] = Arm(TURNED, curves[1], facts=known, failure=failure)
    return list(PairLabelsInverted().judge(recording))


def test_labels_that_hold_for_other_pairs_only_when_turned():
    (found,) = judged()
    assert found.severity is Severity.ERROR
    assert found.certainty.value == "proven by trial"
    assert (found.location.file, found.location.line) == ("train.py", 31)
    assert "0.4 at best as it is, 0.1 with the labels turned" in found.explanation
    assert found.fixes[0].code == "same = 1 - same  # right before line 31"
    assert found.fixes[0].trial.verdict is Verdict.CURED


def test_triplets_are_spoken_of_as_such():
    (found,) = judged(kind=TRIPLET, text="loss = criterion(anchor, positive, negative)")
    assert found.title.startswith("the order of the triplets")
    assert found.fixes[0].code == "loss = criterion(anchor, negative, positive)"


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ({"turned": 0.5}, 1),
        ({"turned": 0.49}, 0),
        ({"own": 0.24}, 1),
        ({"own": 0.25}, 0),
        ({"first": 0.55}, 1),
        ({"first": 0.56}, 0),  # the first weights told them apart already
        ({"losses": (0.4, 0.2)}, 1),
        ({"losses": (0.4, 0.21)}, 0),
        ({"pairs": 63.0}, 0),
        ({"both": False}, 0),
        ({"own": 0.8}, 0),  # as a classifier has it: both can be learned
    ],
)
def test_each_limit(case, said):
    assert len(judged(**case)) == said


def test_it_abstains_where_a_copy_failed():
    assert isinstance(judged(failure="no time was left for it")[0], Abstention)


@pytest.mark.parametrize(
    ("kind", "operation", "low", "text", "code"),
    [
        (LABEL, "cosine_embedding_loss", -1.0, "loss = criterion(a, b, y)", "loss = criterion(a, b, -y)"),
        (LABEL, "cosine_embedding_loss", -1.0, "x = F.cosine_embedding_loss(f(a), f(b), target=2 * y - 1)",
         "x = F.cosine_embedding_loss(f(a), f(b), target=-(2 * y - 1))"),
        (LABEL, "hinge_embedding_loss", -1.0, "loss = self.hinge(d, y)", "loss = self.hinge(d, -y)"),
        (LABEL, "binary_cross_entropy_with_logits", 0.0, "x = F.binary_cross_entropy_with_logits(s * 5, same)",
         "x = F.binary_cross_entropy_with_logits(s * 5, 1 - same)"),
        (LABEL, "where", 0.0, "l = torch.where(y == 1, d ** 2, F.relu(m - d) ** 2)", "y = 1 - y  # right before line 31"),
        (LABEL, "mul", 0.0, "l = y * d.pow(2) + (1 - y) * F.relu(1 - d).pow(2)", None),
        (LABEL, "mul", 0.0, "l = y * d.pow(2)", "y = 1 - y  # right before line 31"),
        (LABEL, "mul", 0.0, "l = f(", "target = 1 - target  # before the loss gets it"),
        (DIFFERENCE, "sub", 0.0, "l = F.relu(d_p - d_n + 1).mean()", "l = F.relu(d_n - d_p + 1).mean()"),
        (DIFFERENCE, "sub", 0.0, "l = F.relu(1.0 + (a - p).norm(dim=1) - (a - n).norm(dim=1))",
         "l = F.relu(1.0 + (a - n).norm(dim=1) - (a - p).norm(dim=1))"),
        (SIGN, "margin_ranking_loss", 0.0, "l = rank(d_n, d_p, ones)", "l = rank(d_n, d_p, -ones)"),
    ],
)  # fmt: skip
def test_the_users_own_line(kind, operation, low, text, code):
    facts = FACTS | {"kind": kind, "operation": operation, "low": low, "text": text}
    written = turned_code(facts)
    assert written == code if code else written.endswith("right before line 31") or "before the loss" in written


# --- which steps are asked -------------------------------------------------------------------------------------------


def embeddings(build, sides=2, own=False):
    weight = build.weight("net.weight", (8, 8))
    weights = [build.weight(f"net{n}.weight", (8, 8)) if own else weight for n in range(sides)]
    return [build.operation("linear", build.value((BATCH, 8)), w, shape=(BATCH, 4), module="net") for w in weights]


def label(build, low=0.0, high=1.0, share=0.5, std=None, shape=(BATCH,), **fields):
    mean = low + share * (high - low)
    spread = (high - low) * (share * (1 - share)) ** 0.5 if std is None else std
    return build.value(shape, "float32", low=low, high=high, mean=mean, std=spread, **fields)


def contrastive(distance="pairwise_distance", own=False, between=None, picked=False, **of_label):
    build = Builder()
    made = build.operation(distance, *embeddings(build, own=own), shape=(BATCH,), line=5)
    if picked:
        made = build.operation("topk", made, shape=(BATCH,))
    if between:
        made = build.operation("linear", made, build.weight("head.weight", between), shape=(BATCH,), module="head")
    made = build.operation("mul", label(build, **of_label), made, shape=(BATCH,), line=6)
    build.backward(build.operation("mean", made, shape=()))
    return pair_sites(build.done().graph)


@pytest.mark.parametrize(
    ("case", "asked"),
    [
        ({}, True),
        ({"low": -1.0}, True),
        ({"high": 0.5}, True),  # times a weight
        ({"share": 0.03125}, True),
        ({"low": 2.0, "high": 3.0}, False),
        ({"std": 0.3}, False),  # more than two values
        ({"trained": True}, False),
        ({"shape": (BATCH, 4)}, False),
        ({"distance": "cosine_similarity"}, True),
        ({"distance": "cosine_similarity", "own": True}, False),  # either side can turn its sign
        ({"own": True}, True),
        ({"between": (1, 1)}, False),  # a classifier of the distance
        ({"picked": True}, False),
        ({"distance": "cdist"}, False),
    ],
)
def test_which_labels_tell_pairs_alike_or_different(case, asked):
    sites = contrastive(**case)
    assert [(site.kind, site.operation.line) for site in sites] == [(LABEL, 6)] * asked


def test_an_ordinary_binary_classifier_is_not_asked():
    build = Builder()
    (scores,) = embeddings(build, sides=1)
    logits = build.operation("linear", scores, build.weight("head.weight", (1, 4)), shape=(BATCH,), module="head")
    build.backward(build.operation("binary_cross_entropy_with_logits", logits, label(build), shape=()))
    assert pair_sites(build.done().graph) == []


def test_a_classifier_of_the_difference_is_not_asked():
    build = Builder()
    apart = build.operation("abs", build.operation("sub", *embeddings(build), shape=(BATCH, 4)), shape=(BATCH, 4))
    logits = build.operation("linear", apart, build.weight("head.weight", (1, 4)), shape=(BATCH,), module="head")
    build.backward(build.operation("binary_cross_entropy_with_logits", logits, label(build), shape=()))
    assert pair_sites(build.done().graph) == []


@pytest.mark.parametrize(("other", "asked"), [("pairwise_distance", True), ("cosine_similarity", False)])
def test_the_difference_of_two_distances_of_one_anchor(other, asked):
    build = Builder()
    a, p, n = embeddings(build, sides=3)
    one = build.operation("pairwise_distance", a, p, shape=(BATCH,))
    wide = build.operation("add", one, shape=(BATCH,), **{"1": 0.5})
    two = build.operation(other, a, n, shape=(BATCH,))
    build.backward(build.operation("mean", build.operation("sub", wide, two, shape=(BATCH,)), shape=()))
    assert [(site.kind, site.offset) for site in pair_sites(build.done().graph)] == [(DIFFERENCE, 1.0)] * asked


def test_torchs_own_triplet_loss():
    build = Builder()
    build.backward(build.operation("triplet_margin_loss", *embeddings(build, sides=3), shape=()))
    assert [site.kind for site in pair_sites(build.done().graph)] == [TRIPLET]
