"""A training that goes on until it is killed. After each step it says how far it is."""

import sys

import torch
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
for step in range(10_000_000):
    optimizer.zero_grad()
    model(torch.randn(16, 10)).square().mean().backward()
    optimizer.step()
    sys.stdout.write(f"{step + 1}\n")
    sys.stdout.flush()
