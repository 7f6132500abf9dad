"""What the loaders hand out in measured steps, beside what the model and the loss are given there: a batch that nobody uses."""

from __future__ import annotations

from netdoctor.data import TensorFacts

Form = tuple[int, int]  # (dimensions, samples) of a tensor: sequences are padded to another length in each batch


class HandedOut:
    """The first batch that a loader hands out in each measured step, as hashes of its tensors by form. Keeps no tensor."""

    def __init__(self) -> None:
        self._steps: dict[int, dict[Form, set[int]]] = {}
        self._first_of: dict[int, int] = {}

    def wants(self, step: int, most: int) -> bool:
        """Whether this is the first batch of a step, and of no more than `most` steps."""
        return step not in self._steps and len(self._steps) < most

    def add(self, step: int, codes: dict[tuple[int, ...], list[int]], first_of: int = 0) -> None:
        """The hashes of a batch's tensors, by their shapes; `first_of`: of so many batches it was the first."""
        self._first_of[step] = first_of
        forms = self._steps[step] = {}
        for shape, found in codes.items():
            forms.setdefault(_form(shape), set()).update(found)

    def unused(self, inputs: list[TensorFacts]) -> int:
        """How many different batches were handed out while all that the models were given stayed the same from step to step.

        Only tensors of the form of an input count, in steps in which that was measured; 0 where any input changed, or was
        handed out itself in more than one step. Targets tell nothing: those of a contrastive loss never change.
        """
        if not inputs or any(len(set(facts.batches)) > 1 for facts in inputs):
            return 0
        return max(self._beside(facts) for facts in inputs)

    def first_again(self, inputs: list[TensorFacts]) -> int:
        """Of how many batches the same first one was handed out in every measured step, and given to the models; 0 otherwise."""
        if not inputs or any(len(set(facts.batches)) > 1 for facts in inputs):
            return 0
        facts = inputs[0]
        used = [not self._of(int(step), facts).isdisjoint(facts.batches) for step in facts.steps]
        return min((self._first_of.get(int(step), 0) for step in facts.steps), default=0) if all(used) else 0

    def _of(self, step: int, facts: TensorFacts) -> set[int]:
        return self._steps.get(step, {}).get(_form(facts.shape), set())

    def _beside(self, facts: TensorFacts) -> int:
        kept = [self._of(int(step), facts) for step in facts.steps]
        seen = [frozenset(codes) for codes in kept if codes]
        used = sum(not codes.isdisjoint(facts.batches) for codes in seen)
        return len(set(seen)) if used <= 1 else 0


def _form(shape: tuple[int, ...]) -> Form:
    return len(shape), shape[0]
