"""Golden files: `golden("sick.txt", text)` compares, `pytest tests/render --renew-goldens` writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

GOLDENS = Path(__file__).parent / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Look at the difference before renewed goldens are committed."""
    parser.addoption("--renew-goldens", action="store_true", help="write the golden files anew instead of comparing")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of that name."""

    def compare(name: str, text: str) -> None:
        path = GOLDENS / name
        if request.config.getoption("--renew-goldens", default=False):
            path.write_bytes(text.encode())
        assert path.exists(), f"no golden {name}: run pytest tests/render --renew-goldens and look at what it wrote"
        assert text == path.read_bytes().decode()

    return compare
