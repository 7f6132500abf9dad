"""Derivatives in the loss that were taken without a graph."""

from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.structure.derivatives import with_graph
from netdoctor.checks.structure.detached_graph import DetachedGraph
from netdoctor.checks.structure.unbounded import BOUNDS
from netdoctor.finding import Severity
from tests.checks.structure.models import BATCH, Model, judged

LINE = "d = torch.autograd.grad(u, t, ones, retain_graph=True)[0]"


class Equation(Model):
    """A net of one input, its derivative, and a loss."""

    def __init__(self, *, create: bool = False, optimizer: int | None = 0, **options: bool) -> None:
        super().__init__()
        self.layers("body", optimizer=optimizer).layers("other").stepping().with_gradient("body.weight")
        self.t = self.value((BATCH, 1), requires_grad=True, trained=True)
        self.u = self.run(self.t, "body", shape=(BATCH, 1))
        kept: dict = {"create_graph": create, "retain_graph": True, **options}
        self.d = self.operation("grad", self.u, self.t, line=4, text=LINE, out={"requires_grad": create}, **kept)

    def ends(self, value: int) -> Model:
        """The mean of its squares is the loss."""
        live = {"requires_grad": self.graph.values[value].requires_grad}
        square = self.operation("pow", value, out=live)
        self.backward(self.operation("mean", square, shape=(), out=live))
        return self


def lifeless(build: Equation, name: str, *inputs: int, **attributes: float) -> int:
    """An operation on numbers without a graph."""
    return build.operation(name, *inputs, out={"requires_grad": False}, **attributes)


def test_a_residual_is_named_at_the_line_of_the_derivative():
    build = Equation()
    (found,) = judged(DetachedGraph(), build.ends(build.operation("sub", lifeless(build, "neg", build.d), build.u)))
    assert found.severity is Severity.ERROR
    assert found.location.line == 4
    assert found.fixes[0].code == "d = torch.autograd.grad(u, t, ones, create_graph=True)[0]"


def test_a_penalty_or_forces_beside_another_term_of_the_same_weights():
    build = Equation()
    penalty = lifeless(build, "mean", lifeless(build, "pow", lifeless(build, "norm", build.d)))
    build.backward(build.operation("add", build.operation("mean", build.u, shape=()), penalty, shape=()))
    assert len(judged(DetachedGraph(), build)) == 1


def test_an_equation_with_its_variable_in_it():
    build = Equation()
    build.ends(build.operation("add", build.operation("sub", build.d, build.t), build.u))
    assert len(judged(DetachedGraph(), build)) == 1


def test_several_lines_are_one_finding():
    build = Equation()
    again = "e = grad(v, t, create_graph=False)[0]"
    second = build.operation(
        "grad", build.u, build.t, line=5, text=again, out={"requires_grad": False}, create_graph=False
    )
    build.ends(build.operation("add", build.operation("add", build.u, build.d), second))
    (found,) = judged(DetachedGraph(), build)
    assert found.fixes[0].code.splitlines()[1] == "e = grad(v, t, create_graph=True)[0]"


def test_a_loss_of_nothing_else_whose_backward_failed():
    build = Equation()
    build.recording.header = replace(build.recording.header, ended="raised RuntimeError: does not require grad")
    object.__setattr__(build.recording.optimizers[0], "steps", 0)
    build.ends(lifeless(build, "sub", build.d))
    (found,) = judged(DetachedGraph(), build)
    assert found.location.line == 4


def test_weights_that_only_a_derivative_of_theirs_reaches():
    build = Equation()
    del build.recording.tracks[next(key for key in build.recording.tracks if key[0].parameter == "body.weight")]
    build.ends(build.operation("sub", build.run(build.value((BATCH, 1)), "other"), build.d))
    (found,) = judged(DetachedGraph(), build)
    assert found.fixes[0].code == "d = torch.autograd.grad(u, t, ones, create_graph=True)[0]"


def moved_input(build: Equation) -> int:
    """An attack: the input moves along the derivative, and goes through the net again."""
    return build.run(build.operation("add", build.t, lifeless(build, "mul", build.d)), "body")


def moved_and_measured(build: Equation) -> int:
    moved = lifeless(build, "add", build.t, build.d)
    return build.operation("add", build.run(moved, "body"), lifeless(build, "pow", moved))


def scale(build: Equation) -> int:
    """A weight of each sample's loss."""
    return build.operation("add", build.operation("mul", lifeless(build, "abs", build.d), build.u), build.u)


def detached(build: Equation) -> int:
    return build.operation("sub", build.u, lifeless(build, "detach", build.d))


def target_of_another(build: Equation) -> int:
    """An actor follows the critic's derivative."""
    return build.operation("sub", build.run(build.value((BATCH, 1)), "other"), build.d)


def logged(build: Equation) -> int:
    lifeless(build, "mean", build.d)
    return build.u


@pytest.mark.parametrize("use", [moved_input, moved_and_measured, scale, detached, target_of_another, logged])
def test_it_stays_silent(use):
    build = Equation()
    assert judged(DetachedGraph(), build.ends(use(build))) == []


@pytest.mark.parametrize("options", [{"create": True}, {"optimizer": None}])
def test_derivatives_with_a_graph_and_of_weights_that_nobody_trains(options):
    build = Equation(**options)
    assert judged(DetachedGraph(), build.ends(build.operation("add", build.d, build.u))) == []


def test_gradients_of_weights_make_steps():
    build = Equation()
    held = next(v.index for v in build.graph.values if v.name == "body.weight")
    step = build.operation("grad", build.u, held, line=6, out={"requires_grad": False}, create_graph=False)
    assert judged(DetachedGraph(), build.ends(build.operation("add", build.u, step))) == []


@pytest.mark.parametrize(
    ("without", "bounded", "causes"),
    [
        (10.0, 0.2, True),
        (9.9, 0.2, False),
        (40.0, 4.0, True),
        (39.0, 4.0, False),
        (float("inf"), 1.0, True),
        (float("inf"), 9.9, True),
        (float("inf"), 10.0, False),
        (float("inf"), float("inf"), False),
    ],
)
def test_an_explosion_follows_where_a_copy_with_a_graph_has_none(without, bounded, causes):
    build = Equation()
    build.ends(build.operation("sub", build.d, build.u)).arm(
        BOUNDS, **{"without": without, "with": bounded, "steps": 90.0}
    )
    (found,) = judged(DetachedGraph(), build)
    assert ("exploding-gradients" in found.causes) is causes
    assert ("copy explodes" in found.explanation) is causes


def test_an_explosion_that_was_not_tried_is_one_of_its_own():
    build = Equation()
    build.ends(build.operation("sub", build.d, build.u)).arm(BOUNDS, failure="no time was left for it")
    (found,) = judged(DetachedGraph(), build)
    assert not found.causes


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("g = grad(f(x), x)[0]", "g = grad(f(x), x, create_graph=True)[0]"),
        ("g, = grad(u, x, o, True, False)", "g, = grad(u, x, o, create_graph=True)"),
        ("g = grad(u, [x, y], create_graph=False)", "g = grad(u, [x, y], create_graph=True)"),
        ("a = grad(u, x, create_graph=True)[0]; b = grad(v, x)[0]", None),
        ("g = torch.autograd.grad(", "torch.autograd.grad(..., create_graph=True)"),
        ("optimizer.zero_grad()", "torch.autograd.grad(..., create_graph=True)"),
    ],
)
def test_the_line_with_a_graph(text, code):
    assert with_graph(text) == (code or text.replace("(v, x)", "(v, x, create_graph=True)"))
