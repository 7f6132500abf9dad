"""A custom autograd function that gives no gradient at all, and the parameters that wait for it."""

from __future__ import annotations

from netdoctor.checks.structure.gradients import listed, modules, owned
from netdoctor.finding import Certainty, Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Arm, Recording, Role, SourceLine, Stat

_CODE = """# in backward, for a straight-through estimator: pass what comes where the input is in range
return grad_output * (x.abs() <= 1)"""


def starved(recording: Recording, steps: int) -> list[str]:
    """The trained parameters whose gradient is there, and exactly 0 in every one of at least so many sampled steps."""
    found = []
    for parameter in recording.parameters.values():
        track = recording.of_parameter(parameter.name, Stat.RMS, Role.WEIGHT_GRADIENT)
        still = track is not None and len(track.values) >= steps and not track.values.any()
        if still and parameter.requires_grad and owned(recording, parameter):
            found.append(parameter.name)
    return found


def starving(check: str, name: str, arm: Arm, lost: list[str], recording: Recording) -> Finding:
    """That the function of this name, as its arm shows, gives the parameters `lost` no gradient."""
    where, file = listed(modules(recording, lost)), str(arm.facts.get("backward_file", ""))
    at = SourceLine(file, int(float(arm.facts.get("backward_line", 0))), str(arm.facts.get("backward_text", "")))
    says = f"What comes back to it from the loss ends there, so that {where} never learn."
    if arm.facts.get("off") == 0.0:
        says += (
            " Its forward pass is flat, as rounding is: a gradient of one's own must pass where the input is in range."
        )
    return Finding(
        check,
        f"the backward of {name} gives no gradient: that of {where} is exactly 0 in every step",
        Severity.ERROR,
        says,
        Location.at(at if file else None, operation=f"{name}.backward", step=0),
        (Evidence("parameters whose gradient is always 0", len(lost), ">", 0.0),),
        (Fix("pass-gradient", "Let the gradient through.", _CODE, Reach.MODEL),),
        Certainty.PROVEN,
        0,
        places=tuple(lost),
        share=len(lost) / len(recording.parameters),
    )
