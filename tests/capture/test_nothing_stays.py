"""When an observation is over torch is as it was, and nothing of the training is held."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as module_internals
from torch.nn.utils import clip_grad
from torch.optim import Optimizer, lr_scheduler
from torch.optim import optimizer as optimizer_internals
from torch.overrides import TorchFunctionMode

from tests.capture.observing import Observation, observing, seed


def torch_as_it_is():
    """All places of torch that an observation could have changed, by name."""
    owners = [nn.Module, nn.Linear, nn.Sequential, Tensor, nn.Parameter, Optimizer, torch.optim.SGD, torch.optim.Adam]
    owners += [torch.autograd, torch.autograd.Function, clip_grad, nn.utils, F, torch, torch.amp.GradScaler, torch.func]
    owners += [kind for kind in vars(lr_scheduler).values() if isinstance(kind, type)]
    found = {(str(owner), name): value for owner in owners for name, value in vars(owner).items()}
    for owner in (module_internals, optimizer_internals):
        found |= {(owner.__name__, k): list(v) for k, v in vars(owner).items() if "hooks" in k and isinstance(v, dict)}
    found["torch", "function modes"] = torch._C._len_torch_function_stack()
    return {key: value for key, value in found.items() if key[1] not in ("__warningregistry__",)}


def differences(before, after):
    return [
        k for k in before.keys() | after.keys() if before.get(k) is not after.get(k) and before.get(k) != after.get(k)
    ]


def train(steps=3, model=None):
    model = model or nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    schedule = lr_scheduler.StepLR(optimizer, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 5)).square().mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model, optimizer


def test_torch_is_as_it_was():
    train()
    before = torch_as_it_is()
    with observing():
        assert differences(before, torch_as_it_is())  # the snapshot sees that something is there
        train()
    assert differences(before, torch_as_it_is()) == []


def train_and_fail():
    train()
    nn.Linear(5, 2)(torch.randn(1, 5))
    raise ZeroDivisionError


def test_torch_is_as_it_was_after_an_exception():
    before = torch_as_it_is()
    with pytest.raises(ZeroDivisionError), observing():
        train_and_fail()
    assert differences(before, torch_as_it_is()) == []


def test_torch_is_as_it_was_after_many_observations():
    before = torch_as_it_is()
    for _ in range(5):
        with observing():
            train()
    assert differences(before, torch_as_it_is()) == []


def test_torch_is_as_it_was_when_the_end_comes_inside_of_a_users_mode():
    before = torch_as_it_is()
    observation = Observation()
    with Passing():
        observation.taps.install()
        model = nn.Linear(5, 2)
        model(torch.randn(1, 5))
        observation.taps.remove()
    assert differences(before, torch_as_it_is()) == []


class Passing(TorchFunctionMode):
    """A mode of the user's that changes nothing."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def test_removing_twice_does_no_harm():
    before = torch_as_it_is()
    observation = Observation()
    observation.taps.install()
    observation.taps.remove()
    observation.taps.remove()
    assert differences(before, torch_as_it_is()) == []


def test_nested_observations():
    before = torch_as_it_is()
    with observing() as outer:
        train()
        with observing() as inner:
            train()
        train()
    assert differences(before, torch_as_it_is()) == []
    assert (outer.recording.steps, inner.recording.steps) == (9, 3)


def test_observations_that_overlap():
    before = torch_as_it_is()
    one, two = Observation(), Observation()
    one.taps.install()
    two.taps.install()
    one.taps.remove()
    two.taps.remove()
    try:
        assert differences(before, torch_as_it_is()) == []
    finally:
        for owner, name, value in restored(before):
            setattr(owner, name, value)


def restored(before):
    """(owner, name, value) of what must be put back by hand, so that the other tests see a clean torch."""
    owners = {str(owner): owner for owner in (nn.Module, Tensor, torch.autograd, torch.autograd.Function, Optimizer)}
    owners |= {str(o): o for o in (clip_grad, nn.utils, torch.amp.GradScaler)}
    owners |= {str(kind): kind for kind in vars(lr_scheduler).values() if isinstance(kind, type)}
    return [(owners[k[0]], k[1], before[k]) for k in differences(before, torch_as_it_is()) if k[0] in owners]


def test_what_somebody_else_replaced_meanwhile_is_left_alone():
    original = Tensor.backward
    observation = Observation()
    observation.taps.install()
    inner = Tensor.backward
    mine = lambda self, *args, **kwargs: inner(self, *args, **kwargs)  # noqa: E731
    try:
        Tensor.backward = mine
        observation.taps.remove()
        assert Tensor.backward is mine
    finally:
        Tensor.backward = original


def test_the_model_carries_nothing_of_ours():
    with observing():
        model, optimizer = train()
    for module in model.modules():
        hooks = [v for k, v in vars(module).items() if "hooks" in k]
        assert not any(hooks)
    assert not any(v for k, v in vars(optimizer).items() if "hooks" in k)
    for parameter in model.parameters():
        assert parameter._backward_hooks is None
        assert not parameter._post_accumulate_grad_hooks


def observed_things():
    """Weak references to what a training was made of, and its recording."""
    seed()
    with observing() as observation:
        model, optimizer = train()
        batch = torch.randn(4, 5)
        model(batch).sum().backward()
        optimizer.step()
    assert len(observation.step.iterations) == 4
    return [weakref.ref(t) for t in (model, optimizer, batch, next(model.parameters()))], observation.recording


def test_model_optimizer_and_batches_die_with_the_observation():
    things, recording = observed_things()
    gc.collect()
    assert [ref() for ref in things] == [None] * 4
    assert recording.steps == 4


def test_what_a_function_deletes_is_gone_though_the_function_runs_on():
    with observing():
        model, large = nn.Linear(5, 2), torch.zeros(1000)
        alive = weakref.ref(large)
        model(torch.randn(4, 5)).sum().backward()
        del large
        assert alive() is None


def test_activations_and_losses_die_within_the_training():
    """How long a tensor lives stays the user's affair, also while the observation runs."""
    with observing():
        model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            out = model(torch.randn(4, 5))
            loss = out.square().mean()
            alive = [weakref.ref(out), weakref.ref(loss)]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            del out, loss
            assert [ref() for ref in alive] == [None, None]
