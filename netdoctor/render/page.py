"""A page of a terminal: lines that are wrapped by ourselves, with labels in the margin and code that can be copied."""

from __future__ import annotations

import io
import os
import unicodedata
from collections.abc import Iterable
from typing import TextIO

from rich.console import Console, detect_legacy_windows
from rich.text import Text

from netdoctor.finding import Severity
from netdoctor.render import wording

WIDEST = 116  # longer lines of prose are hard to read, however wide the window is
NARROWEST = 24  # below, nothing can be laid out; the terminal wraps by itself
STYLES = {Severity.ERROR: "bold red", Severity.WARNING: "bold yellow", Severity.ADVICE: "bold blue"}
_ASCII = str.maketrans(
    {
        "→": "->",
        "·": "-",
        "×": "x",
        "≥": ">=",
        "≤": "<=",
        "≠": "!=",
        "≈": "~",
        "…": "...",
        "∞": "inf",
        "–": "-",
        "—": "-",
    }
    | {
        "“": '"',
        "”": '"',
        "‘": "'",
        "’": "'",
        "−": "-",
        "√": "sqrt",
        "│": "|",
        "±": "+-",
        "≪": "<<",
        "≫": ">>",
        "∂": "d",
    }
)


def wants_color(file: TextIO) -> bool:
    """Whether to use colours on a stream: as NO_COLOR or FORCE_COLOR say, else for a terminal that has them."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") not in {"", "0"}:
        return True
    return file.isatty() and os.environ.get("TERM") != "dumb" and not detect_legacy_windows()


class Page:
    """Collects lines that are already wrapped, so that hanging indents and pasteable code are under our own control."""

    def __init__(self, width: int, color: bool, ascii_only: bool) -> None:
        width = max(NARROWEST, min(width, WIDEST))
        self.width, self.ascii_only = width, ascii_only
        self.margin = 9 if width >= 60 else 2
        self._console = Console(
            file=io.StringIO(),
            width=width,
            force_terminal=color,
            color_system="standard" if color else None,
            legacy_windows=False,
            highlight=False,
            markup=False,
            emoji=False,
            _environ={},
        )

    def plain(self, text: str) -> str:
        """The text as the stream can show it."""
        if not self.ascii_only or text.isascii():
            return text
        text = unicodedata.normalize("NFKD", text.translate(_ASCII))
        text = "".join(c for c in text if not unicodedata.combining(c))
        return text.encode("ascii", "backslashreplace").decode("ascii")

    def blank(self) -> None:
        """An empty line."""
        self._console.print()

    def line(self, *parts: tuple[str, str], hanging: int = 0) -> None:
        """(text, style) pieces on one line, wrapped with `hanging` columns before all lines but the first."""
        self._wrapped(self._styled(parts), Text(), " " * hanging)

    def row(self, label: str, *parts: tuple[str, str], indent: int = 0) -> None:
        """A label in the margin, and beside it the pieces, wrapped; in narrow windows the label stands in line."""
        if self.margin < len(label) + 3:
            parts = ((f"{label}: ", "dim"), *parts) if label else parts
            first = " " * (self.margin + indent)
            self._wrapped(self._styled(parts), Text(first), first)
            return
        first = f"  {label}".ljust(self.margin) + " " * indent
        self._wrapped(self._styled(parts), Text(first, "dim"), " " * (self.margin + indent))

    def code(self, code: str, style: str = "cyan") -> None:
        """Lines that can be copied as they stand: indented, never wrapped, without a border."""
        for line in wording.clean_code(code).splitlines():
            text = Text(" " * (self.margin + 2) + self.plain(line), style if line.strip() else "")
            text.rstrip()
            self._console.print(text, soft_wrap=True)

    def text(self) -> str:
        """All lines so far."""
        written = self._console.file
        assert isinstance(written, io.StringIO)
        return written.getvalue().strip("\n") + "\n"

    def _styled(self, parts: Iterable[tuple[str, str]]) -> Text:
        return Text.assemble(*((self.plain(text), style) for text, style in parts))

    def _wrapped(self, text: Text, first: Text, other: str) -> None:
        room = max(8, self.width - max(len(first), len(other)))
        for number, line in enumerate(text.wrap(self._console, room, overflow="fold")):
            line.rstrip()
            self._console.print(Text.assemble(Text(other) if number else first, line), soft_wrap=True)
