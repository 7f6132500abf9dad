"""Sharded parameters: what each process measured of its part becomes what is true of the whole.

Nothing is measured anew. On measured steps the processes exchange the sums, extremes and counts that they have of their own parts,
over netdoctor's own group and in the background, and each puts the whole's in place of its part's.
"""

from __future__ import annotations

import hashlib
import math
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture import histograms as histogram
from netdoctor.capture import statistics
from netdoctor.capture.observer import Observer
from netdoctor.capture.parameters import site_of
from netdoctor.capture.parts import MOST, Place
from netdoctor.capture.recorder import MomentRows, SeriesRecorder, ValueRows
from netdoctor.capture.statistics import MAX_UNITS, Moments
from netdoctor.recording import Role, Stat

_ALIKE = 1e-6  # relative: parts of which all rows are alike, and the means and sizes too, hold the same rows
_MOMENTS = len(Moments._fields)
_NOTHING = Moments(0, 0.0, 0.0, 0.0, 0.0)
_NONE = np.empty(0, np.float32)
_WAITING, _YES, _NO = "", "yes", "no"


class _Places(NamedTuple):
    """Where the numbers of one parameter are kept, and which of its rows lie in this process."""

    weight: MomentRows
    gradient: MomentRows
    update: ValueRows
    distinct_weight: ValueRows
    distinct_gradient: ValueRows
    idle: ValueRows
    numbers: int  # in the whole parameter
    sampled: int  # of them that go into a histogram, at most; 0 where there is none
    units: int  # rows of the whole parameter; 0 where it has none
    first: int  # of the rows that lie here
    held: int


class _Part(NamedTuple):
    """What one process measured of one parameter in one step. Its counts are 0 where it measured nothing."""

    weight: Moments
    gradient: Moments
    update: float  # root mean square
    distinct_weight: float  # how many rows of this part are unlike all others, 0 where that was not measured
    distinct_gradient: float
    rows: float
    first: float


_WIDTH = 2 * _MOMENTS + 5


class Shards:
    """This process's sharded parameters. All processes must agree on their names once; until then nothing is exchanged."""

    def __init__(self, observer: Observer) -> None:
        self._observer = observer
        self._places: dict[str, _Places] = {}  # in the order in which they are sent
        self._asked = False
        self._behind = ""  # why some steps are known of this process's part only

    def agree(self, store: Any, rank: int, size: int, step: int, limit: timedelta) -> None:
        """Find the sharded parameters, and go on only if all processes have the same ones at this very step.

        Waits for the others, within the limit, where there are any; the one verdict in the store holds for all.
        """
        found = {} if self._asked else self._find()
        if not found:
            return
        self._asked = True
        mine = f"{step} {hashlib.sha256(repr([(k, p.units) for k, p in found.items()]).encode()).hexdigest()}"
        store.set(f"shards {rank}", mine)
        try:
            keys = [f"shards {other}" for other in range(size)]
            store.wait(keys, limit)
            same = all(store.get(key).decode() == mine for key in keys)
        except RuntimeError:
            same = False
        verdict = store.compare_set("shards", _WAITING, _YES if same else _NO)
        if same and (verdict.decode() if isinstance(verdict, bytes) else verdict) == _YES:
            self._places = found
        else:
            self._behind = "the processes do not hold parts of the same parameters"

    def _find(self) -> dict[str, _Places]:
        names, recorder = self._observer.names, self._observer.recorder
        found: dict[str, _Places] = {}
        for key, parameter in names.parameters():
            if not statistics.is_shard(parameter) or parameter.is_meta:
                continue
            weight, gradient = site_of(names, parameter, Role.WEIGHT), site_of(names, parameter, Role.WEIGHT_GRADIENT)
            first, count = _rows_here(parameter)
            found[key] = _Places(
                recorder.moment_rows(weight),
                recorder.moment_rows(gradient),
                recorder.rows(site_of(names, parameter, Role.UPDATE), Stat.RMS),
                recorder.rows(weight, Stat.DISTINCT_ROWS),
                recorder.rows(gradient, Stat.DISTINCT_ROWS),
                recorder.rows(gradient, Stat.UNIT_ZERO_GRADIENT),
                parameter.numel(),
                histogram.most(parameter) if sum(p.sampled > 0 for p in found.values()) < histogram.PARAMETERS else 0,
                parameter.shape[0] if parameter.dim() >= 2 else 0,
                first,
                count,
            )
        return dict(sorted(found.items()))

    # --- sending -----------------------------------------------------------------------------------------------------

    def message(self, step: int) -> Tensor | None:
        """All that was measured here in a step, of one length in all processes; None where nothing is exchanged."""
        if not self._places:
            return None
        numbers = np.asarray([_part(places, step) for places in self._places.values()], np.float64)
        parts = self._observer.recorder.parts
        squares = parts.squares if parts.step == step else np.zeros_like(parts.squares)
        bits = [_idle_here(places, step) for places in self._places.values()]
        packed = np.packbits(np.concatenate(bits).astype(bool))
        sums = np.concatenate([numbers.reshape(-1), squares.reshape(-1)])
        return torch.from_numpy(np.concatenate([sums.view(np.uint8), packed]))

    def hear(self, step: int, messages: Tensor) -> None:
        """Put the whole's numbers in place of this process's own; `messages` has one row for each process."""
        wide = _WIDTH * len(self._places)
        split = 8 * (wide + 2 * MOST)
        sums = [row[:split].contiguous().numpy().view(np.float64) for row in messages]
        numbers = [row[:wide].reshape(-1, _WIDTH) for row in sums]
        bits = [np.unpackbits(row[split:].contiguous().numpy()) for row in messages]
        at = 0
        for index, places in enumerate(self._places.values()):
            parts = [_read(rows[index]) for rows in numbers]
            width = _capacity(places.units)
            _join(places, step, parts, [row[at : at + width] for row in bits])
            at += width
        self._norms(step, numbers, np.stack([row[wide:].reshape(MOST, 2) for row in sums]))

    def _norms(self, step: int, numbers: list[NDArray[np.float64]], squares: NDArray[np.float64]) -> None:
        """The norm over all gradients of each optimizer. Where parts are held twice (one copy per machine), they count once."""
        held = sum(float(row[0]) for part in numbers for row in part)
        copies = max(1.0, held / max(1, sum(places.numbers for places in self._places.values())))
        for index, sharded in enumerate(squares[:, :, 0].sum(0) / copies):
            if sharded or not math.isfinite(sharded):
                name = "gradient norm" if index == 0 else f"gradient norm ({index})"
                whole = self._observer.recorder.wholes.setdefault(name, SeriesRecorder())
                whole.add(step, math.sqrt(sharded + float(squares[0, index, 1])))

    def samples(self, step: int) -> Tensor | None:
        """What goes into the histograms of a step, of one length in all processes; None in steps without histograms."""
        parts = self._observer.recorder.parts
        if not self._places or parts.sampled != step:
            return None
        found = []
        for key, most in self._sampled():
            row, values = np.zeros(1 + most, np.float32), parts.samples.get(key, _NONE)[:most]
            row[0], row[1 : 1 + len(values)] = len(values), values
            found.append(row)
        return torch.from_numpy(np.concatenate(found)) if found else None

    def hear_samples(self, step: int, messages: Tensor) -> None:
        """Put histograms of the whole in place of this process's own."""
        at, places, pooled = 0, [], []
        for place, most in self._sampled():
            rows = messages[:, at : at + 1 + most]
            values = torch.cat([row[1 : 1 + int(row[0])] for row in rows])
            at += 1 + most
            if len(values):
                places.append(place)
                pooled.append(values)
        if not pooled:
            return
        taken = self._observer.recorder.parts.histograms
        for place, row in zip(places, histogram.histograms(pooled, step), strict=True):
            kept = taken.setdefault(place, [])
            index = next((i for i, known in enumerate(kept) if known[0] == step), None)
            if index is None:
                histogram.keep(kept, row)
            else:
                kept[index] = row

    def _sampled(self) -> list[tuple[Place, int]]:
        return [
            ((key, role), places.sampled)
            for key, places in self._places.items()
            if places.sampled
            for role in (Role.WEIGHT, Role.WEIGHT_GRADIENT)
        ]

    def lost(self, why: str) -> None:
        """From here on only this process's part is known."""
        if self._places:
            self._behind, self._places = why, {}

    def say(self) -> None:
        """Tell the reader of what the numbers of sharded weights are."""
        spots = self._observer.blind_spots
        if "sharded" not in spots or not self._asked:
            return
        if self._behind:
            spots["sharded"] += f" ({self._behind})"
        else:
            del spots["sharded"]  # all was added up


def _rows_here(parameter: Any) -> tuple[int, int]:
    """(first row, number of rows) of a parameter that lie in this process. Found from its layout, without asking the others."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    shape, offset = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    return (int(offset[0]), int(shape[0])) if shape else (0, 1)


def _capacity(units: int) -> int:
    return min(units, MAX_UNITS)


def _at(rows: list[tuple[int, Any]], step: int) -> int | None:
    """The index of a step's entry among the newest ones."""
    for index in range(len(rows) - 1, -1, -1):
        if rows[index][0] <= step:
            return index if rows[index][0] == step else None
    return None


def _value(rows: list[tuple[int, Any]], step: int, missing: Any) -> Any:
    index = _at(rows, step)
    return missing if index is None else rows[index][1]


def _part(places: _Places, step: int) -> list[float]:
    distinct = [
        float(_value(rows, step, 0.0)) * places.held for rows in (places.distinct_weight, places.distinct_gradient)
    ]
    weight, gradient = _value(places.weight, step, _NOTHING), _value(places.gradient, step, _NOTHING)
    moved = float(_value(places.update, step, 0.0))
    return [*weight, *gradient, moved, *distinct, float(places.held), float(places.first)]


def _read(row: NDArray[np.float64]) -> _Part:
    weight, gradient = _moments(row[:_MOMENTS]), _moments(row[_MOMENTS:-5])
    update, distinct_weight, distinct_gradient, rows, first = map(float, row[-5:])
    return _Part(weight, gradient, update, distinct_weight, distinct_gradient, rows, first)


def _moments(row: NDArray[np.float64]) -> Moments:
    size, total, squares, low, high, scale, known = map(float, row)
    return Moments(int(size), total, squares, low, high, scale, int(known))


def _idle_here(places: _Places, step: int) -> NDArray[np.float64]:
    """1 for each row without gradient that lies here, at the row's place; a row that lies elsewhere counts as one."""
    whole = np.ones(_capacity(places.units))
    here: Any = _value(places.idle, step, None)
    if here is not None:
        kept = whole[places.first : places.first + len(here)]
        kept[:] = here[: len(kept)]
    return whole


def _join(places: _Places, step: int, parts: list[_Part], idle: list[NDArray[np.uint8]]) -> None:
    _put(places.weight, step, together([part.weight for part in parts]))
    _put(places.gradient, step, together([part.gradient for part in parts]))
    sizes = [part.weight.size for part in parts]
    squares = sum(size * part.update**2 for size, part in zip(sizes, parts, strict=True))
    _put(places.update, step, math.sqrt(squares / max(1, sum(sizes))))
    weights, gradients = (
        [(p.distinct_weight, p.weight) for p in parts],
        [(p.distinct_gradient, p.gradient) for p in parts],
    )
    _put(places.distinct_weight, step, _distinct(places.units, weights))
    zero = [bool(row[int(p.first) : int(p.first + p.rows)].any()) for row, p in zip(idle, parts, strict=True)]
    _put(places.distinct_gradient, step, _distinct(places.units, gradients, max(0, sum(zero) - 1)))
    _put(places.idle, step, np.minimum.reduce(idle).astype(np.float64))


def _put(rows: list[tuple[int, Any]], step: int, value: Any) -> None:
    index = _at(rows, step)
    if index is not None and value is not None:
        rows[index] = (step, value)


def together(parts: list[Moments]) -> Moments | None:
    """The moments of all values, from those of parts of them; of a part without values, none. None where no part has any."""
    parts = [part for part in parts if part.size]
    if not parts:
        return None
    scale = max(part.scale for part in parts)
    bad = [part for part in parts if part.known == 3 and not (math.isfinite(part.low) and math.isfinite(part.high))]
    known = 3 if bad else min(part.known for part in parts)
    lows, highs = [part.low for part in bad or parts], [part.high for part in bad or parts]
    unknown = any(math.isnan(end) for end in (*lows, *highs))
    return Moments(
        sum(part.size for part in parts),
        sum(part.total for part in parts),
        sum(part.squares * (part.scale / scale) ** 2 for part in parts),
        math.nan if unknown else min(lows),
        math.nan if unknown else max(highs),
        scale,
        known,
    )


def _distinct(units: int, parts: list[tuple[float, Moments]], common: int = 0) -> float | None:
    """Share of rows of the whole that differ from every other, from (how many do in a part, the part's moments).

    Parts of alike rows are compared by mean and size; `common` rows are known to be in several parts. Any others are taken for
    different ones: rows of two processes are alike by a fault that makes many alike within each, or not at all.
    """
    counted = [(number, moments) for number, moments in parts if number > 0]
    if not counted or not units:
        return None
    if all(round(number) == 1 for number, _ in counted):
        apart = [(m.total / m.size, m.scale * math.sqrt(m.squares / m.size)) for _, m in counted]
        size = max(abs(value) for pair in apart for value in pair)
        if all(abs(a - b) <= _ALIKE * size for pair in apart for a, b in zip(pair, apart[0], strict=True)):
            return 1 / units
    return max(1.0, min(units, sum(number for number, _ in counted) - common)) / units
