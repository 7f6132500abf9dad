import pytest
import torch
from torch import nn

from netdoctor.experiments.adam import Adam


@pytest.mark.parametrize("sparse", [False, True])
def test_sparse_gradients_move_the_rows_that_were_looked_up(sparse):
    torch.manual_seed(0)
    table = nn.Embedding(6, 3, sparse=sparse)
    before, optimizer = table.weight.detach().clone(), Adam(table.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        table(torch.tensor([1, 4])).square().sum().backward()
        optimizer.step()
    moved = (table.weight != before).any(1)
    assert moved.tolist() == [False, True, False, False, True, False]
    assert table.weight.square().sum() < before.square().sum()
