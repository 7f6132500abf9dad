"""Tensors inside of containers are found, and exchanged for what stands for them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from netdoctor.capture.tree import substitute, tensors


class Point(NamedTuple):
    x: Tensor
    name: str


def test_named_tuples_keep_their_kind() -> None:
    point = Point(torch.ones(2), "a")
    other = substitute(point, lambda t: t + 1)
    assert type(other) is Point
    assert (other.x.tolist(), other.name) == ([2.0, 2.0], "a")


def test_a_packed_sequence_may_hold_what_is_no_tensor_for_a_while() -> None:
    packed = pack_padded_sequence(torch.arange(6.0).reshape(2, 3, 1), torch.tensor([3, 2]), batch_first=True)
    kept: list[Tensor] = []

    def number(tensor: Tensor) -> int:
        kept.append(tensor)
        return len(kept) - 1

    coded = substitute(packed, number)
    assert list(tensors(coded)) == []
    back = PackedSequence(*(kept[at] if isinstance(at, int) else at for at in coded))
    assert back.data.equal(packed.data)
    assert back.batch_sizes.equal(packed.batch_sizes)
