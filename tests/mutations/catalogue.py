"""All the faults."""

from __future__ import annotations

from tests.mutations import data, loop, loss, model
from tests.mutations.injection import Fault

FAULTS: tuple[Fault, ...] = (*loop.FAULTS, *loss.FAULTS, *model.FAULTS, *data.FAULTS)
