"""All that watching costs, in one run: `python -m tests.benchmarks [--write] [W1 W2 ...]`; see overhead.py and running.py."""

from __future__ import annotations

import sys

from tests.benchmarks import overhead, running

if __name__ == "__main__":
    overhead.main(sys.argv[1:])
    running.main()
