"""`logged.py PREFIX SCRIPT …` runs a script and writes what its process asks of the others, one line each, to PREFIX + rank."""

from __future__ import annotations

import os
import runpy
import sys
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Log(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "c10d" in func.name():
            shapes = [tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
            with open(sys.argv[1] + os.environ["RANK"], "a") as file:
                file.write(f"{func.name()} {shapes}\n")
        return func(*args, **(kwargs or {}))


if __name__ == "__main__":
    prefix, script = sys.argv[1:3]
    kept = sys.argv
    with Log():
        vars(sys)["argv"] = kept
        runpy.run_path(script, run_name="__main__")
