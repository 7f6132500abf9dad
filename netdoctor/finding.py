"""What a check concludes: findings with their evidence, place and fixes, or an abstention with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from netdoctor.recording import Site, SourceLine, Stat

_SCIENTIFIC = re.compile(r"(?<![\w.])(-?\d(?:\.\d+)?)e([+-])0*(\d+)(?![\w.])")


def spelled(text: str) -> str:
    """Prose with the numbers of Python's %g as a reader writes them: "2.32e+03" → "2320", "1e-05" → "1e-5", "5e+07" → "5e7"."""

    def written(found: re.Match[str]) -> str:
        mantissa, sign, power = found.groups()
        if sign == "+" and int(power) < 5:
            return f"{float(found[0]):.0f}"
        return f"{mantissa}e{'-' if sign == '-' else ''}{power}"

    return _SCIENTIFIC.sub(written, text)


class Severity(str, Enum):
    """ERROR: training cannot work or its result is wrong. WARNING: training is hurt. ADVICE: worth knowing."""

    ERROR = "error"
    WARNING = "warning"
    ADVICE = "advice"

    @property
    def rank(self) -> int:
        """0 for the gravest."""
        return list(Severity).index(self)


class Certainty(str, Enum):
    """How a conclusion was reached."""

    PROVEN = "proven by trial"
    MEASURED = "measured"
    INFERRED = "inferred"

    @property
    def rank(self) -> int:
        """0 for the most certain."""
        return list(Certainty).index(self)


class Reach(str, Enum):
    """What a fix changes."""

    TEXT = "text only"
    RUN = "changes the run"
    MODEL = "changes the model"


class Verdict(str, Enum):
    """The outcome of a trial."""

    CURED = "cured"
    EASED = "eased"
    NO_EFFECT = "no effect"
    WORSE = "worse"
    NOT_REPRODUCED = "not reproduced"
    COULD_NOT_RUN = "could not run"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One measured number beside its limit. `site` and `stat` name the track it comes from, so that it can be plotted."""

    quantity: str
    measured: float
    relation: str  # ">", "<", "=", "≥", "≤"
    limit: float
    unit: str = ""
    site: Site | None = None
    stat: Stat | None = None


@dataclass(frozen=True, slots=True)
class Location:
    """Where: whatever is known of it. `samples` are indices along the batch dimension."""

    module: str | None = None
    operation: str | None = None
    file: str | None = None
    line: int | None = None
    text: str = ""  # the user's source line
    step: int | None = None
    samples: tuple[int, ...] = ()

    @classmethod
    def at(
        cls,
        source: SourceLine | None = None,
        module: str | None = None,
        operation: str | None = None,
        step: int | None = None,
        samples: tuple[int, ...] = (),
    ) -> Location:
        """A location from a source line and whatever else is known."""
        if source is None:
            return cls(module, operation, step=step, samples=samples)
        return cls(module, operation, source.file, source.line, source.text, step, samples)


@dataclass(frozen=True, slots=True)
class Measured:
    """What a trial looked at where the loss does not tell: one number on the copy without the fix, and on that with it."""

    quantity: str  # such as "outputs of two passes in evaluation mode differ by"
    control: float
    treated: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Trial:
    """A fix tried on a copy: the losses without it (control) and with it (treated), from the same start on the same batches.

    `measured` is what the verdict is about where it is not the loss.
    """

    verdict: Verdict
    control: tuple[float, ...] = ()
    treated: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = 0.0
    says: str = ""
    side_effects: tuple[str, ...] = ()  # what is wrong with the treated copy alone
    measured: Measured | None = None


@dataclass(frozen=True, slots=True)
class Fix:
    """A change that should help. `treatment` names it for experiments; `code` can be pasted as it stands."""

    treatment: str
    says: str
    code: str = ""
    reach: Reach = Reach.TEXT
    trial: Trial | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong. `places` lists every affected layer or parameter when there are several.

    `share` is the affected share of what was looked at, in [0, 1]; it breaks ties in the ranking.
    """

    check: str
    title: str
    severity: Severity
    explanation: str
    location: Location = Location()
    evidence: tuple[Evidence, ...] = ()
    fixes: tuple[Fix, ...] = ()
    certainty: Certainty = Certainty.MEASURED
    first_step: int | None = None
    places: tuple[str, ...] = ()
    share: float = 0.0
    symptoms: tuple[Finding, ...] = ()
    apart: bool = False  # a trial showed that the fixes of the other findings do not do without this one's
    # Checks whose findings a trial showed to follow from this one, beside those that its check explains.
    causes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Abstention:
    """A check or experiment that could not tell, and why."""

    check: str
    reason: str
