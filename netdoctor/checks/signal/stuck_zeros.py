"""Factors of one product that all start at zero: the gradient of each is a multiple of the other, and none ever moves."""

from __future__ import annotations

from collections.abc import Iterator

from netdoctor.checks.signal.initialisation import expression
from netdoctor.finding import Evidence, Finding, Fix, Location, Reach, Severity
from netdoctor.recording import Parameter, Recording, Role, Stat

FACTORS = 2  # in one module: a single one at zero is a residual end, or the second factor of a low-rank adapter


def stuck(recording: Recording, samples: int) -> dict[str, list[Parameter]]:
    """Per module the matrices that an optimizer holds and that stayed 0, with gradients of exactly 0, in so many sampled steps."""
    found: dict[str, list[Parameter]] = {}
    for parameter in recording.parameters.values():
        held = parameter.requires_grad and parameter.optimizer is not None and len(parameter.shape) > 1
        weight = recording.of_parameter(parameter.name, Stat.RMS) if held else None
        gradient = recording.of_parameter(parameter.name, Stat.RMS, Role.WEIGHT_GRADIENT)
        if weight is None or gradient is None or min(weight.values.size, gradient.values.size) < samples:
            continue
        if not weight.values.any() and not gradient.values.any():
            found.setdefault(parameter.module, []).append(parameter)
    return {module: held for module, held in found.items() if len(held) >= FACTORS}


def findings(name: str, recording: Recording, samples: int) -> Iterator[Finding]:
    """One finding about all of them."""
    found = stuck(recording, samples)
    if not found:
        return
    module, factors = next(iter(found.items()))
    names = [parameter.name for held in found.values() for parameter in held]
    layer = recording.layer_at(module)
    tracks = [recording.of_parameter(name, Stat.RMS, Role.WEIGHT_GRADIENT) for name in names]
    began = min(
        (int(track.steps[0]) for track in tracks if track is not None), default=0
    )  # a part that was added later
    more = f" (and those of {len(found) - 1} more modules)" if len(found) > 1 else ""
    code = "\n".join(
        f"torch.nn.init.kaiming_uniform_({expression(recording, held[0].name)}, a=5**0.5)" for held in found.values()
    )
    yield Finding(
        name,
        f"{' and '.join(p.name for p in factors[:3])} all start at zero and never move{more}",
        Severity.ERROR,
        "They are factors of one product: the gradient of each is a multiple of the other, and so exactly zero for good.",
        Location.at(layer.source if layer else None, module or None, step=began),
        (Evidence(f"largest gradient of {factors[0].name}", 0.0, "≤", 0.0),),
        (
            Fix(
                "initialise",
                "Start one factor of each product at random, and leave the other at zero.",
                code,
                Reach.MODEL,
            ),
        ),
        first_step=began,
        places=tuple(names),
        share=len(names) / max(1, sum(p.requires_grad for p in recording.parameters.values())),
    )
