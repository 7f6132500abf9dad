"""Warnings that torch gives in the user's calls: at the user's line, as often as without us, and under the user's filters."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from netdoctor.session import Options, Session

Told = list[tuple[str, int, type]]


def training(steps: int = 12) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(steps):
        x, y = torch.randn(4, 3), torch.randn(4)
        loss = F.mse_loss(model(x), y)  # shapes that broadcast: torch warns
        loss = loss + nn.MSELoss()(model(x), y)
        if step == 3:
            loss = loss * float("nan")  # the search for the first NaN runs the step again
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def told(run: Callable[[], None], action: str) -> Told:
    """What was shown, as (file, line, category)."""
    for module in list(sys.modules.values()):
        vars(module).get("__warningregistry__", {}).clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter(action)  # type: ignore[arg-type]
        run()
    return [(w.filename, w.lineno, w.category) for w in caught if "target size" in str(w.message)]


def watched() -> None:
    session = Session(Options(experiments=False))
    session.start()
    try:
        training()
    finally:
        session.stop()


@pytest.mark.parametrize("action", ["default", "always", "once", "module", "ignore"])
def test_the_same_warnings_at_the_same_lines(action: str) -> None:
    bare = told(training, action)
    assert told(watched, action) == bare
    assert bool(bare) == (action != "ignore")


def test_a_filter_for_the_users_module_holds() -> None:
    def run() -> None:
        warnings.filterwarnings("ignore", module=__name__)
        watched()

    assert {file for file, _, _ in told(run, "default")} == {torch.nn.modules.loss.__file__}


def test_a_warning_that_is_an_error_is_raised_where_it_was() -> None:
    def run() -> None:
        warnings.simplefilter("error")
        watched()

    with pytest.raises(UserWarning, match="target size"):
        told(run, "default")


def test_showwarning_is_put_back() -> None:
    before = warnings.showwarning
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("default")
        inside = warnings.showwarning
        watched()
        assert warnings.showwarning is inside
    assert warnings.showwarning is before
