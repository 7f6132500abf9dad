"""Gradients that explode or die along time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from netdoctor import trend
from netdoctor.check import Check
from netdoctor.checks.signal import consequences as c
from netdoctor.checks.signal import initialisation, outcome
from netdoctor.checks.signal.along_time import excused, ratios
from netdoctor.checks.training.revived import AS_IT_ENDED, REVIVED
from netdoctor.finding import Evidence, Finding, Location, Reach, Severity
from netdoctor.recording import Kind, Layer, Recording, Role, Stat

MEASURED = "log10 of gradient at first over last position"
GATED = frozenset({"LSTM", "GRU", "LSTMCell", "GRUCell"})


@dataclass(frozen=True)
class RecurrentGradients(Check):
    """The gradient with respect to the hidden state grows or shrinks geometrically along time.

    What it is: each time step multiplies the gradient by the recurrent weights once more.
    Why it hurts: it explodes over long sequences, or the early positions get nothing and long memory cannot be learned.
    How it is decided: rms of the gradient at the first position over that at the last one (for a cell called in a
    loop: a line through the calls; for a whole sequence in one call: with respect to its input, on a copy): 1e3 for
    growth, 1e-5 for decay, in most sampled steps until the loss broke, while training fails. A decay: while it stands.
    When it stays silent: training that learns (a trained LSTM may well forget); short sequences; a decay where the loss
    rises or breaks, where a copy with the same recurrence trains at another learning rate, or where the rate came to
    nothing early and no copy shows that it would stand still with a living one. A fix of another finding that cures
    alone speaks for the recurrence too.
    Fix: clip the norm (5 to 15), LSTM or GRU for a plain RNN, orthogonal or identity recurrent weights.
    Sources: Pascanu et al. 2013; Le et al. 2015 (identity initialisation); Saxe et al. 2014 (orthogonal).
    """

    name = "recurrent-gradients"
    needs = frozenset({Stat.RMS, Stat.TIME_RATIO})
    arms = frozenset({"trial/control", AS_IT_ENDED, REVIVED})
    of_harm: ClassVar[bool] = True
    explains = c.NON_FINITE | c.NO_TRAINING | {"exploding-gradients", "learning-rate-too-high", "vanishing-gradients"}

    growth: float = 3.0  # decades; losses at each position by themselves add up to 1 to 2 towards the start
    decay: float = 5.0  # decades; default LSTMs that learn were seen to lose 3 over 30 positions
    most: float = 0.5  # share of sampled steps
    gained: float = 0.2  # of the loss, by another learning rate: what a cure must reach in the steps of a trial

    def judge(self, recording: Recording) -> Iterator[Finding]:
        loss = trend.judge(recording)
        if not outcome.hurt(loss):
            return
        steep = [(layer, r) for layer, r in ratios(recording, self.most) if r >= self.growth or r <= -self.decay]
        if loss.kind not in {"flat", "falls"} or excused(recording, self.gained):  # a gradient that dies breaks nothing
            steep = [(layer, r) for layer, r in steep if r > 0]
        if steep:
            yield self._finding(*max(steep, key=lambda pair: abs(pair[1])), loss)

    def _finding(self, layer: Layer, decades: float, loss: trend.Trend) -> Finding:
        grows = decades > 0
        limit, relation = (self.growth, ">") if grows else (-self.decay, "<")
        site, fan = layer.site(Role.OUTPUT_GRADIENT), f"model.{layer.path}" if layer.path else "model"
        # torch's recurrences name their recurrent weights; in a cell of one's own they are the square ones.
        condition = (
            '"weight_hh" in name'
            if layer.kind is Kind.RECURRENT
            else "weight.dim() == 2 and len(set(weight.shape)) == 1"
        )
        orthogonal = initialisation.advise(
            "orthogonal-recurrence",
            "Start the recurrent weights orthogonal.",
            f"for name, weight in {fan}.named_parameters():\n    if {condition}:\n"
            "        torch.nn.init.orthogonal_(weight)",
        )
        gated = initialisation.advise(
            "gated-recurrence", "Use an LSTM or GRU in place of a plain recurrence.", reach=Reach.MODEL
        )
        return Finding(
            check=self.name,
            title=f"the gradient {'grows' if grows else 'shrinks'} by 1e{abs(decades):.0f} along time in {layer.spoken}",
            severity=Severity.ERROR if grows else Severity.WARNING,
            explanation="The first position gets a gradient that is so many decades off the last one's. "
            + outcome.words(loss),
            location=Location.at(layer.source, layer.path),
            evidence=(Evidence(MEASURED, decades, relation, limit, "decades", site, Stat.TIME_RATIO),),
            fixes=(*((initialisation.CLIP,) if grows else ()), orthogonal, *(() if layer.type in GATED else (gated,))),
        )
