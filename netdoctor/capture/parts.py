"""What this process alone has of sharded gradients and weights in a measured step, until the processes add up their parts."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from netdoctor.capture import statistics
from netdoctor.recording import Role

MOST = 4  # optimizers whose norm over all gradients is added up
Place = tuple[str, Role]  # key of a parameter; WEIGHT or WEIGHT_GRADIENT
Row = tuple[int, float, float, NDArray[np.int64]]  # of a histogram: step, lowest and highest finite value, counts


class Parts:
    """The parts of the newest measured step. Empty, and never asked, where nothing is sharded."""

    def __init__(self) -> None:
        self.step = -1  # that `squares` belong to
        self.squares = np.zeros(
            (MOST, 2)
        )  # per optimizer: squares of sharded gradients, of those that all processes hold
        self.sampled = -1  # the step that `samples` belong to
        self.samples: dict[Place, NDArray[np.float32]] = {}
        self.histograms: dict[
            Place, list[Row]
        ] = {}  # of all parameters: those of sharded ones are of this process's part

    def add(self, step: int, optimizer: int, gradients: list[Tensor]) -> None:
        """The gradients, as an optimizer is about to use them; nothing where none is sharded."""
        if optimizer >= MOST or not any(map(statistics.is_shard, gradients)):
            return
        if step != self.step:
            self.step, self.squares = step, np.zeros((MOST, 2))
        for column, sharded in enumerate((True, False)):
            held = [statistics.local(g) for g in gradients if statistics.is_shard(g) is sharded]
            norms = [norm.double() for norm in torch._foreach_norm(held)] if held else []
            self.squares[optimizer, column] = float(sum(norm * norm for norm in norms))

    def sample(self, step: int, place: Place, values: Tensor) -> None:
        """A sample of a sharded parameter's or gradient's values that lie here."""
        self.sampling(step)
        self.samples[place] = values.detach().float().cpu().numpy().copy()

    def sampling(self, step: int) -> None:
        """Samples of this step are taken from now on, if only of other processes' parts."""
        if step != self.sampled:
            self.sampled, self.samples = step, {}
