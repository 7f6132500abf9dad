"""Each treatment against the same change made by hand on a plain training."""

from __future__ import annotations

import importlib
import math
import pkgutil
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.experiments import treatments as package
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.treatments import TREATMENTS, treatment_of
from netdoctor.experiments.treatments.optimization import _built
from netdoctor.experiments.treatments.treatment import Bench, Case, Places, Treatment
from netdoctor.experiments.treatments.weights import _compiled
from netdoctor.finding import Finding, Fix, Location, Severity
from netdoctor.graph import StepGraph
from netdoctor.recording import Recording
from tests.experiments.capturing import captured, fit, mlp

SGD: Callable[[Any], torch.optim.Optimizer] = lambda parameters: torch.optim.SGD(parameters, lr=0.1)  # noqa: E731
STEPS = 12


def data(seed: int = 0) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    x = torch.randn(96, 6)
    return x, (x[:, 0] > 0).long()


def step_of(model: nn.Module, loss: Any = F.cross_entropy, make: Any = SGD) -> TrainingStep:
    return fit(model, loss, *data(), make)


def case(
    step: TrainingStep,
    fix: Fix,
    seen: Recording | None = None,
    places: tuple[str, ...] = (),
    at: Location = Location(),  # noqa: B008
    check: str = "x",
) -> Case:
    finding = Finding(check, "t", Severity.ERROR, "e", at, places=places, fixes=(fix,))
    return Case(step, seen or Recording(), finding, fix, Places(step))


def run(step: TrainingStep, treatment: Treatment | None, steps: int = STEPS) -> list[float]:
    assert treatment is not None
    with quiet(), ExitStack() as stack:
        sandbox = treatment.sandbox(step)
        bench = Bench(sandbox, step.iterations, stack)
        treatment.both(bench)
        treatment.apply(bench)
        return sandbox.run(bench.iterations, steps, Budget(30)).losses


def treated(step: TrainingStep, name: str, code: str = "", **known: Any) -> list[float]:
    return run(step, treatment_of(case(step, Fix(name, "", code), **known)))


def by_hand(
    model: nn.Module,
    change: Callable[[Tensor], Tensor] = lambda loss: loss,
    make: Callable[[Any], torch.optim.Optimizer] = SGD,
    clip: float = math.inf,
    loss: Any = F.cross_entropy,
) -> list[float]:
    """The same training, written a second time, over the three batches of `fit` again and again."""
    x, y = data()
    optimizer, losses = make(model.parameters()), []
    for number in range(STEPS):
        rows = slice(32 * (number % 3), 32 * (number % 3) + 32)
        optimizer.zero_grad()
        value = change(loss(model(x[rows]), y[rows]))
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(value.item())
    return losses


def seeded(seed: int = 1, **options: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp(**options)


# --- weights ---------------------------------------------------------------------------------------------------------

INIT = "torch.nn.init.kaiming_normal_(model[0].weight)\ntorch.nn.init.zeros_(model[2].bias)"


def test_code_is_run_on_the_copy() -> None:
    step = step_of(seeded())
    model = seeded()
    torch.manual_seed(0)
    exec(INIT, {"torch": torch, "model": model})
    assert treated(step, "variance-scaling-init", INIT) == pytest.approx(by_hand(model))


def test_the_fixes_for_many_layers_are_run_too() -> None:
    code = 'names = {"0.weight"}\nfor name, weight in model.named_parameters():\n    if name in names:\n'
    losses = treated(step_of(seeded()), "variance-scaling-init", code + "        torch.nn.init.zeros_(weight)")
    model = seeded()
    nn.init.zeros_(model[0].weight)
    assert losses == pytest.approx(by_hand(model))


@pytest.mark.parametrize(
    "code",
    [
        "",
        "import os\ntorch.nn.init.zeros_(model[0].bias)",
        "torch.nn.init.zeros_(layer.bias)",  # whose layer?
        "x = torch.nn.functional.relu_(model(x))",
        "torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)",
        "model = nn.Sequential()\ntorch.nn.init.zeros_(model[0].bias)",
        "nn.LeakyReLU(0.01)",
        "torch.nn.init.zeros_(model[0].bias",
    ],
)
def test_other_code_is_not_run(code: str) -> None:
    assert _compiled(code, frozenset()) is None


def test_loose_weights_are_known_by_their_names() -> None:
    x, y = data()
    w = torch.zeros(6, 2).requires_grad_()

    def train() -> None:
        optimizer = torch.optim.SGD([w], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(x @ w, y).backward()
            optimizer.step()

    step = captured(train)
    fix = Fix("initialise", "", "torch.nn.init.ones_(w)")
    places = Places(step, leaf_name=lambda _: "w")
    found = treatment_of(Case(step, Recording(), Finding("x", "t", Severity.ERROR, "e"), fix, places))
    assert run(step, found)[0] == pytest.approx(F.cross_entropy(x @ torch.ones(6, 2), y).item())


# --- the loop --------------------------------------------------------------------------------------------------------


def test_learning_rate_in_the_optimizers_line() -> None:
    step = step_of(seeded())
    expected = by_hand(seeded(), make=lambda p: torch.optim.SGD(p, lr=0.025))
    assert treated(step, "lower-lr", "opt = torch.optim.SGD(model.parameters(), lr=0.025)") == pytest.approx(expected)
    assert treated(step, "lower-lr", "for g in o.param_groups:\n    g['lr'] = 0.025") == pytest.approx(expected)


def test_lower_lr_without_a_number_is_a_tenth() -> None:
    expected = by_hand(seeded(), make=lambda p: torch.optim.SGD(p, lr=0.01))
    assert treated(step_of(seeded()), "lower-lr") == pytest.approx(expected)


def test_another_optimizer() -> None:
    expected = by_hand(seeded(), make=lambda p: torch.optim.Adam(p, lr=0.003))
    assert treated(step_of(seeded()), "adam", "optimizer = torch.optim.Adam(model.parameters(), lr=0.003)") == (
        pytest.approx(expected)
    )


def test_another_option_of_the_same_optimizer() -> None:
    step = step_of(seeded(), make=lambda p: torch.optim.Adam(p, lr=0.01, eps=1.0))
    code = "optimizer = torch.optim.Adam(model.parameters(), lr=args.lr, eps=1e-8)"
    assert treated(step, "eps", code) == pytest.approx(by_hand(seeded(), make=lambda p: torch.optim.Adam(p, lr=0.01)))


def test_drop_maximize() -> None:
    step = step_of(seeded(), make=lambda p: torch.optim.SGD(p, lr=0.1, maximize=True))
    assert treated(step, "drop-maximize") == pytest.approx(by_hand(seeded()))


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("torch.optim.Adam(m.parameters(), lr=1e-3, betas=(0.9, 0.99))", ("Adam", {"lr": 1e-3, "betas": (0.9, 0.99)})),
        ("opt = SGD(params, lr=lr)", ("SGD", {})),
        ("group['lr'] = 0.5", ("", {"lr": 0.5})),
        ("nn.Linear(3, 4)", ("", {})),
        ("not code (", ("", {})),
    ],
)
def test_the_optimizers_line_is_read(code: str, expected: Any) -> None:
    assert _built(code) == expected


def test_clipping() -> None:
    losses = treated(step_of(seeded()), "clip-gradients", "clip_grad_norm_(model.parameters(), max_norm=0.1)")
    assert losses == pytest.approx(by_hand(seeded(), clip=0.1))
    assert treated(step_of(seeded()), "clip-gradients") == pytest.approx(by_hand(seeded(), clip=1.0))


def test_a_larger_clip() -> None:
    x, y = data()
    model = seeded()

    def train() -> None:
        optimizer = SGD(model.parameters())
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
            optimizer.step()

    losses = treated(captured(train), "raise-clip", "clip_grad_norm_(model.parameters(), max_norm=0.1)")
    assert losses == pytest.approx(by_hand(seeded(), clip=0.1))


def without_clearing(order: str) -> TrainingStep:
    x, y = data()
    model = seeded()

    def train() -> None:
        optimizer = SGD(model.parameters())
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            if order == "zero before step":
                optimizer.zero_grad()
            optimizer.step()

    return captured(train)


def test_zero_grad() -> None:
    step = without_clearing("never zero")
    untreated = Sandbox(step).run(step.iterations, STEPS, Budget(30)).losses
    assert untreated != pytest.approx(by_hand(seeded()))
    assert treated(step, "zero-grad") == pytest.approx(by_hand(seeded()))


def test_reorder_step() -> None:
    assert treated(without_clearing("zero before step"), "reorder-step") == pytest.approx(by_hand(seeded()))


def test_parameters_that_the_optimizer_lacks() -> None:
    x, y = data()
    model = seeded()

    def train() -> None:
        optimizer = SGD(model[2].parameters())
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()

    assert treated(captured(train), "all-parameters") == pytest.approx(by_hand(seeded()))


def test_unfreezing() -> None:
    model = seeded()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("bias" in name)
    step = step_of(model, make=lambda ps: SGD([p for p in ps if p.requires_grad]))
    assert treated(step, "unfreeze") == pytest.approx(by_hand(seeded()))
    assert [p.requires_grad for p in model.parameters()] == [False, True, False, True]


@pytest.mark.parametrize("owned", [True, False])
def test_unfreezing_a_module(owned: bool) -> None:
    model = seeded()
    model[2].requires_grad_(False)
    step = step_of(model, make=lambda ps: SGD(list(ps) if owned else list(model[0].parameters())))
    places = ("2.weight", "2.bias")
    assert treated(step, "unfreeze-module", places=places) == pytest.approx(by_hand(seeded()))
    assert not any(p.requires_grad for p in model[2].parameters())


def test_a_module_that_was_not_frozen_in_the_captured_steps_is_not_unfrozen() -> None:
    step = step_of(seeded())
    assert treatment_of(case(step, Fix("unfreeze-module", ""), places=("2.weight",))) is None


class Listed(nn.Module):
    """Keeps its layers in a plain list."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)
        self.body = {"first": [nn.Linear(6, 8)]}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body["first"][0](x)))


def test_layers_in_a_plain_list_are_found() -> None:
    torch.manual_seed(2)
    model = Listed()
    first = nn.Linear(6, 8)
    first.load_state_dict(model.body["first"][0].state_dict())
    head = nn.Linear(8, 2)
    head.load_state_dict(model.head.state_dict())
    assert treated(step_of(model), "register") == pytest.approx(by_hand(nn.Sequential(first, nn.ReLU(), head)))


def test_optimizer_step_that_the_script_never_takes() -> None:
    x, y = data()
    model = seeded()

    def train() -> None:
        optimizer = SGD(model.parameters())
        for number in range(40):
            rows = slice(32 * (number % 3), 32 * (number % 3) + 32)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()

    from netdoctor.recording import Optimizer

    step = captured(train)
    seen = Recording(optimizers=[Optimizer(0, "SGD", ({"lr": 0.1},), ())])
    found = treatment_of(case(step, Fix("optimizer-step", ""), seen))
    assert found is not None
    losses = run(step, found)
    assert losses[-1] < 0.9 * losses[0]
    still = found.control(step)
    bench = Bench(still, step.iterations)
    found.both(bench)
    control = still.run(bench.iterations, 9, Budget(30)).losses
    assert control[:3] == pytest.approx(control[3:6])


def test_train_mode_and_removals() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 2)).eval()
    step = step_of(model)
    untreated = Sandbox(step).run(step.iterations, STEPS, Budget(30)).losses
    assert treated(step, "train-mode") != pytest.approx(untreated)
    step = step_of(model.train())
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Linear(6, 32), nn.Identity(), nn.ReLU(), nn.Linear(32, 2))
    plain.load_state_dict(dict(step.copies().of(model).state_dict()))
    assert treated(step, "without dropout") == pytest.approx(by_hand(plain))
    with pytest.raises(LookupError, match="without batchnorm"):
        treated(step, "without batchnorm")


def test_constant_rate() -> None:
    x, y = data()
    model = seeded()

    def train() -> None:
        optimizer = SGD(model.parameters())
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.1)
        for number in range(3):
            rows = slice(32 * number, 32 * number + 32)
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            scheduler.step()

    assert treated(captured(train), "slower-decay") == pytest.approx(by_hand(seeded()))


# --- all -------------------------------------------------------------------------------------------------------------


def test_an_unknown_name_is_tried_by_its_code() -> None:
    step = step_of(seeded())
    assert treatment_of(case(step, Fix("of-another-package", "", "nn.init.zeros_(model[0].bias)"))) is not None
    assert treatment_of(case(step, Fix("of-another-package", "", "x = x / 255"))) is None


def test_names_are_unique() -> None:
    names = [name for _, name, _ in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")]
    tables = [getattr(importlib.import_module(name), "TREATMENTS", {}) for name in names]
    assert sum(map(len, tables)) == len(TREATMENTS)


def test_a_graph_without_a_loss_is_no_obstacle() -> None:
    step = step_of(seeded())
    for name in ("mean-reduction", "remove-softmax", "log-softmax"):
        fix = Fix(name, "")
        treatment_of(case(step, fix, Recording(graph=StepGraph())))
