"""Steps on their own batch, and training that goes on without its regularisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from netdoctor.checks.training.jumps import rising_steps
from netdoctor.checks.training.pull import weaker
from netdoctor.experiments import regularisation, stability
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm
from netdoctor.session import Options, Session


def trained(lr: float, steps: int = 40, decay: float = 0.0, penalty: float = 0.0) -> Session:
    """A least-squares fit whose steepest direction has the curvature 2.5, so that steps raise the loss from lr = 0.8 on."""
    torch.manual_seed(0)
    session = Session(Options(experiments=False))
    session.start()
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, weight_decay=decay)
    x = torch.eye(4).repeat(4, 1)
    y = torch.tensor([[3.0], [-2.0], [1.0], [2.0]]).repeat(4, 1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.mse_loss(model(x), y)
        if penalty:
            loss = loss + penalty * sum(p.pow(2).sum() for p in model.parameters())
        loss.backward()
        optimizer.step()
    session.stop()
    return session


@pytest.mark.parametrize(("lr", "rises"), [(0.5, False), (0.84, True)])
def test_a_step_that_overshoots_raises_the_loss_of_its_own_batch(lr: float, rises: bool) -> None:
    session = trained(lr)
    assert session._step is not None
    arms = stability.rises(session._step, Budget(20))
    assert set(arms) == {"stability/own", "stability/lr x0.1"}
    own = arms["stability/own"]
    assert len(own.losses) == len(own.curves["after"]) == stability.STEPS
    np.testing.assert_allclose(own.losses[1:24], own.curves["after"][:23], rtol=1e-5)  # the same batch again
    assert (rising_steps(own)[0] > 0.5) is rises
    assert rising_steps(arms["stability/lr x0.1"])[0] == 0.0


def test_no_time_is_no_arm_to_be_judged() -> None:
    session = trained(0.5)
    assert session._step is not None
    assert len(stability.rises(session._step, Budget(0))["stability/own"].losses) == 0


@pytest.mark.parametrize(("decay", "penalty", "name"), [(2.0, 0.0, "weight decay"), (0.0, 1.0, "penalty")])
def test_training_goes_on_from_the_trained_weights(decay: float, penalty: float, name: str) -> None:
    session = trained(0.1, decay=decay, penalty=penalty)
    assert session._step is not None
    arms = regularisation.look(session.recording, session._step, Budget(20))
    kept, without = (arms[f"regularisation/{x}"].facts for x in ("as it is", f"without {name}"))
    assert kept["before"] == without["before"] == pytest.approx(kept["data"], rel=0.05)  # it had settled
    assert float(without["data"]) < 0.1 * float(kept["data"])


def test_nothing_to_take_out_is_nothing_to_try() -> None:
    session = trained(0.5)
    assert session._step is not None
    assert regularisation.look(session.recording, session._step, Budget(20)) == {}


def test_weights_that_decay_pulled_to_nothing_get_more_steps() -> None:
    """Where the copy without it is ahead by a part that is not yet much."""
    arms = {f"regularisation/{n}": Arm(n, np.zeros(60), facts={"data": d}) for n, d in (("as it is", 2.0), ("x", 1.7))}
    assert regularisation._undecided(arms)
    for level in (1.9, 1.3):  # nothing, and enough
        arms["regularisation/x"] = Arm("x", np.zeros(60), facts={"data": level})
        assert not regularisation._undecided(arms)


@pytest.mark.parametrize(
    ("decay", "kind", "weak"), [(1.5, "Adam", 1e-3), (0.05, "SGD", 5e-4), (1.5, "AdamW", 1e-2), (0.5, "AdamW", 5e-3)]
)
def test_the_decay_that_is_prescribed(decay: float, kind: str, weak: float) -> None:
    assert weaker(decay, kind) == pytest.approx(weak)
