from __future__ import annotations

from dataclasses import replace

import pytest

from netdoctor.checks.structure.detached_graph import DetachedGraph
from netdoctor.checks.structure.no_gradient import NoGradient
from netdoctor.finding import Severity
from tests.checks.structure.models import BATCH, Model, judged


def cut(name: str = "detach", text: str = "z = self.body(x).detach()", shape=(BATCH, 16), **options) -> Model:
    """body, a cut, head."""
    build = Model().layers("body", "head").stepping().with_gradient("head.weight")
    hidden = build.run(build.value((BATCH, 16)), "body")
    gone = build.operation(name, hidden, shape=shape, line=8, text=text, out={"requires_grad": False}, **options)
    return build.compare(build.run(gone, "head"))


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("detach", "z = self.body(x).detach()", "z = self.body(x)"),
        ("data", "z = self.body(x).data", "z = self.body(x)"),
        ("numpy", "z = torch.from_numpy(h.numpy())", ""),
        ("argmax", "z = h.argmax(1)", ""),
    ],
)
def test_a_cut_before_the_loss(name, text, code):
    (found,) = judged(DetachedGraph(), cut(name, text))
    assert found.severity is Severity.ERROR
    assert found.places == ("body.weight",)
    assert (found.location.line, found.fixes[0].code) == (8, code)


def test_a_layer_under_no_grad():
    build = Model().layers("body", "head").stepping()
    hidden = build.run(build.value((BATCH, 16)), "body", grad_enabled=False, line=6)
    build.compare(build.run(hidden, "head"))
    (found,) = judged(DetachedGraph(), build)
    assert "torch.no_grad() cuts 1 of" in found.title
    assert [f.severity for f in judged(DetachedGraph(), build.facts(pretrained=True))] == [Severity.ADVICE]


def test_numbers_that_left_the_graph():
    build = Model().layers("body").stepping()
    hidden = build.run(build.value((BATCH, 16)), "body")
    build.operation("item", hidden, shape=(), line=8, text="l = torch.tensor(f(x).item(), requires_grad=True)")
    build.graph.values[-1] = replace(build.graph.values[-1], requires_grad=False)
    build.backward(build.operation("tensor", line=8, out={"requires_grad": True}))
    (found,) = judged(DetachedGraph(), build)
    assert found.fixes[0].code == "l = f(x)"


@pytest.mark.parametrize(
    ("terms", "text", "code"),
    [
        (2, "return torch.tensor(parts, requires_grad=True).sum()", "return torch.stack(parts).sum()"),
        (1, "loss = torch.tensor(loss, requires_grad=True)", "loss = loss"),
    ],
)
@pytest.mark.parametrize("leaf", [True, False])
def test_losses_that_were_made_a_leaf_of_their_own(terms, text, code, leaf):
    """The new tensor requires a gradient, and gives it to nobody."""
    build = Model().layers("body").stepping()
    hidden = build.run(build.value((BATCH, 16)), "body")
    parts = [build.operation("mul", hidden, shape=()) for _ in range(terms)]
    made = build.operation("tensor", *parts, shape=(terms,), line=8, text=text, out={"leaf": leaf})
    build.backward(build.operation("sum", made, shape=()))
    found = judged(DetachedGraph(), build)
    assert [(one.location.line, one.fixes[0].code) for one in found] == [(8, code)] * leaf


def test_a_failed_backward_names_the_line_even_without_an_optimizer_step():
    build = cut()
    build.recording.parameters["head.weight"] = replace(build.recording.parameters["head.weight"], requires_grad=False)
    object.__setattr__(build.recording.optimizers[0], "steps", 0)
    assert judged(DetachedGraph(), build) == []
    build.recording.header = replace(build.recording.header, ended="raised RuntimeError: ... does not require grad ...")
    assert "backward fails" in judged(DetachedGraph(), build)[0].explanation


def test_another_path_keeps_the_gradient():
    build = Model().layers("body", "head").stepping()
    hidden = build.run(build.value((BATCH, 16)), "body")
    gone = build.operation("detach", hidden, out={"requires_grad": False})
    build.compare(build.run(build.operation("add", hidden, gone), "head"))
    assert judged(DetachedGraph(), build) == []


def test_a_gradient_at_another_time_is_enough():
    assert judged(DetachedGraph(), cut().with_gradient("body.weight")) == []


def test_a_copy_of_a_trained_model_is_a_target():
    build = Model().layers("online.fc", "target.fc").stepping()
    x = build.value((BATCH, 16))
    aim = build.run(x, "target.fc", grad_enabled=False)
    build.backward(build.operation("mse_loss", build.run(x, "online.fc"), aim, shape=()))
    assert judged(DetachedGraph(), build) == []


def test_parameters_in_no_optimizer_are_none_of_its_business():
    build = cut()
    build.recording.parameters["body.weight"] = replace(build.recording.parameters["body.weight"], optimizer=None)
    assert judged(DetachedGraph(), build) == []


def dropped(steps: int = 40, ran: bool = True, losses: float = 2.3) -> Model:
    """A layer beside the way to the loss."""
    build = Model(steps).layers("body", "side").stepping().with_gradient("body.weight", "body.bias").loss(losses)
    build.recording.parameters.pop("side.bias")
    hidden = build.run(build.value((BATCH, 16)), "body")
    if ran:
        build.run(hidden, "side", line=12)
    return build.compare(hidden)


@pytest.mark.parametrize(
    ("build", "severity"),
    [
        (dropped(), Severity.WARNING),
        (dropped(losses=lambda at: 2.3 * 0.9**at), Severity.ADVICE),
        (dropped(ran=False), Severity.ADVICE),
    ],
)
def test_a_result_that_nothing_reads(build, severity):
    (found,) = judged(NoGradient(), build)
    assert (found.severity, found.places) == (severity, ("side.weight",))


@pytest.mark.parametrize("build", [dropped(steps=7), dropped().with_gradient("side.weight")])
def test_no_gradient_stays_silent(build):
    assert judged(NoGradient(), build) == []
