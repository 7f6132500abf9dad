"""The form of a check. A subclass in `netdoctor/checks/<family>/<name>.py` is found by itself; there is no list to edit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from netdoctor.finding import Abstention, Finding
from netdoctor.recording import Recording, Stat


@dataclass(frozen=True)
class Check:
    """Base of all checks: a frozen dataclass whose fields are its thresholds, each with the reason for its value.

    The docstring of a subclass is what `netdoctor explain NAME` prints. It has the headings "What it is", "Why it hurts",
    "How it is decided", "When it stays silent", "Fix" and "Sources".
    """

    name: ClassVar[str] = ""
    needs: ClassVar[frozenset[Stat]] = frozenset()  # capture takes only the statistics that the selected checks need
    explains: ClassVar[frozenset[str]] = frozenset()  # checks whose findings are symptoms of this one
    arms: ClassVar[frozenset[str]] = frozenset()  # experiments that it reads
    suspects: ClassVar[bool] = False  # what it finds may be idle: where its fixes were tried in vain it is advice
    of_harm: ClassVar[bool] = (
        False  # speaks only as training is hurt: not where the fix of another finding alone cures that
    )
    breaks: ClassVar[bool] = False  # names the birth of a NaN or Inf: from there on nothing that is measured counts

    @property
    def family(self) -> str:
        """The folder that the check lies in."""
        return type(self).__module__.rsplit(".", 2)[-2]

    def judge(self, recording: Recording) -> Iterator[Finding | Abstention]:
        """Yield findings, or abstentions with their reason; nothing at all means looked at and found well."""
        raise NotImplementedError
