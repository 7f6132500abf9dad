"""What to do about a layer that gives the same for every sample: take a norm of a single number out, or look upstream."""

from __future__ import annotations

from netdoctor.finding import Fix, Reach
from netdoctor.recording import Layer, Recording


def fix(layer: Layer, recording: Recording) -> Fix:
    """The fix for the first constant layer."""
    if layer.type == "LayerNorm" and layer.units == 1:
        model = str(recording.facts.get("model_variable", "") or "model")
        says = f"{layer.spoken} normalises over a single number, which gives its bias, whatever comes in: leave it out."
        code = f'{model}.set_submodule("{layer.path}", nn.Identity())  # or build it without'
        return Fix("without-norm", says, code, Reach.MODEL)
    code = f"# before and behind {layer.path or layer.type}:\nprint(x.std(dim=0).max(), x.abs().max())"
    return Fix("look-upstream", f"Look at what goes into {layer.spoken}, sample by sample.", code)
