"""Runs the random trainings of `architectures`, with their faults, as a user's loop would."""

from __future__ import annotations

import copy
import random
from typing import Any

import torch
from torch import Tensor, nn

from tests.reliability.architectures import LOSSES, OPTIMIZERS, STEPS, Plan, Raising, built, inputs
from tests.reliability.trainings import state_of


def spoil(model: nn.Module, faults: tuple[str, ...]) -> None:
    """What is wrong with the weights from the start."""
    parameters = [p for p in model.parameters() if not nn.parameter.is_lazy(p)]
    with torch.no_grad():
        for parameter in parameters:
            if "dead" in faults and parameter.dim() == 1:
                parameter.fill_(-100.0)
            if "zero weights" in faults:
                parameter.zero_()
            if "equal weights" in faults and parameter.dim() > 1:
                parameter.fill_(0.3)
            if "huge weights" in faults:
                parameter.mul_(1e20)
        if "nan weight" in faults and parameters:
            parameters[-1].view(-1)[0] = float("nan")
    for number, parameter in enumerate(parameters):
        if "frozen" in faults or ("frozen by half" in faults and number % 2):
            parameter.requires_grad_(False)
    if "hooks" in faults:
        model.register_forward_hook(lambda module, args, out: out * 1.0)
    if "half" in faults:
        model.to(torch.bfloat16)
    if "double" in faults:
        model.double()


def one_loss(model: nn.Module, plan: Plan, step: int) -> Tensor:
    """The forward pass of a step, with what is wrong with it."""
    faults = plan.faults
    x = inputs(plan, step)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    x = x.to(dtype) if x.is_floating_point() else x
    if "eval" in faults:
        model.eval()
    if "raises in forward" in faults and step == 2:
        raise ValueError("in the middle of the step")
    if "deep copies" in faults:
        copy.deepcopy(model)(x)
    if "no_grad" in faults:
        with torch.no_grad():
            model(x)
    weights = dict(model.named_parameters())
    out = torch.func.functional_call(model, weights, (x,)) if "functional" in faults else model(x)
    if "detached" in faults and step % 2:
        out = out.detach().requires_grad_()
    if "raises in backward" in faults and step == 3:
        out = Raising.apply(out)
    if "in place target" in faults:
        out = out.clone()
        out[:, 0] += 1
    return LOSSES[plan.loss](out.float())


def run(plan: Plan) -> list[Tensor]:
    """The training of a plan: all that it changed, and the errors that it ran into, in `plan.raised`."""
    plan.raised.clear()
    faults, draw = plan.faults, random.Random(plan.seed + 2)
    model: Any = built(plan)
    others: list[Any] = []
    losses: list[Tensor] = []
    try:
        with torch.no_grad():
            model.eval()(inputs(plan, 0))  # lazy modules
        model.train()
        spoil(model, faults)
        optimizer = draw.choice(OPTIMIZERS)(list(model.parameters()))
        others.append(optimizer)
        if "second model" in faults:
            others.append(torch.optim.SGD(nn.Linear(2, 2).parameters(), 0.1))
        if "meta" in faults:
            nn.Linear(3, 3, device="meta")(torch.empty(2, 3, device="meta")).sum().backward()
    except (ValueError, RuntimeError, IndexError) as error:
        plan.raised.append(f"{type(error).__name__}: {error}"[:80])
        return state_of(model)
    for step in range(STEPS):
        try:
            losses.append(one_step(model, optimizer, plan, step))
        except (ValueError, RuntimeError, KeyError, IndexError) as error:  # the user's own, and what they run into
            plan.raised.append(f"{type(error).__name__}: {error}"[:80])
    return state_of(model, *others, *losses)


def one_step(model: Any, optimizer: torch.optim.Optimizer, plan: Plan, step: int) -> Tensor:
    """A step of the loop, with what is wrong with it."""
    faults = plan.faults
    if "no zero_grad" not in faults and not ("accumulated" in faults and step % 2):
        optimizer.zero_grad()
    if "layer replaced" in faults and step == 2:
        model[-1] = nn.Linear(model[-1].in_features, 3)
    if "closure" in faults:
        found: list[Tensor] = []

        def closure() -> float:
            optimizer.zero_grad()
            found.append(one_loss(model, plan, step))
            found[-1].backward()  # type: ignore[no-untyped-call]
            return float(found[-1])

        optimizer.step(closure)
        return found[-1].detach()
    loss = one_loss(model, plan, step)
    if "no backward" not in faults:
        loss.backward(retain_graph="retained" in faults)  # type: ignore[no-untyped-call]
    if "clipped" in faults:
        nn.utils.clip_grad_norm_(list(model.parameters()), 0.1)
    if "zero_grad before step" in faults:
        optimizer.zero_grad()
    if "no step" not in faults and not ("accumulated" in faults and not step % 2):
        optimizer.step()
    return loss.detach()
