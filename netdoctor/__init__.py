"""netdoctor finds out why a PyTorch training does not work: root causes, proven by experiments on a copy.

Names are looked up when they are first used, so that `import netdoctor` costs nothing and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from netdoctor.check import Check
    from netdoctor.finding import Finding
    from netdoctor.judging import diagnose
    from netdoctor.recording import Recording
    from netdoctor.report import Report
    from netdoctor.session import examine
    from netdoctor.watching import watch

__version__ = "0.1.0"
__all__ = ["Check", "Finding", "Recording", "Report", "__version__", "diagnose", "examine", "watch"]

_HOMES = {
    "Check": "check",
    "Finding": "finding",
    "Recording": "recording",
    "Report": "report",
    "diagnose": "judging",
    "examine": "session",
    "watch": "watching",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
