"""Labels of pairs on a copy: what they save of the loss of other pairs, as they are and turned round."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from netdoctor.checks.loss.pair_labels import AS_THEY_ARE, TURNED
from netdoctor.experiments.pair_labels import ENOUGH, look
from netdoctor.experiments.sandbox import Budget
from netdoctor.recording import Arm, Recording
from tests.experiments.capturing import watched

Net = Callable[[Tensor], Tensor]
Loss = Callable[[Net, Tensor, Tensor, Tensor], Tensor]  # of a pair and whether it is alike; 1 where it is


def contrastive(net: Net, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    d = F.pairwise_distance(net(a), net(b))
    return (0.5 * y * d.pow(2) + 0.5 * (1 - y) * F.relu(1.5 - d).pow(2)).mean()


def masked(net: Net, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    d = (net(a) - net(b)).norm(dim=1)
    return d[y == 1].pow(2).mean() + F.relu(1.5 - d[y == 0]).pow(2).mean()


def cosine(net: Net, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    return F.cosine_embedding_loss(net(a), net(b), 2 * y - 1)


def triplet(net: Net, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    """Positive and negative lie side by side in `b`."""
    positive, negative = torch.where(y[:, None] == 1, b, b.roll(8, 1)).chunk(2, 1)
    return F.triplet_margin_loss(net(a[:, :8]), net(positive), net(negative))


def difference(net: Net, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
    positive, negative = torch.where(y[:, None] == 1, b, b.roll(8, 1)).chunk(2, 1)
    anchor = net(a[:, :8])
    return F.relu(1.0 + (anchor - net(positive)).norm(dim=1) - (anchor - net(negative)).norm(dim=1)).mean()


def asked(loss: Loss, wrong: bool, informative: bool = True, batches: int = 12) -> dict[str, Arm]:
    """The arms after a short training on pairs of ten kinds of points, whose labels may be the wrong way round."""
    torch.manual_seed(0)
    kinds = 2 * torch.randn(10, 8)
    net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    in_one = loss in (triplet, difference)  # the one like the anchor first, then another

    def train() -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
        for _ in range(batches):
            one = torch.randint(0, 10, (32,))
            other = (one + torch.randint(1, 10, (32,))) % 10
            same = torch.ones(32) if in_one else (torch.rand(32) < 0.5).float()
            near, far = (kinds[k] + 0.3 * torch.randn(32, 8) for k in (one, other))
            a = kinds[one] + 0.3 * torch.randn(32, 8)
            b = torch.cat([near, far], 1) if in_one else torch.where(same[:, None] == 1, near, far)
            y = same if informative else (torch.rand(32) < 0.5).float()
            optimizer.zero_grad()
            loss(net, a, b, 1 - y if wrong else y).backward()
            optimizer.step()

    step, graph = watched(train)
    recording = Recording(graph=graph)
    recording.graphs.append(graph)
    return look(recording, step, Budget(120))


@pytest.mark.parametrize("loss", [contrastive, masked, cosine, triplet, difference])
def test_only_turned_round_they_hold_for_other_pairs(loss: Loss) -> None:
    arms = asked(loss, wrong=True)
    own, turned = arms[AS_THEY_ARE].facts, arms[TURNED].facts
    assert float(own["saved"]) < 0.2 < 0.6 < float(turned["saved"])
    assert float(turned["loss"]) < 0.4 * float(own["loss"])
    assert own["pairs"] == 4 * 32
    assert str(own["file"]).endswith("test_pair_labels.py")


@pytest.mark.parametrize("loss", [contrastive, cosine, triplet, difference])
def test_right_labels_are_soon_known_to_be(loss: Loss) -> None:
    arms = asked(loss, wrong=False)
    assert list(arms) == [AS_THEY_ARE]
    assert float(arms[AS_THEY_ARE].facts["saved"]) >= ENOUGH
    assert arms[AS_THEY_ARE].steps <= 120


def test_labels_at_random_save_nothing_in_either_sense() -> None:
    arms = asked(contrastive, wrong=False, informative=False)
    assert max(abs(float(arm.facts["saved"])) for arm in arms.values()) < 0.2


def test_too_few_batches_are_not_asked() -> None:
    assert asked(contrastive, wrong=True, batches=5) == {}


def test_a_mask_beside_the_labels_is_not_turned_with_them() -> None:
    def loss(net: Net, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        d = F.pairwise_distance(net(a), net(b))
        valid = (torch.arange(len(a)) % 3 > 0).float()
        return (valid * (y * d.pow(2) + (1 - y) * F.relu(1.5 - d).pow(2))).mean()

    assert "cannot be told" in asked(loss, wrong=True)[AS_THEY_ARE].failure
