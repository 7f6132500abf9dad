"""Is there memory for another copy of what trains? A copy that does not fit must not take the user's run down with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from netdoctor.errors import CannotReplayError

TIMES = 4  # the weights, their gradients, and the two moments of Adam
SPARE = 64 << 20  # bytes that are left to everything else


def needed(modules: Iterable[nn.Module], leaves: Iterable[Tensor] = ()) -> dict[torch.device, int]:
    """Bytes per device that training a copy takes, activations left out: weights `TIMES`, frozen ones and buffers once."""
    held = [t for module in modules for t in (*module.parameters(), *module.buffers())] + list(leaves)
    bytes_: Counter[torch.device] = Counter()
    for tensor in {id(t): t for t in held if not nn.parameter.is_lazy(t)}.values():
        size = tensor.numel() * tensor.element_size()
        bytes_[tensor.device] += size * (TIMES if tensor.requires_grad else 1)
    return dict(bytes_)


def free(device: torch.device) -> float:
    """Bytes that can be had on a device; infinite where it cannot be told."""
    if device.type == "cuda":
        available, _ = torch.cuda.mem_get_info(device)
        return float(available + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            table = dict(line.split(":", 1) for line in file)
        return 1024.0 * float(table["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):  # not on this system
        return float("inf")


def refuse_without_room(modules: Iterable[nn.Module], leaves: Iterable[Tensor] = ()) -> None:
    """Raise CannotReplayError, with the bytes, where a copy does not fit."""
    for device, bytes_ in needed(modules, leaves).items():
        there = free(device)
        if bytes_ + SPARE > there:
            raise CannotReplayError(
                f"a copy of the model needs {bytes_:,} bytes on {device} to be trained, and {int(there):,} are free"
            )
