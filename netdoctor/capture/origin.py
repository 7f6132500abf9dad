"""Finds the first operation that made a NaN or an Inf, forward or backward, by running the very step again on a copy.

The search starts where the damage shows (the loss, or a gradient) and walks back along non-finite values to the operation that
made the first one out of finite inputs. What is made on purpose and removed again (a mask of -inf before a softmax) is no origin.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from netdoctor.capture import lineage
from netdoctor.capture.births import Maker
from netdoctor.capture.constants import computed_again
from netdoctor.capture.functions import is_library_leaf
from netdoctor.capture.naming import SEPARATOR
from netdoctor.capture.observer import Observer
from netdoctor.capture.ranks import alone
from netdoctor.capture.source import source_line, variable_name
from netdoctor.capture.step import Copies, Replay, preserved_random_state
from netdoctor.capture.tape import Backward
from netdoctor.capture.watch import NODE_KEY, Watch, Watched, backward_nodes, is_bad
from netdoctor.errors import CannotReplayError
from netdoctor.recording import Culprit, Operand, Origin, SourceLine

_MASKING = frozenset(
    {"masked_fill", "where", "full", "full_like", "new_full", "triu", "tril", "setitem", "fill", "masked_scatter"}
)
# operations that masks of -inf are made for, or pass through
_MASKED_NAMES = """
softmax log_softmax logsumexp add sub attention scaled_dot_product_attention
multi_head_attention_forward max min cross_entropy nll_loss
"""
_MASKED = frozenset(_MASKED_NAMES.split())
_MAX_LISTED = 16
_MAX_ALSO = 8


def find_origin(observer: Observer, backwards: list[Backward], where: str) -> Origin | None:
    """The origin of a bad loss (`where`: "forward"), gradient ("backward"), layer's output ("layer") or weight ("optimizer").

    None for a layer's output that is not finite on purpose, or is when it is looked at closely.
    Must be called before the optimizer touches the weights. The user's model, random states and gradients are left as they were.
    """
    broken = _broken_parameter(observer, where == "optimizer")
    if broken is not None or where == "optimizer":
        return broken
    phase = "forward" if where == "layer" else where
    if not backwards:
        note = "the operations behind the loss could not be followed"
        return Origin(phase, "NaN", observer.step, reproduced=False, note=note)
    modules = {id(e.module): e.module for b in backwards for e in b.entries if e.module is not None}
    try:
        with preserved_random_state(), torch.enable_grad(), alone():
            return _Search(observer, Copies(modules.values(), []), list(modules.values())).run(backwards, where)
    except CannotReplayError as error:
        return Origin(phase, "NaN", observer.step, reproduced=False, note=str(error))


def _broken_parameter(observer: Observer, just_now: bool) -> Origin | None:
    """A parameter that is not finite before the step ran, or `just_now` after it: the optimizer made it so, or it was loaded so."""
    for parameter, name in _trained(observer):
        nan, inf = is_bad(parameter.detach())
        if nan or inf:
            steps = observer.step + just_now
            phase = "optimizer" if steps > 0 or observer.recorder.counts.get("step") else "parameter"
            owner = observer.names.parameter_owner(parameter)
            return Origin(
                phase,
                "NaN" if nan else "Inf",
                max(0, steps - 1) if phase == "optimizer" else 0,
                parameter=name,
                module="" if owner is None else observer.names.key_of(owner),
                inputs=(_operand(parameter.detach(), name.rpartition(SEPARATOR)[2]),),
                source=None if owner is None else observer.names.built_at(owner),
            )
    return None


def _trained(observer: Observer) -> Iterator[tuple[Tensor, str]]:
    yield from observer.program.parameters()
    for leaf in observer.program.loose():
        yield leaf, observer.names.parameter_key(leaf) or observer.names.name_loose(leaf, f"parameter{leaf.dim()}d")


class _Search:
    def __init__(self, observer: Observer, copies: Copies, modules: list[nn.Module]) -> None:
        self._observer = observer
        self._replay = Replay(copies)
        self._originals: dict[int, nn.Module] = {}
        self._parameters: dict[int, str] = {}
        self._broken_backward: list[Watched] = []  # whose gradient is bad though what they received was finite
        self._watch = Watch(self._replay, lambda tensor: self._parameters.get(id(tensor), ""))
        for module in modules:
            copied = copies.of(module)
            self._watch.attach(copied)
            _mend_running_statistics(copied)
            for old, new in zip(module.modules(), copied.modules(), strict=True):
                self._originals[id(new)] = old
            for (name, _), new_b in zip(module.named_buffers(), copied.buffers(), strict=True):
                self._parameters[id(new_b)] = f"{observer.names.key_of(module)}.{name}".replace(
                    f"{SEPARATOR}.", SEPARATOR
                )
            for old_p, new_p in zip(module.parameters(), copied.parameters(), strict=True):
                self._parameters[id(new_p)] = observer.names.parameter_key(old_p)

    def run(self, backwards: list[Backward], where: str) -> Origin | None:
        try:
            for backward in backwards:
                with self._watch:
                    loss = self._replay.loss(backward)
                if not bool(torch.isfinite(loss.detach()).all()):
                    return self._forward(loss)
                found = self._backward(loss) if where == "backward" else self._layer() if where == "layer" else None
                if found is not None:
                    return found
        finally:
            self._watch.close()
        if where == "layer":
            return None
        note = "the step was finite when it was run again"
        return Origin(where, "NaN", self._observer.step, reproduced=False, note=note)

    # --- forward -----------------------------------------------------------------------------------------------------

    def _forward(self, loss: Tensor) -> Origin | None:
        start = self._watch.maker(loss)
        return self._follow([start if start is not None else len(self._watch.operations) - 1])

    def _follow(self, queue: list[int]) -> Origin | None:
        """The earliest origin that non-finite values lead back to from these operations."""
        seen: set[int] = set()
        found: list[tuple[int, Origin]] = []
        while queue:
            index = queue.pop()
            if index in seen:
                continue
            seen.add(index)
            operation = self._watch.operations[index]
            origin, further = self._examine(operation)
            if origin is not None:
                found.append((index, origin))
            queue.extend(further)
        return min(found, key=lambda pair: pair[0])[1] if found else None

    def _examine(self, operation: Watched) -> tuple[Origin | None, list[int]]:
        """(an origin, if it is here; else the operations to go on to)."""
        made_nan = any(is_bad(tensor)[0] for tensor in operation.outputs)
        bad = [(number, *state) for number, state in enumerate(operation.bad) if any(state)]
        if not bad:
            return self._origin(operation, "forward", made_nan), []
        nans = [number for number, nan, _ in bad if nan]
        culprits = nans or [number for number, _, _ in bad]
        if made_nan and not nans and all(self._intended(operation, number) for number in culprits):
            brought = None if operation.name in _MASKED else self._brought(operation)
            return brought or self._origin(operation, "forward", True), []
        further = [operation.makers[number] for number in culprits]
        outside = [number for number, maker in zip(culprits, further, strict=True) if maker is None]
        on = [maker for maker in further if maker is not None]
        if outside and not on:
            return self._from_outside(operation, outside[0], bool(nans)), []
        return None, on

    def _intended(self, operation: Watched, number: int) -> bool:
        """Whether an Inf was put there on purpose: by a masking function or a constant, possibly passed on."""
        queue, seen = [(operation, number)], set()
        while queue:
            reader, index = queue.pop()
            maker = reader.makers[index]
            if maker is None or maker in seen:
                continue
            seen.add(maker)
            producer = self._watch.operations[maker]
            if producer.name in _MASKING:
                continue
            bad = [n for n, state in enumerate(producer.bad) if any(state)]
            if not bad:
                return False
            queue.extend((producer, n) for n in bad)
        return True

    def _is_mask(self, operation: Watched, number: int) -> bool:
        """Whether a non-finite operand is a mask: infinities that were filled in, or beside a single other value."""
        maker, tensor = operation.makers[number], operation.inputs[number]
        if maker is not None:
            return self._intended(operation, number)
        return not bool(torch.isnan(tensor).any()) and len(tensor[torch.isfinite(tensor)].unique()) <= 1

    def _from_outside(self, operation: Watched, number: int, nan: bool) -> Origin:
        """It came from outside of the captured operations: with the batch, or in a parameter."""
        tensor, name = operation.inputs[number], operation.parameters[number]
        made = None if name else self._made_of_data(operation.given[number])
        if made is not None:
            return self._of_data(operation, made, nan)
        bad = ~torch.isfinite(tensor)
        shown = name or variable_name(operation.given[number])
        shown = shown or ("the model's input" if operation.module is not None else "the target or input")
        origin = self._origin(operation, "parameter" if name else "input", nan)
        source = origin.source if name else source_line(*operation.outer)
        return replace(
            origin,
            parameter=name,
            inputs=(_operand(tensor, shown),),
            samples=_rows(bad),
            columns=_columns(bad),
            source=source or origin.source,
        )

    def _layer(self) -> Origin | None:
        """The origin of what the layer gave that the observer points to; None where it was made on purpose."""
        bad = None if self._observer.outputs is None else self._observer.outputs.bad
        for operation in self._watch.operations:
            own = operation.module is not None and self._originals.get(id(operation.module)) is bad
            if own and any(any(is_bad(tensor)) for tensor in operation.outputs):
                origin = self._follow([operation.index])
                meant = (
                    origin is not None
                    and origin.kind == "Inf"
                    and (origin.operation in _MASKING or origin.phase == "input")
                )
                if origin is not None and not meant:
                    return origin
        return None

    # --- what the loop computed of data alone ---------------------------------------------------------------------------

    def _made_of_data(self, tensor: Tensor) -> Maker | None:
        """The operation of the user's that made a constant of the tape out of finite values."""
        found = self._observer.tape.births.maker(tensor)
        if found is None:
            found = self._observer.containment.run("assignment", computed_again, tensor)
        return None if found is None or found.name in _MASKING else found

    def _brought(self, operation: Watched) -> Origin | None:
        """The origin outside of the captured operations of the infinite operands of one that is not made for masks."""
        queue, seen = [operation], {operation.index}
        while queue:
            reader = queue.pop()
            for number, state in enumerate(reader.bad):
                maker = reader.makers[number] if any(state) else None
                if any(state) and maker is None and not reader.parameters[number]:
                    made = self._made_of_data(reader.given[number])
                    if made is not None:
                        return self._of_data(reader, made, False)
                    if not self._is_mask(reader, number):
                        return self._from_outside(reader, number, False)
                elif maker is not None and maker not in seen:
                    seen.add(maker)
                    queue.append(self._watch.operations[maker])
        return None

    def _of_data(self, reader: Watched, made: Maker, nan: bool) -> Origin:
        inputs = tuple(_operand(t, "input" if n == 0 else f"operand {n}") for n, t in enumerate(made.inputs[:4]))
        base = self._origin(reader, "forward", nan)
        return replace(
            base,
            operation=made.name,
            module="",
            inputs=inputs,
            output=None,
            attributes=made.attributes,
            source=source_line(*made.position),
            upstream="",
            upstream_source=None,
            downstream=(),
            also=(),
            constant=True,
        )

    # --- backward ----------------------------------------------------------------------------------------------------

    def _backward(self, loss: Tensor) -> Origin | None:
        first: list[tuple[Any, bool, Tensor]] = []

        def hook_for(node: Any) -> Any:
            def hook(given: tuple[Tensor | None, ...], received: tuple[Tensor | None, ...]) -> None:
                if any(g is not None and any(is_bad(g.detach())) for g in received):
                    return
                for gradient in given:
                    if gradient is not None and any(is_bad(gradient.detach())):
                        first.append((node, is_bad(gradient.detach())[0], gradient.detach()))
                        return

            return hook

        nodes = [node for node in backward_nodes(loss) if NODE_KEY in node.metadata]
        handles = [node.register_hook(hook_for(node)) for node in nodes]
        try:
            torch.autograd.backward(loss)
        finally:
            for handle in handles:
                handle.remove()
        if not first:
            return None
        self._broken_backward = [self._watch.operations[n.metadata[NODE_KEY]] for n, _, _ in first]
        node, nan, gradient = first[0]
        operation = self._watch.operations[node.metadata[NODE_KEY]]
        numbers = [n for n, state in enumerate(operation.bad) if any(state) and not self._is_mask(operation, n)]
        if numbers:  # the operation before made it, or the batch brought it; it only took until here to do harm
            found = self._follow([operation.index])
            if found is not None:
                return found
        return self._origin(operation, "backward", nan, gradient)

    # --- what is said of an operation --------------------------------------------------------------------------------

    def _origin(self, operation: Watched, phase: str, nan: bool, gradient: Tensor | None = None) -> Origin:
        module = None if operation.module is None else self._originals.get(id(operation.module))
        made = gradient if gradient is not None else next((t for t in operation.outputs if any(is_bad(t))), None)
        operations, names = self._watch.operations, self._observer.names
        before, zeros = lineage.upstream(operations, operation), lineage.zero_maker(operations, operation)
        return Origin(
            phase,
            "NaN" if nan else "Inf",
            self._observer.step,
            operation.name,
            "" if module is None else names.key_of(module),
            operation.call,
            inputs=tuple(_operand(t, self._operand_name(operation, n)) for n, t in enumerate(operation.inputs[:4])),
            output=None if made is None else _operand(made, "gradient" if gradient is not None else "output"),
            attributes=operation.attributes,
            samples=() if made is None else _rows(~torch.isfinite(made)),
            source=self._source(operation, module),
            upstream="" if before is None else before.name,
            upstream_source=lineage.line_of(before),
            born="" if zeros is None else zeros.name,
            born_source=lineage.line_of(zeros),
            downstream=lineage.downstream(operations, operation),
            also=self._also(operation, phase),
        )

    def _also(self, operation: Watched, phase: str) -> tuple[Culprit, ...]:
        """What breaks by itself on the same line, and the same operation on other lines: to be mended along with it."""
        if phase == "backward":
            others = self._broken_backward
        else:
            others = [o for o in self._watch.operations if lineage.breaks_by_itself(o) and o.name not in _MASKING]
        found: dict[tuple[str, tuple[str, int]], Culprit] = {}
        for other in others:
            near = other.position == operation.position or other.name == operation.name
            key = other.name, other.position
            if other is operation or not near or key == (operation.name, operation.position) or key in found:
                continue
            inputs = tuple(_operand(t, self._operand_name(other, n)) for n, t in enumerate(other.inputs[:4]))
            before = lineage.upstream(self._watch.operations, other)
            found[key] = Culprit(other.name, lineage.line_of(other), inputs, "" if before is None else before.name)
        return tuple(found.values())[:_MAX_ALSO]

    def _operand_name(self, operation: Watched, number: int) -> str:
        key = operation.parameters[number]
        return key.partition(SEPARATOR)[2] or key or ("input" if number == 0 else f"operand {number}")

    def _source(self, operation: Watched, module: nn.Module | None) -> SourceLine | None:
        if module is not None and is_library_leaf(module):
            built = self._observer.names.built_at(module)
            if built is not None:
                return built
        return source_line(*operation.position)


def _mend_running_statistics(copied: nn.Module) -> None:
    """The pass that is searched has already put its NaN into the running statistics, which training does not read."""
    for child in copied.modules():
        mean = getattr(child, "running_mean", None)
        reset = getattr(child, "reset_running_stats", None)
        if child.training and isinstance(mean, Tensor) and callable(reset) and any(is_bad(mean)):
            reset()


def _operand(tensor: Tensor, name: str) -> Operand:
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if tensor.numel() == 0 or tensor.is_complex():
        return Operand(name, shape, dtype, float("nan"), float("nan"))
    values = tensor.detach().double().reshape(-1)
    finite = values[torch.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (float("nan"), float("nan"))
    nans, infs = int(torch.isnan(values).sum()), int(torch.isinf(values).sum())
    return Operand(name, shape, dtype, low, high, nans, infs, int((values == 0).sum()))


def _rows(bad: Tensor) -> tuple[int, ...]:
    """Indices along the first dimension where something is bad; () when that is everywhere, which names nobody."""
    if bad.dim() == 0 or bad.shape[0] < 2:
        return ()
    rows = bad.reshape(bad.shape[0], -1).any(1).nonzero().reshape(-1)
    return () if len(rows) == bad.shape[0] else tuple(int(row) for row in rows[:_MAX_LISTED])


def _columns(bad: Tensor) -> tuple[int, ...]:
    if bad.dim() != 2:
        return ()
    columns = bad.any(0).nonzero().reshape(-1)
    return () if len(columns) == bad.shape[1] else tuple(int(column) for column in columns[:_MAX_LISTED])
