"""Runs training scripts through the real command line, torch loaded once: each run is a fresh fork of a server that holds it."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import runpy
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "fixtures"
TIMEOUT = 600.0
_PRELOADED = [
    "torch",
    "torch.optim",
    "sklearn.datasets",
    "sklearn.model_selection",
    "sklearn.preprocessing",
    "tests.preload",
]


@dataclass(frozen=True)
class Result:
    """How a run ended. `digest` is a hash over every parameter after every optimizer step."""

    code: int
    stdout: str
    stderr: str
    digest: str
    report: dict[str, Any] | None


def expected(script: Path) -> list[tuple[str, str | None]]:
    """The findings that a script's first lines promise, as (check, module or None), in order; empty for a healthy one."""
    found = []
    for line in script.read_text().splitlines():
        match = re.match(r"# expect: ([a-z-]+)(?: at (\S+))?$", line)
        if not match:
            break
        if match[1] != "healthy":
            found.append((match[1], match[2]))
    return found


def advised(script: Path) -> list[str]:
    """The advice that a script's first lines promise (`# advise: NAME`), which is hidden from users who do not ask for it."""
    return re.findall(r"^# advise: (\S+)$", script.read_text().partition('"""')[0], re.MULTILINE)


def ranks(script: Path) -> int:
    """How many processes a script is written for: `# ranks: N` among its first lines."""
    found = re.search(r"^# ranks: (\d+)$", script.read_text().partition('"""')[0], re.MULTILINE)
    return int(found[1]) if found else 1


def run_observed(script: Path, *options: str, arguments: tuple[str, ...] = ()) -> Result:
    """`netdoctor run OPTIONS --json … SCRIPT ARGUMENTS`; under torchrun where the script is written for several processes."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        line = ["run", *options, "--json", str(report), str(script), *arguments]
        processes = ranks(script)
        code, out, err, digest = _forked(_observed, line, folder) if processes == 1 else _launched(processes, line)
        loaded = json.loads(report.read_text()) if report.exists() else None
        return Result(code, out, err, digest, loaded)


def run_plain(script: Path, arguments: tuple[str, ...] = ()) -> Result:
    """`python SCRIPT ARGUMENTS`."""
    with tempfile.TemporaryDirectory() as folder:
        return Result(*_forked(_plain, [str(script), *arguments], folder), None)


def _launched(processes: int, line: list[str]) -> tuple[int, str, str, str]:
    """The command line in several processes; no digest is taken of their parameters."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *torchrun, "-m", "netdoctor", *line]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    return done.returncode, done.stdout, done.stderr, ""


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _forked(work: Any, arguments: list[str], folder: str) -> tuple[int, str, str, str]:
    process = _server().Process(target=_child, args=(work, arguments, folder))
    process.start()
    process.join(TIMEOUT)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"{arguments} took more than {TIMEOUT:g} s")
    texts = [Path(folder, name).read_text() if Path(folder, name).exists() else "" for name in ("out", "err", "digest")]
    return process.exitcode or 0, texts[0], texts[1], texts[2]


def _child(work: Any, arguments: list[str], folder: str) -> None:
    for name, number in (("out", 1), ("err", 2)):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115
    os.chdir(ROOT)
    code = _exit_code(work, arguments, f"{folder}/digest")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _exit_code(work: Any, arguments: list[str], digest: str) -> int:
    try:
        with _Digest(digest):
            work(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


class _Digest:
    """Hashes every parameter after every step that is taken on the script's own tensors, in either kind of run."""

    def __init__(self, path: str) -> None:
        self._path, self._hash, self._on = path, hashlib.sha256(), True

    def __enter__(self) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        register_optimizer_step_post_hook(self._step)

    def _step(self, optimizer: Any, *_: Any) -> None:
        caller: Any = sys._getframe()
        while caller is not None:  # a step of an experiment on a copy is none of the script's
            if "/netdoctor/experiments/" in caller.f_code.co_filename:
                return
            caller = caller.f_back
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                self._hash.update(parameter.detach().contiguous().reshape(-1).view(dtype=_BYTES()).numpy().tobytes())

    def __exit__(self, *_: object) -> None:
        Path(self._path).write_text(self._hash.hexdigest())


def _BYTES() -> Any:
    import torch

    return torch.uint8


def _observed(arguments: list[str]) -> None:
    from netdoctor.cli import main

    sys.argv = ["netdoctor", *arguments]
    main(arguments)


def _plain(arguments: list[str]) -> None:
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")
