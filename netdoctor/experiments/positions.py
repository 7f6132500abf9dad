"""Does the model know in which order its sequence comes, and would it predict better if it did?"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from netdoctor.capture.step import Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant, Entry, walk
from netdoctor.errors import why_it_failed
from netdoctor.experiments import patches
from netdoctor.experiments.held_out import learn
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.tiny_batch import rewrite
from netdoctor.recording import Arm, Recording

ORDER, WITHOUT, WITH = "positions/order", "positions/without", "positions/with"
SHUFFLED = "positions/shuffled"
SAME = 1e-4  # of the output's magnitude: sums over permuted positions are rounded in another order
FEWEST = 4  # positions
_POSITIONAL = re.compile(r"(^|[._])(pos|position|positions|positional|pe|wpe)([._]|$|\w*emb|\w*enc)", re.IGNORECASE)


def order(recording: Recording, step: TrainingStep, budget: Budget) -> dict[str, Arm]:
    """The arm "positions/order", and where the model is blind to the order, "positions/without", "/shuffled" and "/with".

    In evaluation mode all sequences (images as patches too) of the first model call are permuted alike. Facts: "blind" (the output
    stays the same, or is permuted in the same way), "length", "unused" (a module or parameter whose name says that it is
    positional). The other arms learn from captured batches without and with sinusoidal positions (Vaswani et al.,
    2017) added to the first embedding, and with the same ones in a random order, another one for each sample: what these
    give as well is no knowledge of the order. Their losses are those of held-out batches.
    """
    try:
        with quiet():
            facts = _look(step)
    except Exception as error:
        return {ORDER: Arm(ORDER, np.empty(0), failure=why_it_failed(error))}
    if facts is None:
        return {}
    arms = {ORDER: Arm(ORDER, np.empty(0), 0.0, facts)}
    if facts["blind"]:
        length = int(float(facts["length"]))
        arms[WITHOUT] = learn(WITHOUT, step, lambda sandbox: None, budget.share(budget.left / 3))
        shuffled = partial(_add_positions, length=length, drawn=torch.Generator().manual_seed(5))
        arms[SHUFFLED] = learn(SHUFFLED, step, shuffled, budget.share(budget.left / 2))
        arms[WITH] = learn(WITH, step, partial(_add_positions, length=length), budget.share(budget.left))
    return arms


def _look(step: TrainingStep) -> dict[str, float | str | bool] | None:
    backward = step.iterations[0].backwards[0]
    refuse_overwritten(backward)
    entry = backward.entries[0]
    found: list[Constant] = []
    walk((entry.args, entry.kwargs), lambda item: found.append(item) if isinstance(item, Constant) else None)
    first = next((c.tensor for c in found if c.tensor.dim() in (2, 3, 4)), None)
    if entry.module is None or first is None:
        return None
    patch = patches.patch_size(entry.module, first)
    if patch is None and (first.dim() == 4 or not _has_place(entry.module, first)):
        return None
    length = int(first.shape[1]) if patch is None else math.prod(patches.grid(first, patch))
    if length < FEWEST or (first.dim() == 2 and first.is_floating_point()):
        return None
    permutation = torch.randperm(length, generator=torch.Generator().manual_seed(3)).to(first.device)

    def move(tensor: Tensor) -> Tensor:
        if patch is not None:
            return patches.permuted(tensor, patch, permutation) if tensor.shape == first.shape else tensor
        return tensor.index_select(1, permutation) if tensor.dim() > 1 and tensor.shape[1] == length else tensor

    plain = _outputs(step, backward, entry)
    moved = _outputs(step, backward, _permuted(entry, move))
    blind = bool(plain) and all(_follows(a, b, permutation) for a, b in zip(plain, moved, strict=True))
    unused = [name for name, _ in entry.module.named_modules() if _POSITIONAL.search(name)]
    unused += [name for name, _ in entry.module.named_parameters() if _POSITIONAL.search(name)]
    said = "its output does not depend on the order of the positions" if blind else "the order matters"
    return {"blind": blind, "length": float(length), "unused": unused[0] if unused else "", "says": said}


def _has_place(module: nn.Module, first: Tensor) -> bool:
    """Whether there is a layer after which positions could be added: an embedding of tokens, a dense layer of vectors."""
    kind = nn.Linear if first.is_floating_point() else nn.Embedding
    return any(isinstance(child, kind) for child in module.modules())


def _permuted(entry: Entry, move: Callable[[Tensor], Tensor]) -> Entry:
    """The call with all tensors permuted that count positions."""

    def change(constant: Constant) -> Constant:
        new = move(constant.tensor.detach())
        return Constant(new, new._version)

    return replace(entry, args=rewrite(entry.args, change), kwargs=rewrite(entry.kwargs, change))


def _outputs(step: TrainingStep, backward: Backward, entry: Entry) -> list[Tensor]:
    replay = Replay(step.copies())
    context = entry.context and replace(entry.context, grad=False)
    replay.run_entry(replace(entry, modes=(False,) * len(entry.modes), context=context))
    made = [replay.value(number) for number in entry.outputs]
    return [t.detach().double() for t in made if t.is_floating_point() and t.numel() > 1]


def _follows(before: Tensor, after: Tensor, permutation: Tensor) -> bool:
    """Whether the output stayed the same, or was permuted along with the input."""
    if before.shape != after.shape or not bool(before.isfinite().all()):
        return False
    limit = SAME * float(before.abs().mean()) + 1e-12
    spread = float((before - before.mean(0, keepdim=True)).abs().mean())
    if spread <= limit:
        return False  # an output that is the same for all samples says nothing
    candidates = [before]
    if before.dim() > 1 and before.shape[1] == len(permutation):
        candidates.append(before.index_select(1, permutation))
    return any(float((after - candidate).abs().mean()) <= limit for candidate in candidates)


def _add_positions(sandbox: Sandbox, length: int, drawn: torch.Generator | None = None) -> None:
    """Add sinusoidal positions to what the first embedding (or dense layer, or convolution) gives for whole sequences; with
    `drawn` to each sample in an order of its own."""
    done: list[nn.Module] = []
    for module in sandbox.modules():
        kinds = nn.Embedding if any(isinstance(c, nn.Embedding) for c in module.modules()) else nn.Linear
        for child in module.modules():
            if isinstance(child, (kinds, nn.Conv1d, nn.Conv2d)):
                child.register_forward_hook(_adding(done, length, drawn))


def _adding(done: list[nn.Module], length: int, drawn: torch.Generator | None) -> Callable[..., Any]:
    def hook(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        convolved = isinstance(module, nn.Conv1d | nn.Conv2d)
        rows = output.flatten(2).transpose(1, 2) if convolved and output.dim() > 2 else output
        if rows.dim() != 3 or rows.shape[1] != length or (done and done[0] is not module):
            return output
        if not done:
            done.append(module)
        places = torch.arange(length).expand(len(rows), -1)
        if drawn is not None:
            places = torch.rand(len(rows), length, generator=drawn).argsort(1)
        added = _sinusoids(length, rows.shape[2])[places].to(output) * output.detach().square().mean().sqrt()
        return output + (added.transpose(1, 2).reshape(output.shape) if convolved else added)

    return hook


def _sinusoids(length: int, width: int) -> Tensor:
    """(length, width), of mean square one half: sines and cosines of geometrically growing wavelengths."""
    at = torch.arange(length, dtype=torch.float64)[:, None]
    rates = torch.exp(-math.log(1e4) * torch.arange(0, width, 2, dtype=torch.float64) / width)
    return torch.cat([torch.sin(at * rates), torch.cos(at * rates)], 1)[:, :width]
