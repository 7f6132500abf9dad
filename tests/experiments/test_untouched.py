"""Whatever an experiment does, and however it ends, the user's own objects hash the same before and after."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture import room
from netdoctor.capture.step import Replay, TrainingStep
from netdoctor.errors import CannotReplayError
from netdoctor.experiments import (
    batchnorm,
    blanking,
    leakage,
    learning_rate,
    noise,
    overfit,
    pairing,
    plan,
    range_test,
    scaling,
)
from netdoctor.experiments.combination import on_tiny_batch
from netdoctor.experiments.sandbox import Budget, quiet
from netdoctor.experiments.treatments.treatment import Places, Treatment
from netdoctor.experiments.trial import try_fixes
from netdoctor.finding import Finding, Fix, Severity
from netdoctor.recording import Arm, Recording
from netdoctor.report import Report
from tests.experiments.capturing import captured


class Mine:
    """A training of the user's, with everything that an experiment could leave a mark on."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        np.random.seed(1)
        random.seed(2)
        layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3)
        self.model = nn.Sequential(*layers)
        self.model[2].register_forward_hook(lambda module, given, out: None)
        self.x, self.y = 30 * torch.randn(192, 6), torch.randint(0, 3, (192,))
        self.step = captured(self.train)
        self.model.eval()
        self.model[4].train()

    def train(self) -> None:
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, weight_decay=1e-3)
        for number in range(6):
            rows = slice(32 * number, 32 * number + 32)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(self.x[rows]), self.y[rows]).backward()
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimizer.step()

    def digest(self) -> dict[str, str]:
        """A hash per kind of thing, so that a failure says what was touched."""
        parameters = list(self.model.parameters())
        state = [(sorted(s), [s[k] for k in sorted(s)]) for s in (self.optimizer.state[p] for p in parameters)]
        hooks = [
            [list(getattr(m, name)) for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")]
            for m in self.model.modules()
        ]
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.optimizer.param_groups]
        return {
            "parameters": _hash(parameters),
            "buffers": _hash(list(self.model.buffers())),
            "gradients": _hash([p.grad for p in parameters]),
            "wants gradients": _hash([p.requires_grad for p in parameters]),
            "optimizer state": _hash(state),
            "optimizer options": _hash(groups),
            "modes": _hash([m.training for m in self.model.modules()]),
            "hooks": _hash(hooks),
            "attributes": _hash([sorted(vars(m)) for m in self.model.modules()]),
            "data": _hash([self.x, self.y]),
            "torch's random state": _hash(torch.get_rng_state()),
            "numpy's random state": _hash(np.random.get_state()[1].tobytes()),
            "python's random state": _hash(random.getstate()),
            "gradient mode": _hash(torch.is_grad_enabled()),
        }


def _hash(thing: Any) -> str:
    found = hashlib.sha256()
    for part in _parts(thing):
        found.update(part)
    return found.hexdigest()


def _parts(thing: Any) -> Iterator[bytes]:
    if isinstance(thing, Tensor):
        yield repr((thing.shape, thing.dtype)).encode() + thing.detach().numpy().tobytes()
    elif isinstance(thing, list | tuple):
        yield b"["
        for item in thing:
            yield from _parts(item)
    else:
        yield repr(thing).encode()


@pytest.fixture
def mine() -> Mine:
    return Mine()


def stuck() -> Recording:
    """A recording that asks for every experiment: the loss does not fall, the inputs are out of scale."""
    made = Recording(facts={"loss_lower_bound": 0.0})
    made.arms["overfit/own"] = Arm("overfit/own", np.ones(1), facts={"reached": True})
    return made


def trials(step: TrainingStep) -> Report:
    fixes = (
        Fix("variance-scaling-init", "", "torch.nn.init.kaiming_normal_(model[0].weight)"),
        Fix("standardise-input", ""),
        Fix("clip-gradients", ""),
    )
    found = Finding("loss-not-decreasing", "title", Severity.ERROR, "why", fixes=fixes)
    other = Finding("unnormalised-input", "title", Severity.ERROR, "why", fixes=(Fix("standardise-input", ""),))
    report = Report("train.py", "sick", 6, findings=(found, other))
    return try_fixes(report, stuck(), step, Places(step), (), Budget(8), lambda _: None)


def tiny(step: TrainingStep) -> object:
    with quiet():  # which the trials, that call it, have entered by then
        return on_tiny_batch(step, stuck(), Treatment(), "nothing", Budget(4))


def say(_: str) -> None:
    return None


EXPERIMENTS: dict[str, Callable[[TrainingStep], object]] = {
    "overfit": lambda step: overfit.overfit(step, Budget(4)),
    "learning rates": lambda step: learning_rate.trials(step, Budget(4), say),
    "range test": lambda step: range_test.sweep(step, Budget(4)),
    "scaling": lambda step: scaling.trials(stuck(), step, Budget(4), say),
    "pairing": lambda step: pairing.trials(stuck(), step, Budget(4), say),
    "batchnorm": lambda step: batchnorm.bypass(step, Budget(4)),
    "blanking": lambda step: blanking.compare(step, Budget(4), say),
    "noise": lambda step: noise.measure(stuck(), step, Budget(4)),
    "leakage": lambda step: leakage.leakage(stuck(), step, Budget(4)),
    "tiny batch": tiny,
    "trials": trials,
    "all": lambda step: plan.conduct(stuck(), step, 8.0, say),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_as_it_ends_by_itself(mine: Mine, name: str) -> None:
    before = mine.digest()
    with quiet():
        EXPERIMENTS[name](mine.step)
    assert mine.digest() == before


@pytest.mark.parametrize("error", [RuntimeError("broken on purpose"), KeyboardInterrupt()], ids=["raises", "Ctrl-C"])
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_as_it_is_broken_off_half_way(
    mine: Mine, name: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls, before = Replay.run_entry, [0], mine.digest()

    def breaking(self: Replay, *args: Any) -> None:
        calls[0] += 1
        if calls[0] == 9:  # in the third step of its first arm, or earlier
            torch.rand(3)
            raise error
        run(self, *args)

    monkeypatch.setattr(Replay, "run_entry", breaking)
    with contextlib.suppress(RuntimeError, KeyboardInterrupt):
        EXPERIMENTS[name](mine.step)
    assert mine.digest() == before


MARKS: dict[str, Callable[[Mine], object]] = {
    "parameters": lambda mine: mine.model[0].weight.data.add_(1e-7),
    "buffers": lambda mine: mine.model[1].running_mean.add_(1e-7),
    "gradients": lambda mine: setattr(mine.model[0].weight, "grad", None),
    "wants gradients": lambda mine: mine.model[0].weight.requires_grad_(False),
    "optimizer state": lambda mine: mine.optimizer.state[mine.model[0].weight]["step"].add_(1),
    "optimizer options": lambda mine: mine.optimizer.param_groups[0].update(lr=0.1),
    "modes": lambda mine: mine.model[3].train(),
    "hooks": lambda mine: mine.model[0].register_forward_pre_hook(lambda *_: None),
    "attributes": lambda mine: setattr(mine.model[0], "forward", mine.model[0].forward),
    "data": lambda mine: mine.x.add_(1e-3),
    "torch's random state": lambda _: torch.rand(1),
    "numpy's random state": lambda _: np.random.rand(700),
    "python's random state": lambda _: random.random(),
    "gradient mode": lambda _: None,
}


@pytest.mark.parametrize("kind", [kind for kind in MARKS if kind != "gradient mode"])
def test_each_kind_of_mark_would_be_seen(mine: Mine, kind: str) -> None:
    before = mine.digest()
    MARKS[kind](mine)
    assert [name for name, value in mine.digest().items() if before[name] != value] == [kind]


# --- room for a copy -------------------------------------------------------------------------------------------------


def test_the_bytes_of_a_copy() -> None:
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.BatchNorm1d(10, affine=False), nn.Linear(5, 4, bias=False))
    model[2].weight.requires_grad_(False)
    trained, frozen, buffers = 100 * 4, 20 * 4, (10 + 10) * 4 + 8
    assert room.needed([model, model]) == {torch.device("cpu"): room.TIMES * trained + frozen + buffers}
    assert room.needed([], [torch.zeros(3, requires_grad=True)]) == {torch.device("cpu"): room.TIMES * 12}


@pytest.mark.parametrize(("spare", "fits"), [(0, True), (-1, False)])
def test_without_room_no_experiment(mine: Mine, spare: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    (need,) = room.needed(mine.step.modules).values()
    monkeypatch.setattr(room, "free", lambda _: float(need + room.SPARE + spare))
    if fits:
        mine.step.copies()
        return
    with pytest.raises(
        CannotReplayError, match=f"needs {need:,} bytes on cpu .* and {need + room.SPARE - 1:,} are free"
    ):
        mine.step.copies()
    assert f"{need:,} bytes" in overfit.overfit(mine.step, Budget(4))["overfit/own"].failure
    assert f"{need:,} bytes" in leakage.leakage(stuck(), mine.step, Budget(4))["leakage/samples"].failure


def test_this_machine_has_memory() -> None:
    assert room.free(torch.device("cpu")) > room.SPARE
