from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from netdoctor.experiments.loss_terms import CLASSES, OTHER, REGRESSION, Term
from netdoctor.experiments.score import Fit, fits

LABELS = torch.tensor([0, 1, 2, 1])


def logits(confidence: float, labels: torch.Tensor = LABELS, classes: int = 3) -> torch.Tensor:
    return confidence * F.one_hot(labels, classes).double()


def one(kind: str, name: str, prediction: torch.Tensor, target: torch.Tensor, samples: int = 4, **attributes) -> Fit:
    (found,) = fits([Term(kind, name, prediction, target, attributes)], samples)
    return found


def test_classes_are_measured_as_torch_does():
    found = one(CLASSES, "cross_entropy", logits(2.0), LABELS)
    assert found.measure == pytest.approx(float(F.cross_entropy(logits(2.0), LABELS)))
    assert found.constant == pytest.approx(-(0.5 * math.log(0.5) + 2 * 0.25 * math.log(0.25)))
    assert (found.right, found.needed, found.least) == (1.0, 1.0, 0.0)


@pytest.mark.parametrize(("margin", "reached"), [(-0.001, True), (0.001, False)])
def test_the_floor_of_classes_is_five_percent_of_the_start(margin, reached):
    assert Fit(CLASSES, 0.1 + margin, 0.0, 1.0, right=1.0).reached(start=2.0) is reached


@pytest.mark.parametrize(("measure", "reached"), [(0.049, True), (0.051, False)])
def test_a_start_near_zero_has_an_absolute_floor(measure, reached):
    assert Fit(CLASSES, measure, 0.0, 1.0, right=1.0).reached(start=0.2) is reached


def test_one_wrong_sample_is_not_fitted():
    wrong = logits(20.0)
    wrong[3] = wrong[0] * 0.01
    found = one(CLASSES, "cross_entropy", wrong, LABELS)
    assert found.right == 0.75
    assert not found.reached(start=1000.0)


@pytest.mark.parametrize(("wrong", "reached"), [(4, True), (6, False)])
def test_of_many_tokens_95_percent_must_be_right(wrong, reached):
    labels = torch.arange(100) % 3
    guess = labels.clone()
    guess[:wrong] = (guess[:wrong] + 1) % 3
    found = one(CLASSES, "cross_entropy", logits(8.0, guess), labels, samples=4)
    assert found.reached(start=1000.0) is reached


@pytest.mark.parametrize(("measure", "right", "settled"), [(0.39, 1.0, True), (0.41, 1.0, False), (0.39, 0.99, False)])
def test_at_the_end_all_right_with_little_loss_will_do(measure, right, settled):
    fit = Fit(CLASSES, measure, 0.0, 1.0, right)
    assert fit.settled(start=2.0) is settled
    assert not fit.reached(start=2.0)


def test_ignored_targets_do_not_count():
    labels = torch.tensor([0, -100, 2, -100])
    found = one(CLASSES, "cross_entropy", logits(30.0, labels.clamp(min=0)), labels)
    assert found.measure == pytest.approx(0.0, abs=1e-9)
    assert found.right == 1.0


def test_label_smoothing_has_a_floor_of_its_own():
    best = torch.log(torch.full((4, 3), 0.1 / 3).double() + 0.9 * F.one_hot(LABELS, 3))
    found = one(CLASSES, "cross_entropy", best, LABELS, label_smoothing=0.1)
    assert found.measure == pytest.approx(float(F.cross_entropy(best, LABELS, label_smoothing=0.1)))
    assert found.measure == pytest.approx(found.least)
    assert found.reached(start=1.1)


def test_probabilities_as_targets_have_a_floor_of_their_own():
    target = torch.tensor([[0.7, 0.3], [0.2, 0.8]]).double()
    found = one(CLASSES, "cross_entropy", target.log(), target, samples=2)
    assert found.measure == pytest.approx(found.least)
    assert found.least == pytest.approx(float(F.cross_entropy(target.log(), target)))


def test_pixels_have_their_classes_in_the_second_dimension():
    labels = torch.randint(0, 3, (2, 5, 5), generator=torch.Generator().manual_seed(0))
    scores = logits(9.0, labels).movedim(-1, 1)
    assert one(CLASSES, "cross_entropy", scores, labels, samples=2).right == 1.0


def test_log_probabilities_are_not_normalised_again():
    scores = torch.log_softmax(logits(1.0), -1)
    assert one(CLASSES, "nll_loss", scores, LABELS).measure == pytest.approx(float(F.nll_loss(scores, LABELS)))


def test_yes_or_no():
    target = torch.tensor([0.0, 1.0, 1.0, 0.0]).double()
    scores = torch.tensor([-3.0, 3.0, -1.0, -3.0]).double()
    found = one(CLASSES, "binary_cross_entropy_with_logits", scores, target)
    assert found.right == 0.75
    assert found.constant == pytest.approx(math.log(2))
    same = one(CLASSES, "binary_cross_entropy", torch.sigmoid(scores), target)
    assert same.measure == pytest.approx(found.measure)


@pytest.mark.parametrize(("share", "reached"), [(0.009, True), (0.011, False)])
@pytest.mark.parametrize("name", ["mse_loss", "l1_loss", "pow", "huber_loss"])
def test_regression_may_leave_one_percent_of_the_variance(share, reached, name):
    target = torch.tensor([-3.0, -3.0, 3.0, 3.0]).double()
    off = torch.tensor([1.0, -1.0, 1.0, -1.0]).double() * 3 * math.sqrt(share)
    assert one(REGRESSION, name, target + off, target).reached(start=math.nan) is reached


def test_targets_that_are_all_the_same_are_compared_with_their_magnitude():
    found = one(REGRESSION, "mse_loss", torch.full((4,), 5.0), torch.full((4,), 5.2))
    assert found.constant == pytest.approx(5.2**2)


def test_zero_targets_have_no_scale():
    assert fits([Term(REGRESSION, "mse_loss", torch.ones(4), torch.zeros(4), {})], 4) == []


def test_a_broadcast_prediction_never_fits():
    target = torch.arange(4.0)
    assert not one(REGRESSION, "mse_loss", target[:, None], target).reached(start=math.nan)


def test_terms_of_unknown_kind_have_no_fit():
    assert fits([Term(OTHER, "logsumexp")], 4) == []


@settings(max_examples=30, deadline=None)
@given(st.floats(0.01, 1e4), st.floats(-1e3, 1e3))
def test_regression_does_not_depend_on_units(scale, shift):
    target = torch.tensor([0.3, -1.0, 2.0, 0.5]).double()
    prediction = target + torch.tensor([0.1, -0.1, 0.2, 0.0]).double()
    plain = one(REGRESSION, "mse_loss", prediction, target)
    moved = one(REGRESSION, "mse_loss", scale * prediction + shift, scale * target + shift)
    assert moved.measure / moved.constant == pytest.approx(plain.measure / plain.constant, rel=1e-4)
