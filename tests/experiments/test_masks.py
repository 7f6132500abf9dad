"""Masks of attention on a copy: how each is read and turned round, which ones hide what they should show, and what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.capture.step import TrainingStep
from netdoctor.checks.structure.mask_trials import AS_IT_IS, INVERTED, LONG, SEEN
from netdoctor.experiments.masks import look
from netdoctor.experiments.sandbox import Budget
from netdoctor.experiments.treatments.masks import Call, Mask, beside_causal, only_padding, turned
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import watched

SAMPLES, KEYS, WIDTH = 6, 5, 4
LENGTHS = torch.tensor([2, 3, 4, 5, 3, 2])
REAL = torch.arange(KEYS)[None] < LENGTHS[:, None]
IDS = torch.randint(1, 900, (SAMPLES, KEYS), generator=torch.Generator().manual_seed(0)) * REAL
PAST = torch.ones(KEYS, KEYS, dtype=torch.bool).tril()
Q = torch.randn(SAMPLES, 2, KEYS, WIDTH)
S = torch.randn(SAMPLES, KEYS, KEYS)
SDPA = "scaled_dot_product_attention"
LOW = torch.finfo(torch.float32).min


def additive(keep: Tensor, low: float = -math.inf) -> Tensor:
    return torch.zeros(keep.shape).masked_fill(~keep, low)


CALLS = [
    Call(SDPA, (Q, Q, Q), {"attn_mask": REAL[:, None, None, :]}),
    Call(SDPA, (Q, Q, Q, additive(REAL)[:, None, None, :]), {}),
    Call("masked_fill", (S, ~REAL[:, None, :], -1e9), {}),
    Call("masked_fill", (S, (~REAL[:, None, :]).to(torch.uint8)), {"value": -math.inf}),
    Call("setitem", (S[:, 0], ~REAL, -math.inf), {}),
    Call("where", (REAL[:, None, :], S, torch.tensor(LOW)), {}),
    Call("where", (~REAL[:, None, :], -math.inf, S), {}),
    Call("where", (S, REAL[:, None, :], -1e4), {}),  # the method
    Call("add", (S, additive(REAL, -1e4)[:, None, :]), {}),
    Call("add", (additive(REAL, LOW)[:, None, :], S), {}),
    Call("sub", (S, -additive(REAL, -1e9)[:, None, :]), {}),
    Call("multi_head_attention_forward", (S, S, S), {"key_padding_mask": ~REAL}),
    Call("multi_head_attention_forward", (S, S, S), {"key_padding_mask": additive(REAL), "attn_mask": None}),
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.kind)
def test_what_a_mask_keeps_and_the_same_turned_round(call: Call) -> None:
    (mask,) = call.masks()
    assert torch.equal(mask.keep, REAL)
    args, kwargs = call.inverted(mask.argument)
    (other,) = Call(call.kind, args, kwargs).masks()
    full = LENGTHS == KEYS  # sees everything then, so that no softmax is taken of nothing
    assert torch.equal(other.keep, ~REAL | full[:, None])


@pytest.mark.parametrize(
    "call",
    [
        Call(SDPA, (Q, Q, Q), {"attn_mask": None, "is_causal": True}),
        Call(SDPA, (Q, Q, Q), {"attn_mask": torch.randn(KEYS, KEYS)}),  # a bias
        Call("masked_fill", (S, REAL[:, None, :], 0.0), {}),
        Call("where", (REAL[:, None, :], S, torch.zeros(())), {}),
        Call("add", (S, torch.randn(SAMPLES, KEYS, KEYS)), {}),
        Call("add", (S, S), {}),
        Call("setitem", (S, 0, -1e9), {}),
    ],
    ids=lambda call: call.kind,
)
def test_what_is_no_mask(call: Call) -> None:
    assert list(call.masks()) == []


def test_a_causal_mask_is_one_of_queries_and_keys() -> None:
    (mask,) = Call(SDPA, (Q, Q, Q), {"attn_mask": PAST}).masks()
    assert mask.keep.shape == (1, KEYS, KEYS)


def test_the_causal_part_of_a_mask_stays() -> None:
    call = Call(SDPA, (Q, Q, Q), {"attn_mask": (PAST & ~REAL[:, None, :])[:, None], "is_causal": False})
    (mask,) = call.masks()
    assert beside_causal(mask)
    assert only_padding(mask, [IDS])
    _, kwargs = call.inverted("attn_mask")
    new = kwargs["attn_mask"][:, 0]
    assert bool((new[0, 1] == torch.tensor([True, True, False, False, False])).all())
    assert not bool(new[3].triu(1).any())


def sees(keep: Tensor, keys: Tensor | None = None) -> Mask:
    return Mask("key_padding_mask", keep, keys)


@pytest.mark.parametrize(
    ("keep", "contents", "wrong"),
    [
        (~REAL, [IDS], True),
        (~REAL, [IDS.T], True),
        (~REAL, [torch.randn(SAMPLES, KEYS, 3) * REAL[..., None]], True),
        (F.pad(~REAL, (1, 0), value=True), [IDS], True),  # a token before them, which all may see
        (F.pad(~REAL, (0, 1), value=True), [IDS], True),
        ((~REAL).repeat_interleave(2, 0), [IDS], True),  # one for each head
        (~REAL | (torch.arange(KEYS) == 0), [IDS], True),  # the first is kept free, so that no row is empty
        (torch.zeros(SAMPLES, KEYS, dtype=torch.bool), [IDS], True),
        (REAL, [IDS], False),
        (REAL.flip(1), [IDS.flip(1)], False),  # padded on the left
        (torch.arange(KEYS) < 1, [F.pad(IDS[:, :1], (0, 4))], False),  # most of it is padding
        (torch.rand(SAMPLES, KEYS) < 0.5, [IDS + 1000 * torch.rand(SAMPLES, KEYS)], False),  # tokens left out at random
        (~REAL, [REAL, REAL.long(), LENGTHS[:, None].expand(-1, KEYS)], False),  # a mask tells nothing of itself
        (~REAL, [torch.randn(SAMPLES, KEYS + 3)], False),
        (~REAL, [], False),
    ],
)
def test_only_padding_takes_part(keep: Tensor, contents: list[Tensor], wrong: bool) -> None:
    mask = sees(keep if keep.dim() == 2 else keep[None])
    assert only_padding(mask, contents) is wrong


def test_the_keys_tell_where_no_input_has_that_shape() -> None:
    place, pad = torch.randn(KEYS, WIDTH), torch.randn(WIDTH)
    keys = torch.where(REAL[..., None], torch.randn(SAMPLES, KEYS, WIDTH), pad) + place
    assert only_padding(sees(~REAL, keys), [])
    assert not only_padding(sees(REAL, keys), [])


@pytest.mark.parametrize(
    ("keep", "wrong"),
    [
        (~PAST, True),
        (PAST.T, True),
        (PAST, False),
        (PAST.tril(-1), False),
        (~torch.eye(KEYS, dtype=torch.bool), False),
        (torch.ones(KEYS, KEYS, dtype=torch.bool), False),
        ((~PAST)[:2, :2], False),
    ],
)
def test_only_the_future_is_seen(keep: Tensor, wrong: bool) -> None:
    assert turned(sees(keep[None])) is wrong


# --- on a copy -----------------------------------------------------------------------------------------------------------


class Finder(nn.Module):
    """Which of two kinds of tokens a padded row holds; `hides` makes torch.nn's mask of the ids."""

    def __init__(self, hides: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(20, 16), nn.Parameter(torch.randn(10, 16) * 0.1)
        self.attention, self.head = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 2)
        self.hides = hides

    def forward(self, ids: Tensor) -> Tensor:
        states = self.token(ids) + self.place
        seen, _ = self.attention(
            self.place[:1].expand(len(ids), -1, -1), states, states, key_padding_mask=self.hides(ids)
        )
        return self.head(seen[:, 0])


def trained(hides: Callable[[Tensor], Tensor]) -> tuple[Recording, TrainingStep]:
    torch.manual_seed(0)
    model = Finder(hides)

    def train() -> None:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
        for _ in range(12):
            labels = torch.randint(0, 2, (32,))
            ids = torch.randint(1, 10, (32, 10)) + 10 * labels[:, None]
            ids = ids * (torch.arange(10) < torch.randint(3, 9, (32, 1)))
            optimizer.zero_grad()
            F.cross_entropy(model(ids), labels).backward()
            optimizer.step()

    step, graph = watched(train)
    recording = Recording(graph=graph)
    recording.graphs.append(graph)
    return recording, step


def end(arm: Arm) -> float:
    return float(arm.losses[-10:].mean())


def test_the_mask_turned_round_learns() -> None:
    arms = look(*trained(lambda ids: ids != 0), Budget(120))
    facts = arms[SEEN].facts
    assert (facts["kind"], facts["argument"], facts["beside"]) == ("padding", "key_padding_mask", False)
    assert str(facts["text"]).startswith(("seen, _ = self.attention(", "self.place[:1]"))
    assert len(arms[INVERTED].losses) == len(arms[AS_IT_IS].losses) >= LONG
    assert end(arms[INVERTED]) < 0.1 < end(arms[AS_IT_IS])


def test_nothing_is_trained_for_a_right_mask() -> None:
    arms = look(*trained(lambda ids: ids == 0), Budget(120))
    assert arms[SEEN].facts == {"says": "what masks keep differs between samples"}
    assert list(arms) == [SEEN]


def test_without_a_mask_nothing_is_looked_at() -> None:
    assert look(*trained(lambda ids: None), Budget(120)) == {}  # type: ignore[arg-type, return-value]


def test_too_little_time_is_said() -> None:
    arms = look(*trained(lambda ids: ids != 0), Budget(0.02))
    assert "steps were done in the time for it" in arms[AS_IT_IS].failure
