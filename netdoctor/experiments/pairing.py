"""Is it any easier to learn the true pairs of inputs and targets than the same pairs shuffled?"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from netdoctor.capture.functions import plain
from netdoctor.capture.step import Iteration, TrainingStep
from netdoctor.capture.tape import Constant, Entry
from netdoctor.checks.data.harm import level
from netdoctor.checks.data.mixing import labelled
from netdoctor.errors import why_it_failed
from netdoctor.experiments.adam import Adam
from netdoctor.experiments.loss_terms import BINARY_LOSSES, CLASS_LOSSES, DIFFERENCES
from netdoctor.experiments.sandbox import Budget, Sandbox, quiet
from netdoctor.experiments.tiny_batch import input_rows
from netdoctor.experiments.treatments.treatment import Bench, with_constants
from netdoctor.recording import Arm, Recording

STEPS = 240  # ten to forty passes over the captured samples: enough to learn much of them by heart
SAMPLES = 256  # as many as make true pairs clearly easier than shuffled ones, few enough to be learned
BY_HEART = (
    0.75  # of the first loss: from there on shuffled pairs, which are harder, are learned in as many steps as well
)
TIMED = 5  # steps
PASSES = 30  # over the samples where steps are slow: a recurrence learned 64 by heart in as many, and not more of them
DIFFERENT = 32  # samples: a table of 25 is learned by heart as fast in any order, 64 of a recurrence were not
LEAST = 2  # batches: with 64 samples the true pairs of that recurrence were as much easier as with 128
RATES = ("0.001", "0.01", "0.0001")  # Adam's, of the overfit experiment; the likeliest first
_USUAL = (1e-4, 1e-2)  # an Adam's own rates that are worth keeping where it fitted a tiny batch
ARMS = ("true", "shuffled", "shuffled again")
_COMPARING = CLASS_LOSSES | BINARY_LOSSES | DIFFERENCES | {"sub", "rsub"}


def trials(recording: Recording, step: TrainingStep, budget: Budget, say: Callable[[str], None]) -> dict[str, Arm]:
    """The arms "pairing/true", "pairing/shuffled" and "pairing/shuffled again", on the captured iterations.

    All start alike and see the same inputs in the same order; in the shuffled ones the targets are permuted over the
    samples, once: one that comes again has its new target again. They are trained with that Adam which fitted a tiny
    batch, at 1e-3 where another optimizer of the script's did. Where steps are slow they have fewer batches, so that
    these are seen often enough; so they have where the true pairs are not learned by heart. No arm where nothing fitted
    a tiny batch, or the targets are no labels.
    """
    fitted = [float(rate) for rate in RATES if _reached(recording, f"adam {rate}")]
    if not fitted and _reached(recording, "own"):
        fitted = [_own_rate(recording)]  # the sweep ends with the first setting that fits, the script's own
    if not fitted or len(step.iterations) < LEAST or not labelled(recording):
        return {}
    with quiet():
        enough = _enough(recording, step, budget.left / len(ARMS))
    arms = _compared(step, step.iterations[:enough], fitted[0], budget, say)
    if enough > LEAST and not _by_heart(arms):
        fewer = step.iterations[: max(LEAST, enough // 4)]
        arms = _compared(step, fewer, fitted[0], budget, say) or arms
    return arms


def _compared(
    step: TrainingStep, iterations: list[Iteration], rate: float, budget: Budget, say: Callable[[str], None]
) -> dict[str, Arm]:
    """The arms on these iterations; the true one alone where it learns too little for the others to be told from it."""
    arms: dict[str, Arm] = {}
    for number, name in enumerate(ARMS):
        if budget.left <= 0:
            break
        say(f"learning {name} pairs")
        share = budget.share(budget.left / (len(ARMS) - number))
        arms[f"pairing/{name}"] = _arm(step, iterations, f"pairing/{name}", rate, number, share)
        if arms[f"pairing/{name}"].failure or (len(iterations) > LEAST and not _by_heart(arms)):
            break
    return arms


def _by_heart(arms: dict[str, Arm]) -> bool:
    """Whether the true pairs were learned well on the way to by heart, so that shuffled ones can be as well."""
    true = arms.get("pairing/true")
    if true is None or true.failure or not true.losses.size:
        return True  # nothing that fewer samples would mend
    return level(true) <= BY_HEART * float(true.losses[0])


def _reached(recording: Recording, setting: str) -> bool:
    arm = recording.arms.get(f"overfit/{setting}")
    return arm is not None and not arm.failure and bool(arm.facts.get("reached"))


def _own_rate(recording: Recording) -> float:
    """What the script's own optimizer fitted a tiny batch with, if it is an Adam; else the usual rate of one."""
    own = float(recording.arms["overfit/own"].facts.get("lr", 0.0))
    adam = any("adam" in optimizer.type.lower() for optimizer in recording.optimizers)
    return own if adam and _USUAL[0] <= own <= _USUAL[1] else float(RATES[0])


def _enough(recording: Recording, step: TrainingStep, seconds: float) -> int:
    """How many iterations hold `SAMPLES` samples, at least 6, as a batch may say little; fewer where the seconds of an
    arm are too few for `PASSES` over them."""
    size = max([facts.shape[0] for facts in recording.inputs], default=1)
    wanted = min(len(step.iterations), max(6, -(-SAMPLES // size)))
    steps = int(seconds / max(1e-9, _pace(step)))
    return wanted if steps >= STEPS else max(LEAST, min(wanted, steps // PASSES))


def _pace(step: TrainingStep) -> float:
    """The seconds of a step, taken now: the median of a few, as the first one warms up."""
    sandbox, times = Sandbox(step, optimizer=lambda ps: Adam(ps, lr=0.0)), []
    for iteration in (step.iterations * TIMED)[:TIMED]:
        began = time.perf_counter()
        sandbox.iterate(iteration)
        times.append(time.perf_counter() - began)
    return float(np.median(times))


def _arm(step: TrainingStep, iterations: list[Iteration], name: str, rate: float, seed: int, budget: Budget) -> Arm:
    try:
        with quiet():
            sandbox = Sandbox(step, optimizer=lambda ps: Adam(ps, lr=rate))
            bench = Bench(sandbox, iterations)
            if seed:
                shuffle = _Shuffle(iterations, seed)
                bench.rewrite(shuffle.apply)
                if not shuffle.moved:
                    return Arm(name, np.empty(0), failure="the targets could not be told from the rest")
                if 0 < shuffle.different < DIFFERENT:
                    few = f"only {shuffle.different} different samples were captured: they are learned by heart in any order"
                    return Arm(name, np.empty(0), failure=few)
            run = bench.sandbox.run(bench.iterations, STEPS, budget)
    except Exception as error:  # the user's code failed on the copy: an answer, not a fault
        return Arm(name, np.empty(0), failure=why_it_failed(error))
    facts: dict[str, float | str | bool] = {"lr": rate, "ended": run.ended, "batches": float(len(iterations))}
    return Arm(name, np.asarray(run.losses), run.seconds, facts)


class _Shuffle:
    """A permutation of the targets over the different samples of some iterations.

    A sample is known by what the model is given of it and by its target: inputs that come with several targets keep
    several, or the shuffled pairs would be the easier ones. Where it cannot be told, the targets of each batch are
    permuted by themselves, and a sample that comes again has another target each time.
    """

    def __init__(self, iterations: list[Iteration], seed: int) -> None:
        self.moved = 0  # tensors
        self._seed = seed
        self._keys: dict[int, list[bytes]] = {}  # by the loss entry
        self._targets: dict[tuple[int, bytes], Tensor] = {}  # by the place of the tensor in the entry, and the sample
        for action in (action for iteration in iterations for action in iteration.actions):
            for entry in () if action.backward is None else filter(_compares, action.backward.entries):
                self._learn(entry, Iteration([action]))
        keys = list(dict.fromkeys(key for known in self._keys.values() for key in known))
        self.different = len(keys)  # samples; 0 where they cannot be told
        order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
        self._gets = {key: keys[other] for key, other in zip(keys, order, strict=True)}

    def _learn(self, entry: Entry, iteration: Iteration) -> None:
        size = next((tensor.shape[0] for tensor in _of_samples(entry)), 0)
        rows = input_rows(iteration, size) if size else None
        if rows is None:
            return
        targets = [tensor for tensor in _of_samples(entry) if tensor.shape[0] == size]
        pairs = torch.cat([rows, *(t.detach().reshape(size, -1).to(rows) for t in targets)], 1)
        keys = self._keys[id(entry)] = [pair.tobytes() for pair in pairs.cpu().numpy()]
        for place, tensor in enumerate(targets):
            for key, target in zip(keys, tensor.detach(), strict=True):
                self._targets.setdefault((place, key), target)

    def apply(self, entry: Entry) -> Entry:
        """The entry of a loss with its targets moved; any other as it is."""
        if not _compares(entry):
            return entry
        keys, place = self._keys.get(id(entry)), iter(range(len(_of_samples(entry))))

        def moved(tensor: Tensor) -> Tensor:
            if tensor.dim() == 0 or tensor.shape[0] < 2 or (keys and tensor.shape[0] != len(keys)):
                return tensor
            self.moved += 1
            if keys:
                at = next(place)
                return torch.stack([self._targets[at, self._gets[key]] for key in keys])
            generator = torch.Generator().manual_seed(1000 * self._seed + self.moved)
            return tensor[torch.randperm(tensor.shape[0], generator=generator).to(tensor.device)]

        return with_constants(entry, moved)


def _compares(entry: Entry) -> bool:
    return entry.module is None and plain(entry.name) in _COMPARING


def _of_samples(entry: Entry) -> list[Tensor]:
    """The constants of a loss with a row per sample."""
    found = entry.meanings()
    return [c.tensor for c in found if isinstance(c, Constant) and c.tensor.dim() and c.tensor.shape[0] > 1]
