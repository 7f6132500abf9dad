"""`alike.py HOW`: one training, the same numbers in all processes. HOW is "sharded" (FSDP2, over as many as there are) or "alone".

The first layer's rows do not divide evenly, and some of them never get a gradient; the last layer starts with equal rows.
"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard

how = sys.argv[-1]
if how == "sharded":
    dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 33), nn.ReLU(), nn.Linear(33, 5), nn.Tanh(), nn.Linear(5, 3))
with torch.no_grad():
    model[0].bias[[0, 20, 32]] = -1e3
    model[4].weight.fill_(0.1)
if how == "sharded":
    for layer in (model[0], model[2], model[4]):
        fully_shard(layer)
    fully_shard(model)
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
weights = torch.linspace(-1, 1, 30).reshape(10, 3)
for _ in range(30):
    x = torch.randn(32, 10)
    optimizer.zero_grad()
    F.cross_entropy(model(x), (x @ weights).argmax(1)).backward()
    optimizer.step()
if how == "sharded":
    dist.destroy_process_group()
