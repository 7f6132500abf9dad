"""A training in several processes: `parallel.py PREFIX SCRIPT HOW`, where HOW is one of
ddp        DistributedDataParallel, as it should be
bypassed   the model inside of it is called
sharded    FSDP2, with clipping
talking    the model itself talks to the other processes
dying      without any communication; rank 1 is gone after ten steps
failing    DistributedDataParallel; rank 1 raises after ten steps
"""

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

how = sys.argv[-1]
dist.init_process_group("gloo")
rank = dist.get_rank()
torch.manual_seed(0)


class Net(nn.Sequential):
    def forward(self, x):
        out = super().forward(x)
        if how == "talking":
            dist.all_reduce(out.detach().mean())
        return out


net = Net(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
if how == "sharded":
    for layer in (net[0], net[2]):
        fully_shard(layer)
    model = fully_shard(net)
elif how in ("dying", "talking"):
    model = net
else:
    model = DistributedDataParallel(net)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
torch.manual_seed(rank + 1)
weights = torch.linspace(-1, 1, 30).reshape(10, 3)
for step in range(60):
    x = torch.randn(32, 10)
    y = (x @ weights).argmax(1)
    optimizer.zero_grad()
    loss = F.cross_entropy((net if how == "bypassed" else model)(x), y)  # the call
    loss.backward()
    if how == "sharded":
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    if step == 10 and rank == 1 and how == "dying":
        os._exit(7)
    if step == 10 and rank == 1 and how == "failing":
        raise RuntimeError("rank 1 has enough")
print(f"rank {rank} loss {loss.item():.9f}")
dist.destroy_process_group()
