from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.loss.teacher_in_optimizer import TeacherInOptimizer
from netdoctor.finding import Finding
from tests.checks.builders import Builder


def network(build: Builder, name: str, x: int, training: bool = True) -> int:
    weight = f"{name}.0.weight"
    build.linear(f"{name}.0", training=training)
    return build.operation("linear", x, build.weight(weight), module=f"{name}.0", shape=(32, 4))


def recording(loss: str = "mse_loss", training: bool = True, copy: bool = False, both: bool = False) -> Builder:
    build = Builder()
    x = build.value((32, 8))
    student, teacher = network(build, "student", x), network(build, "teacher", x, training)
    build.optimizer("Adam", lr=1e-3)
    made = build.operation(loss, student, teacher, shape=(), line=31)
    if both:
        made = build.operation("add", made, build.operation(loss, teacher, student, shape=()), shape=())
    if copy:
        held = build.recording.parameters
        held["teacher.0.weight"] = replace(held["teacher.0.weight"], same_as="student.0.weight")
    return build.backward(made)


def judged(build: Builder) -> list[Finding]:
    return list(TeacherInOptimizer().judge(build.done()))


def test_a_copy_that_is_trained() -> None:
    (finding,) = judged(recording(copy=True))
    assert (finding.location.module, finding.location.line) == ("teacher.0", 31)
    assert "copy" in finding.explanation
    assert "teacher.0.requires_grad_(False)" in finding.fixes[0].code


@pytest.mark.parametrize(("training", "fires"), [(True, False), (False, True)])
def test_evaluation_mode(training: bool, fires: bool) -> None:
    assert bool(judged(recording(training=training))) is fires


@pytest.mark.parametrize(("loss", "fires"), [("mse_loss", False), ("kl_div", True), ("cross_entropy", True)])
def test_the_target_of_a_divergence(loss: str, fires: bool) -> None:
    assert bool(judged(recording(loss))) is fires


def test_mutual_learning_is_no_teaching() -> None:
    assert judged(recording("kl_div", both=True)) == []


def test_every_weight_of_the_teacher_must_be_trained() -> None:
    build = recording(copy=True)
    held = build.recording.parameters
    held["teacher.0.weight"] = replace(held["teacher.0.weight"], optimizer=None)
    assert judged(build) == []


def test_silent_for_detached_targets_and_shared_weights() -> None:
    build = Builder()
    x = build.value((32, 8))
    student, teacher = network(build, "student", x), network(build, "teacher", x, training=False)
    target = build.operation("detach", teacher, out={"requires_grad": False})
    assert judged(build.optimizer().backward(build.operation("mse_loss", student, target, shape=()))) == []
    build = Builder()
    x = build.value((32, 8))
    first, again = network(build, "student", x), network(build, "student", x)
    assert judged(build.optimizer().backward(build.operation("kl_div", first, again, shape=()))) == []
