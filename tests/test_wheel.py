"""The wheel holds what it needs, and what is installed from it works away from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow


def run(*command: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by pip. Without the build backend and without a network to fetch it from there is nothing to test."""
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", folder, ROOT, folder=folder)
    if built.returncode and "hatchling" in built.stderr and "o matching distribution" in built.stderr:
        pytest.skip("hatchling cannot be fetched")
    assert built.returncode == 0, built.stderr
    (made,) = folder.glob("netdoctor-*.whl")
    return made


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        points = next(archive.read(name).decode() for name in archive.namelist() if name.endswith("entry_points.txt"))
    files = (path for path in (ROOT / "netdoctor").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert held == {path.relative_to(ROOT).as_posix() for path in files}
    assert {"netdoctor/py.typed", "netdoctor/render/templates/report.html"} <= held
    assert "netdoctor = netdoctor.cli:main" in points
    assert "netdoctor = netdoctor.pytest_plugin" in points


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel alone; what it depends on is borrowed from the one that runs the tests."""
    folder = tmp_path_factory.mktemp("environment")
    assert run(sys.executable, "-m", "venv", "--without-pip", folder / "env", folder=folder).returncode == 0
    python = folder / "env" / "bin" / "python"
    packages = Path(
        run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder).stdout.strip()
    )
    installed = run(
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--no-deps",
        "--no-index",
        "--target",
        packages,
        wheel,
        folder=folder,
    )
    assert installed.returncode == 0, installed.stderr
    borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # Behind the environment's own packages, and without the .pth files there, which name the checkout.
    (packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")
    return python


def test_it_works_from_there(python: Path, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text((ROOT / "fixtures" / "dead_relu" / "sick.py").read_text(encoding="utf-8"))
    where = run(python, "-c", "import netdoctor; print(netdoctor.__file__)", folder=tmp_path)
    assert where.stdout.startswith(str(python.parents[1])), where.stderr
    files = ["--html", "r.html", "--save", "r.ndr", "--json", "r.json"]
    ended = run(python, "-m", "netdoctor", "run", "--no-experiments", *files, "train.py", folder=tmp_path)
    assert ended.returncode == 1, ended.stderr
    assert "dead-relu" in ended.stderr
    assert "<style>" in (tmp_path / "r.html").read_text(encoding="utf-8")
    again = run(python, "-m", "netdoctor", "report", "r.ndr", folder=tmp_path)
    assert "dead-relu" in again.stdout, again.stderr
    assert len(run(python, "-m", "netdoctor", "checks", folder=tmp_path).stdout.splitlines()) > 40
