from __future__ import annotations

import pytest

from netdoctor.checks.loss.wrong_dim_similarity import WrongDimSimilarity
from tests.checks.loss.steps import Step, judged

N, D = 24, 16
TEXT = "s = F.cosine_similarity(a[:, None], b[None])"


def similarity(first=(N, 1, D), second=(1, N, D), text=TEXT, module_type="", name="cosine_similarity", **given):
    step = Step()
    one, two = (step.operation("unsqueeze", step.scores(shape), shape=shape) for shape in (first, second))
    made = step.operation(name, one, two, shape=(N, D), text=text, line=7, module_type=module_type, **given)
    return step.loss_of("cross_entropy", made, step.labels((N,)))


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({}, "s = F.cosine_similarity(a[:, None], b[None], dim=-1)"),
        ({"dim": 1, "text": "F.cosine_similarity(a, b, dim=1)"}, "F.cosine_similarity(a, b, dim=-1)"),
        ({"2": 1, "text": "F.cosine_similarity(u, v, 1)"}, "F.cosine_similarity(a, b, dim=-1)"),
        ({"2": 1, "module_type": "CosineSimilarity", "text": "cos(u, v)"}, "nn.CosineSimilarity(dim=-1)"),
        ({"first": (1, N, D), "second": (N, 1, D)}, "s = F.cosine_similarity(a[:, None], b[None], dim=-1)"),
        ({"first": (N, 5, D, 1, 8), "second": (N, 1, D, 8, 1)}, "s = F.cosine_similarity(a[:, None], b[None], dim=-3)"),
    ],
)
def test_along_a_dimension_in_which_one_side_is_repeated(given, code):
    (found,) = judged(WrongDimSimilarity(), similarity(**given))
    assert found.fixes[0].code == code
    assert found.location.line == 7


def test_what_was_expanded_is_repeated_too():
    step = Step()
    one = step.operation("unsqueeze", step.scores((N, 1, D)), shape=(N, 1, D))
    one = step.operation("contiguous", step.operation("expand", one, shape=(N, N, D)), shape=(N, N, D))
    two = step.operation("mul", step.scores((N, N, D)), step.x, shape=(N, N, D))
    made = step.operation("cosine_similarity", one, two, shape=(N, D), line=7)
    (found,) = judged(WrongDimSimilarity(), step.loss_of("cross_entropy", made, step.labels((N,))))
    assert "one side is the same along it" in found.title


@pytest.mark.parametrize(
    "step",
    [
        similarity(dim=-1),
        similarity(dim=2),
        similarity((N, D), (N, D)),  # pairs
        similarity((N, 1), (N, 1)),  # a single feature: there is no other dimension to take
        similarity((N, D), (1, D)),  # against one prototype
        similarity((N, 7, D), (N, 7, D), dim=-1),
        similarity((N, 7, D), (N, 7, D)),  # along time, of series that both vary in it
        similarity((N, D, 6, 6), (N, D, 6, 6)),  # feature maps along their channels
        similarity((N, D, 6, 6), (1, D, 1, 1)),  # against a prototype at each place
        similarity((N, 1, D), (1, N, D), name="pairwise_distance"),  # along the last dimension by definition
        similarity((N, 1, D), (1, N, D), dim=9),
    ],
)
def test_it_stays_silent(step):
    assert judged(WrongDimSimilarity(), step) == []


def test_a_similarity_that_no_loss_depends_on():
    step = Step()
    step.operation("cosine_similarity", step.scores((N, 1, D)), step.scores((1, N, D)), shape=(N, D))
    assert judged(WrongDimSimilarity(), step.loss_of("cross_entropy", step.scores(), step.labels())) == []


def normalised(shape=(N, 2, D), both=True, contracted=D, product="matmul", stuck=True, **given):
    """A product of two halves of what was normalised, in a training that gets nowhere (or works)."""
    step = Step(steps=100)
    step.loss(lambda number: 1.0 if stuck else 0.95**number)
    made = step.operation("normalize", step.scores(shape), shape=shape, line=5, text="f = F.normalize(z)", **given)
    one, two = (step.operation("getitem", made, shape=(N, contracted)) for _ in range(2))
    two = two if both else step.scores((N, contracted))
    turned = step.operation("t", two, shape=(contracted, N))
    score = step.operation("div", step.operation(product, one, turned, shape=(N, N)), shape=(N, N))
    return step.loss_of("cross_entropy", score, step.labels((N,)))


@pytest.mark.parametrize("given", [{}, {"dim": 1}, {"2": 1}, {"dim": 0}, {"shape": (N, 3, 5, D)}, {"shape": (D, 2, D)}])
def test_a_product_along_another_dimension_than_was_normalised(given):
    (found,) = judged(WrongDimSimilarity(), normalised(**given))
    assert found.severity.value == "warning"
    assert found.location.line == 5
    assert found.fixes[0].code == ("F.normalize(x, dim=-1)" if "2" in given else "f = F.normalize(z, dim=-1)")


@pytest.mark.parametrize(
    "step",
    [
        normalised(stuck=False),  # it learns all the same
        normalised(dim=-1),
        normalised((N, D)),  # samples and features: dimension 1 is right
        normalised((N, D, 6)),  # feature maps along their channels
        normalised((N, D, D)),  # along which it is multiplied cannot be told
        normalised(both=False),  # a projection
        normalised(contracted=7),
        normalised(product="add"),
        normalised((D, 2, 3)),  # along the samples
    ],
)
def test_a_product_of_normalised_tensors_that_says_nothing(step):
    assert judged(WrongDimSimilarity(), step) == []
