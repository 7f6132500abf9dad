"""What all tests share: one compute thread, no display."""

from __future__ import annotations

import os
import signal

# Before numpy, torch and matplotlib are imported, here and in the programs that the tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
# A developer's own settings of the terminal must not change what the tests see.
for name in ("FORCE_COLOR", "NO_COLOR", "COLUMNS", "PYTHONSAFEPATH", "PYTHONWARNINGS"):
    os.environ.pop(name, None)
# Whoever starts the tests in the background of a shell has them ignore Ctrl-C, and what they start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
