"""What loaders hand out beside what the model is given: a real loop that ignores its batches, and loops that only look like it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from netdoctor import watch
from netdoctor.judging import Options

Batches = Iterable[Any]
X, Y = torch.randn(96, 4, generator=torch.Generator().manual_seed(0)), torch.arange(96) % 3


def unused(stale: bool = False, loader: Batches | None = None, beside: Batches | None = None) -> object:
    """The fact of a training of 12 steps on a loader's batches, or on its first one; `beside` is read once in each step."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = loader or DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    x0, y0 = next(iter(loader))
    with watch(model, options=Options(experiments=False)) as session:
        for x, y in loader:
            if stale:
                x, y = x0, y0
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            for held in beside or ():
                with torch.no_grad():
                    model(held[0])
                break
    return session.recording.facts["unused_inputs"]


def test_batches_that_nobody_uses_are_counted() -> None:
    assert unused(stale=True) >= 8  # the first steps are measured one by one


def test_batches_that_are_used_are_not() -> None:
    assert unused() == 0


def test_a_loader_that_gives_one_batch_again_and_again_hands_out_what_is_used() -> None:
    one = DataLoader(TensorDataset(X[:8].repeat(12, 1), Y[:8].repeat(12)), batch_size=8)
    assert unused(loader=one) == 0


def test_full_batches_beside_an_evaluation_of_other_shape_are_no_loss() -> None:
    whole = [(X, Y)] * 12
    held = DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True)
    assert unused(loader=whole, beside=held) == 0


def test_an_evaluation_that_begins_with_the_same_batch_each_time_is_no_loss() -> None:
    same = [(X[:8], Y[:8])] * 12
    held = DataLoader(TensorDataset(X[8:], Y[8:]), batch_size=8)
    assert unused(loader=same, beside=held) <= 1


def repeated(loader: Any, seeded: bool = False, anew: bool = True) -> tuple[object, object]:
    """(first_of_batches, inputs_made_anew) of a training of 10 steps that begins its loader anew in each."""
    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = X[:8].clone()
    with watch(model, options=Options(experiments=False)) as session:
        for step in range(10):
            if loader is not None:
                x, y = next(iter(loader))
            else:
                rows = torch.arange(8) if seeded else torch.arange(step, step + 8)
                x, y = X[rows] if anew else kept[:6], Y[:8] if anew else Y[:6]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    begun = [event.source.text for event in session.recording.events if event.kind == "loader begun" and event.source]
    assert begun == ["x, y = next(iter(loader))"] * (loader is not None and len(loader) > 1)
    facts = session.recording.facts
    return facts["first_of_batches"], facts["inputs_made_anew"]


def test_a_loader_that_is_begun_anew_in_each_step_gives_its_first_batch() -> None:
    plain = DataLoader(TensorDataset(X, Y), batch_size=8)
    assert repeated(plain)[0] == 12
    assert repeated(DataLoader(TensorDataset(X, Y), batch_size=8, shuffle=True))[0] == 0
    assert repeated(DataLoader(TensorDataset(X, Y), batch_size=96))[0] == 1  # the whole of it


def test_a_batch_that_is_put_together_anew_is_told_from_a_kept_one() -> None:
    first_of, anew = repeated(None, seeded=True)
    assert first_of == 0
    assert anew >= 7  # all but one or two steps are measured
    assert repeated(None, anew=False) == (0, 0)  # views of one tensor
