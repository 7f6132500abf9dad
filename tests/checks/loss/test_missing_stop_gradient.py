from __future__ import annotations

import pytest

from netdoctor.checks.loss.missing_stop_gradient import MissingStopGradient
from netdoctor.finding import Finding
from tests.checks.builders import Builder


def views(build: Builder, detach: bool = False) -> tuple[int, int]:
    """The embeddings of two views by the same weights."""
    weight = build.weight("enc.weight")
    a, b = (build.operation("linear", build.value((32, 8)), weight, module="enc", shape=(32, 4)) for _ in range(2))
    return a, build.operation("detach", b, out={"requires_grad": False}) if detach else b


def judged(build: Builder) -> list[Finding]:
    return list(MissingStopGradient().judge(build.done()))


def compared(name: str = "mse_loss", *following: str, detach: bool = False, **attributes: float) -> Builder:
    build = Builder()
    made = build.operation(name, *views(build, detach), shape=(), line=12, text=f"loss = F.{name}(a, b)")
    for then in following:
        made = build.operation(then, made, **attributes)
    return build.backward(made)


def test_it_detaches_the_target_in_its_line() -> None:
    (finding,) = judged(compared())
    assert finding.location.line == 12
    assert finding.fixes[0].code == "loss = F.mse_loss(a, b.detach())"


@pytest.mark.parametrize(
    ("then", "attributes", "fires"),
    [
        ((), {}, False),
        (("neg",), {}, True),
        (("rsub",), {"1": 1.0}, True),
        (("sub",), {"0": 2.0}, True),
        (("sub",), {"1": 2.0}, False),
        (("neg", "mean"), {}, True),
        (("mul",), {"1": -1.0}, True),
        (("mul",), {"1": 2.0}, False),
        (("exp",), {}, False),
        (("neg", "log_softmax"), {}, False),
    ],
)
def test_a_similarity_must_be_made_large(then: tuple[str, ...], attributes: dict[str, float], fires: bool) -> None:
    assert bool(judged(compared("cosine_similarity", *then, **attributes))) is fires


def test_silent_when_detached_or_when_something_keeps_the_views_apart() -> None:
    assert judged(compared(detach=True)) == []
    assert judged(compared("mse_loss", "neg")) == []  # drives them apart
    build = compared()
    supervised = build.operation("cross_entropy", build.weight("head.weight"), build.value((32,), "int64"), shape=())
    assert judged(build.backward(build.operation("add", build.graph.loss, supervised))) == []
    build = Builder()
    a, b = views(build)
    closer = build.operation("mse_loss", a, b, shape=())
    further = build.operation("mse_loss", a, build.operation("roll", b), shape=())
    assert judged(build.backward(build.operation("sub", closer, further))) == []  # a triplet


def test_one_pass_with_two_results_is_no_target_of_its_own() -> None:
    build = Builder()
    a = build.operation("linear", build.value((32, 8)), build.weight("enc.weight"), module="enc", shape=(32, 4))
    assert (
        judged(build.backward(build.operation("mse_loss", a, build.operation("mul", a, **{"1": 2.0}), shape=()))) == []
    )


def bootstrap(discount: float = 0.9, data: bool = True, detach: bool = False) -> Builder:
    build = Builder()
    value, following = views(build, detach)
    target = build.operation("mul", following, **{"1": discount})
    if data:
        target = build.operation(
            "add", build.value((32, 4)), target, out={"requires_grad": not detach, "trained": True}
        )
    penalty = build.operation("sum", build.weight("enc.weight"), shape=())
    return build.backward(
        build.operation("add", build.operation("mse_loss", value, target, shape=()), penalty, shape=())
    )


@pytest.mark.parametrize(("discount", "fires"), [(0.49, False), (0.5, True), (0.99, True), (1.0, False)])
def test_a_discounted_value_of_another_pass(discount: float, fires: bool) -> None:
    assert bool(judged(bootstrap(discount))) is fires


def test_a_bootstrap_adds_data_and_is_not_detached() -> None:
    assert judged(bootstrap(data=False)) == []
    assert judged(bootstrap(detach=True)) == []


def test_a_difference_by_hand_bootstraps_on_either_side() -> None:
    build = Builder()
    value, following = views(build)
    mask = build.value((32, 4), low=0.0, high=0.95)
    target = build.operation(
        "add", build.value((32, 4)), build.operation("mul", mask, following), out={"trained": True}
    )
    difference = build.operation("sub", target, value)
    build.backward(build.operation("mean", build.operation("pow", difference, **{"1": 2}), shape=()))
    (finding,) = judged(build)
    assert finding.fixes[0].code == "target = target.detach()"


@pytest.mark.parametrize(("low", "fires"), [(1.0, True), (-1.0, False)])
def test_a_cosine_embedding_loss_with_different_pairs_keeps_them_apart(low: float, fires: bool) -> None:
    build = Builder()
    labels = build.value((32,), low=low, high=1.0)
    build.backward(build.operation("cosine_embedding_loss", *views(build), labels, shape=()))
    assert bool(judged(build)) is fires
