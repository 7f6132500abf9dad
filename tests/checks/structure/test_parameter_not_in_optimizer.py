from __future__ import annotations

import pytest

from netdoctor.checks.structure.parameter_not_in_optimizer import ParameterNotInOptimizer
from netdoctor.checks.structure.unregistered_parameters import UnregisteredParameters
from netdoctor.finding import Certainty, Severity
from netdoctor.recording import SourceLine
from tests.checks.structure.models import BATCH, Model, judged


def model(head: int | None = None, text: str = "opt = SGD(model.body.parameters(), lr=0.1)", **fields) -> Model:
    """A body that the optimizer holds, and a head that it holds or not."""
    build = Model().layers("body")
    build.layers("head", optimizer=head, **fields)
    build.stepping(line=5)
    optimizer = build.recording.optimizers[0]
    object.__setattr__(optimizer, "source", SourceLine("train.py", 5, text))
    return build


def two_layers(build: Model, **head) -> Model:
    x = build.value((BATCH, 16))
    return build.compare(build.run(build.run(x, "body"), "head", **head))


def test_a_forgotten_head_is_an_error():
    (found,) = judged(ParameterNotInOptimizer(), two_layers(model()))
    assert found.severity is Severity.ERROR
    assert (found.location.line, found.location.module) == (5, "head")
    assert found.places == ("head.weight",)
    assert found.fixes[0].code == "opt = SGD(model.parameters(), lr=0.1)"


def test_a_replaced_layer_is_told_by_what_the_optimizer_holds_in_vain():
    build = model(text="opt = SGD(model.parameters(), lr=0.1)")
    optimizer = build.recording.optimizers[0]
    object.__setattr__(optimizer, "parameters", (*optimizer.parameters, "parameter0", "parameter0"))
    (found,) = judged(ParameterNotInOptimizer(), two_layers(build))
    assert "2 parameters that never get a gradient" in found.explanation
    assert found.fixes[0].treatment == "optimizer-after-model"


def test_a_part_left_out_after_loading_weights_is_advice_when_it_learns():
    build = two_layers(model()).facts(pretrained=True).loss(lambda at: 2.3 * 0.9**at)
    assert [f.severity for f in judged(ParameterNotInOptimizer(), build)] == [Severity.ADVICE]


@pytest.mark.parametrize(
    "build",
    [
        two_layers(model(head=0)),
        two_layers(model(requires_grad=False)),
        two_layers(model(), weight=0),  # the head's weight is not what ran
        model(),  # nothing captured
    ],
)
def test_it_stays_silent(build):
    assert judged(ParameterNotInOptimizer(), build) == []


def test_no_optimizer_steps_so_nothing_is_left_out():
    build = two_layers(model())
    object.__setattr__(build.recording.optimizers[0], "steps", 0)
    assert judged(ParameterNotInOptimizer(), build) == []


def second_model(training: bool = True, shape: tuple[int, int] = (8, 16), **facts) -> Model:
    """Two models; the second one is in no optimizer."""
    build = Model().facts(**facts)
    build.parameter("net.weight", module="net", model="net")
    build.stepping()
    build.layer("critic.fc", "Linear", model="critic", training=training)
    build.parameter("critic.fc.weight", shape, module="critic.fc", optimizer=None, model="critic")
    x = build.value((BATCH, 16))
    return build.compare(build.run(build.run(x, "net"), "critic.fc"))


def test_a_second_model_that_was_forgotten():
    (found,) = judged(ParameterNotInOptimizer(), second_model())
    assert found.certainty is Certainty.INFERRED
    assert found.fixes[0].code == "optimizer.add_param_group({'params': critic.parameters()})"


@pytest.mark.parametrize(
    "build",
    [
        second_model(training=False),  # a fixed function, evaluated
        second_model(pretrained=True),
        second_model(shape=(16, 16)),  # a copy of the trained one
    ],
)
def test_a_second_model_that_serves_as_a_function(build):
    assert judged(ParameterNotInOptimizer(), build) == []


def test_an_image_that_is_optimised_through_a_model():
    build = Model()
    build.parameter("image", (BATCH, 16), module="", module_type="")
    build.stepping()
    build.layers("net", optimizer=None)
    image = build.value((BATCH, 16), origin="parameter", name="image", requires_grad=True, trained=True)
    assert judged(ParameterNotInOptimizer(), build.compare(build.run(image, "net"))) == []


def in_a_list(**block) -> Model:
    build = Model()
    build.parameter("net.head.weight", module="net.head", model="net")
    build.stepping()
    build.layer("block", "Linear", model="block", line=11, text="self.blocks = [Block(8) for _ in range(2)]")
    build.parameter("block.weight", module="block", optimizer=None, model="block", **block)
    x = build.value((BATCH, 16))
    return build.compare(build.run(build.run(x, "block", outer="net"), "net.head", outer="net"))


def test_layers_in_a_plain_list():
    (found,) = judged(UnregisteredParameters(), in_a_list())
    assert found.severity is Severity.ERROR
    assert found.location.line == 11
    assert found.fixes[0].code == "self.blocks = nn.ModuleList([Block(8) for _ in range(2)])"
    assert judged(ParameterNotInOptimizer(), in_a_list()) == []


def test_a_frozen_helper_in_a_list_is_meant():
    assert judged(UnregisteredParameters(), in_a_list(requires_grad=False)) == []


@pytest.mark.parametrize(("requires_grad", "fires"), [(True, True), (False, False)])
def test_a_parameter_in_a_plain_list(requires_grad, fires):
    build = Model().layers("net").stepping()
    x = build.run(build.value((BATCH, 16)), "net")
    loose = build.value((16,), origin="parameter", requires_grad=requires_grad, trained=requires_grad)
    build.compare(build.operation("mul", x, loose, outer="net", line=14))
    found = judged(UnregisteredParameters(), build)
    assert [f.location.line for f in found] == ([14] if fires else [])


@pytest.mark.parametrize(
    ("text", "of"),
    [
        ("opt = SGD((p for p in net.parameters() if p.requires_grad), lr=0.1)", "net"),
        ("opt = SGD(head, lr=0.1)", "model"),
    ],
)
def test_what_was_unfrozen_later(text, of):
    build = two_layers(model(head=0, text=text)).event(20, "unfrozen", "body.weight")
    object.__setattr__(build.recording.optimizers[0], "span", (0, 39))
    (found,) = judged(ParameterNotInOptimizer(), build)
    assert found.severity is Severity.ERROR
    assert (found.first_step, found.location.step) == (0, 20)
    assert (found.places, found.location.line) == (("body.weight",), 5)
    assert f"p in {of}.parameters()" in found.fixes[0].code
    assert found.fixes[0].code.startswith("held = {id(p) for group in opt.param_groups")


def test_what_was_unfrozen_after_the_last_optimizer_had_ended():
    build = two_layers(model(head=0)).event(20, "unfrozen", "body.weight")
    object.__setattr__(build.recording.optimizers[0], "span", (0, 10))
    assert judged(ParameterNotInOptimizer(), build) == []
