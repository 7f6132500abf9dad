"""Masks of attention read while a copy runs, and turned round on the lines where they hide the wrong part."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from netdoctor.capture.source import user_position
from netdoctor.capture.step import Replay, TrainingStep, refuse_overwritten
from netdoctor.capture.tape import Backward, Constant, walk
from netdoctor.checks.numerics.operations import canonical
from netdoctor.checks.structure.attention_masks import BY_HAND, masks
from netdoctor.checks.structure.inverted_mask import TREATMENT
from netdoctor.checks.structure.mask_trials import SEEN
from netdoctor.experiments.held_out import evaluating
from netdoctor.experiments.sandbox import Sandbox
from netdoctor.experiments.treatments.masks import Call, Mask, beside_causal, only_padding, turned
from netdoctor.experiments.treatments.operations import Exchange, exchange_operations
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment
from netdoctor.recording import Recording

Line = tuple[str, int]
BATCHES = 4  # that are looked at until one holds padding


class Site(NamedTuple):
    """Which mask of a step: the path of its module with the number of the model before it ("" in the loop), the kind of call and
    the argument, and the user's line."""

    module: str
    kind: str
    argument: str
    file: str
    line: int


@dataclass(slots=True)
class Reader:
    """What masks were seen. `contents` is what the step was given.

    `wrong` maps each mask that hides what it should show to what is known of it: "kind" ("padding" or "causal"), "kept" (the
    share of keys that take part), "beside" (a right causal part is joined with it). `hides`: some mask hid a part of the keys.
    """

    contents: list[Tensor]
    wrong: dict[Site, dict[str, float | str | bool]] = field(default_factory=dict)
    hides: bool = False
    seen: list[tuple[Site, Mask]] = field(default_factory=list)

    def note(self, site: Site, mask: Mask) -> None:
        """A mask was given to a call."""
        if bool(mask.keep.all()):
            return
        self.hides = self.hides or bool(mask.keep.any())
        self.seen.append((site, mask))
        kind = "causal" if turned(mask) else "padding" if only_padding(mask, self.contents) else ""
        if kind:
            kept = float(mask.keep.double().mean())
            self.wrong[site] = {"kind": kind, "kept": kept, "beside": kind == "padding" and beside_causal(mask)}

    def same_elsewhere(self) -> None:
        """The same mask in other layers is wrong as well, whatever their keys are made of."""
        known = [(mask.keep, self.wrong[site]) for site, mask in self.seen if site in self.wrong]
        for site, mask in self.seen:
            for keep, verdict in known:
                if site not in self.wrong and keep.shape == mask.keep.shape and bool((keep == mask.keep).all()):
                    self.wrong[site] = verdict
        self.seen.clear()


def read(recording: Recording, step: TrainingStep) -> Reader:
    """What the masks of the first captured batches keep, read in evaluation mode from the weights of before the first step."""
    reader = Reader([])
    for iteration in step.iterations[:BATCHES]:
        with ExitStack() as stack:
            bench = Bench(Sandbox(step), [iteration], stack)
            _watch(bench, recording, reader)
            replay = Replay(bench.sandbox.copies)
            for backward in bench.iterations[0].backwards:
                refuse_overwritten(backward)
                reader.contents = _contents(backward)
                replay.loss(evaluating(backward))
        reader.same_elsewhere()
        if reader.wrong or reader.hides:
            break
    return reader


def _contents(backward: Backward) -> list[Tensor]:
    """The tensors of two dimensions or more that a step was given."""
    found: dict[int, Tensor] = {}

    def note(item: Any) -> None:
        if isinstance(item, Constant) and item.tensor.dim() > 1 and not item.tensor.is_complex():
            found[id(item.tensor)] = item.tensor

    for entry in backward.entries:
        walk((entry.args, entry.kwargs), note)
    return list(found.values())


def _watch(bench: Bench, recording: Recording, reader: Reader) -> None:
    """Let the reader see every mask of the copy's next step."""

    def noting(site: Callable[[str], Site], call: Call) -> tuple[Any, Any]:
        for mask in call.masks():
            reader.note(site(mask.argument), mask)
        return call.args, call.kwargs

    lines = {(o.file, o.line, canonical_kind(o.name)) for o in masks(recording.graph)} if recording.graph else set()
    _exchange(bench, lines, noting)


def invert(bench: Bench, wrong: Iterable[Site]) -> None:
    """Turn these masks round while the copy trains."""
    sites = frozenset(wrong)

    def turning(site: Callable[[str], Site], call: Call) -> tuple[Any, Any]:
        for mask in call.masks():
            if site(mask.argument) in sites:
                args, kwargs = call.inverted(mask.argument)
                call = Call(call.kind, args, kwargs)
        return call.args, call.kwargs

    _exchange(bench, {(site.file, site.line, site.kind) for site in sites}, turning)


def canonical_kind(name: str) -> str:
    """What a call does with a mask, whichever form of it was written: "add" for `iadd`."""
    return canonical(name) if name in BY_HAND else name


def _exchange(
    bench: Bench,
    lines: Iterable[tuple[str, int, str]],
    change: Callable[[Callable[[str], Site], Call], tuple[Any, Any]],
) -> None:
    """Show the calls of these kinds on these lines to `change`, in all modules and in the loop; it gives their new arguments."""
    places: list[tuple[str, Any]] = [("", None)]
    for number, top in enumerate(bench.sandbox.modules()):
        places += [(f"{number}:{path}", module) for path, module in top.named_modules()]
    exchanges = []
    for file, line, kind in sorted(set(lines)):
        for path, module in places:
            run = _changed(change, path, kind, (file, line))
            exchanges.append(Exchange(module, frozenset({kind}), run, (file, line)))
    exchange_operations(bench, exchanges)


def _changed(
    change: Callable[[Callable[[str], Site], Call], tuple[Any, Any]], path: str, kind: str, line: Line
) -> Callable[[Any, Any, Any], Any]:
    def run(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
        position = user_position(Replay.run_entry.__code__)
        file, number = position if position[0] else line
        args, kwargs = change(lambda argument: Site(path, kind, argument, file, number), Call(kind, args, dict(kwargs)))
        return func(*args, **kwargs)

    return run


def inverted_masks(case: Case) -> Treatment | None:
    """The masks that hide what they should show, turned round."""
    seen = case.recording.arms.get(SEEN)
    wrong = {} if seen is None or "kind" not in seen.facts else read(case.recording, case.step).wrong
    return Treatment(lambda bench: invert(bench, wrong)) if wrong else None


TREATMENTS: dict[str, Maker] = {TREATMENT: inverted_masks}
