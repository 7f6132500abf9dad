"""The Adam that experiments train with, whatever the gradients of the script's parameters look like."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Adam(torch.optim.Adam):
    """Takes the sparse gradients of an embedding as well, which torch's own refuses: they are made dense first."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update, as torch's."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    parameter.grad = parameter.grad.to_dense()
        return super().step(closure)
