"""Hand-made reports and recordings for the tests of the renderers: nothing in here was measured."""

from __future__ import annotations

import math

import numpy as np

from netdoctor.finding import (
    Abstention,
    Certainty,
    Evidence,
    Finding,
    Fix,
    Location,
    Reach,
    Severity,
    Trial,
    Verdict,
)
from netdoctor.recording import (
    Arm,
    Event,
    Header,
    Kind,
    Layer,
    Optimizer,
    Parameter,
    Recording,
    Role,
    Series,
    SourceLine,
    Stat,
    Track,
)
from netdoctor.report import Crash, Experiment, Report

NAN = math.nan
CODE = """\
for module in model.modules():
    if isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        nn.init.zeros_(module.bias)
"""
EVIL = '[bold red]x[/]\x1b[31m\x1b]0;title\x07<script>alert(1)</script>\n"quoted" `tick` $a_b$ |‮' + "y" * 10_000


def sampled(steps: int) -> np.ndarray:
    """The steps at which capture takes statistics: the first eight, then ever further apart."""
    wanted, at = list(range(min(8, steps))), 8.0
    while at < steps:
        wanted.append(int(at))
        at = max(at + 1, at * 1.1)
    return np.array(wanted, dtype=np.int64)


def recording(depth: int = 3, steps: int = 100, growth: float = 12.0, nan_at: int | None = None) -> Recording:
    """A plain chain of Linear and ReLU whose activations grow by `growth` per layer; the loss breaks at `nan_at`."""
    taken = nan_at + 1 if nan_at is not None else steps
    at = sampled(taken)
    made = Recording(header=Header("train.py", "0.1.0", "2.13.0", "3.11.9"), steps=taken)
    names = []
    for index in range(depth):
        linear, relu, weight = f"body.{2 * index}", f"body.{2 * index + 1}", f"body.{2 * index}.weight"
        names.append(weight)
        line = SourceLine("train.py", 14 + index % 5, "nn.Linear(512, 512),")
        made.layers.append(
            Layer(
                linear, "Linear", Kind.LINEAR, 2 * index, units=512, weight=weight, fan_in=512, fan_out=512, source=line
            )
        )
        made.layers.append(Layer(relu, "ReLU", Kind.ACTIVATION, 2 * index + 1, units=512, source=line))
        made.parameters[weight] = Parameter(weight, linear, "Linear", (512, 512), "float32", optimizer=0)
        forward = min(growth ** (index + 1), 1e30) * (1 + 0.02 * np.sin(at + index))
        backward = min(growth ** (depth - index), 1e30) * 1e-3 / np.sqrt(1 + at)
        if nan_at is not None:
            forward[-1] = NAN
        for layer in made.layers[-2:]:
            made.tracks[layer.site(Role.OUTPUT), Stat.RMS] = Track(at, forward)
            made.tracks[layer.site(Role.OUTPUT_GRADIENT), Stat.RMS] = Track(at, backward)
        active = (np.random.default_rng(index).random((len(at), 512)) > np.linspace(0.2, 0.8, 512)).astype(float)
        active[:, :200] = 0
        made.tracks[made.layers[-1].site(Role.OUTPUT), Stat.UNIT_ACTIVE] = Track(at, active)
        parameter = made.parameters[weight]
        made.tracks[parameter.site(Role.WEIGHT), Stat.RMS] = Track(at, np.full(len(at), 1.0))
        made.tracks[parameter.site(Role.WEIGHT), Stat.STD] = Track(at, 1 + 0.001 * at)
        made.tracks[parameter.site(Role.UPDATE), Stat.RMS] = Track(at, 1e-3 / (1 + index) / np.sqrt(1 + at))
    made.optimizers.append(Optimizer(0, "Adam", ({"lr": 1e-3},), tuple(names), SourceLine("train.py", 30), taken))
    every = np.arange(taken, dtype=np.int64)
    noise = np.random.default_rng(0).normal(0, 0.04, taken)
    loss = 2.31 * np.exp(-every / 25) * np.exp(noise) + 0.01
    if nan_at is not None:
        loss[nan_at:] = NAN
    made.losses["loss"] = Series(every, loss)
    made.scalars["lr"] = Series(every, np.where(every < 60, 1e-3, 1e-4))
    made.scalars["gradient norm"] = Series(every, 3 / np.sqrt(1 + every))
    held_out = every[::20]
    made.scalars["evaluation loss"] = Series(held_out, loss[::20] * 1.2)
    made.events += [Event(int(step), "evaluation") for step in held_out]
    made.events += [Event(60, "scheduler", "StepLR")] if taken > 60 else []
    made.counts = {"backward": taken, "step": taken, "zero_grad": taken, "evaluation": len(held_out)}
    cured = 2.31 * np.exp(-np.arange(100) / 15) + 0.004
    made.arms["overfit/own"] = Arm("overfit/own", np.full(100, 2.3), 2.0, {"reached": False})
    made.arms["overfit/adam 0.001"] = Arm("overfit/adam 0.001", cured, 2.0, {"reached": True})
    made.arms["trial/control"] = Arm("trial/control", np.array([2.31, 9e4, NAN]), 1.0)
    made.arms["trial/lr x0.1"] = Arm("trial/lr x0.1", cured * 1.4, 1.0)
    made.arms["batchnorm/with"] = Arm("batchnorm/with", np.array([]), 0.5, {"finite": True})
    made.arms["batchnorm/bypassed"] = Arm("batchnorm/bypassed", np.array([]), failure="there is no BatchNorm")
    return made


def trial(verdict: Verdict = Verdict.CURED) -> Trial:
    """A fix tried where the control breaks at step 2; only a cure does better."""
    broken = (2.31, 9.1e4, NAN)
    falling = tuple(float(x) for x in 2.31 * 0.9385 ** np.arange(100))
    return Trial(verdict, broken, (*falling, 0.004) if verdict is Verdict.CURED else (2.31, 1.7e3, 8e4, NAN), 100, 1.9)


def root(made: Recording, places: int = 3) -> Finding:
    """Weights that are far too large, with fixes and symptoms."""
    weight = made.parameters["body.0.weight"]
    last = made.layers[-1]
    names = tuple(list(made.parameters)[:places])
    line = SourceLine("train.py", 14, "nn.Linear(784, 512),")
    grown = Track(np.array([0]), np.array([1.0])) if last.path == "" else made.of_layer(last, Stat.RMS)
    assert grown is not None
    return Finding(
        "poor-initialization",
        f"The weights of {len(names)} layers start 16 times larger than ReLU asks for",
        Severity.ERROR,
        "Weights drawn from N(0, 1) multiply the signal by the square root of the fan-in at every layer. The signal "
        "then grows with depth until the loss is no number.",
        Location.at(line, "body.0", step=0),
        (
            Evidence("standard deviation of body.0.weight", 1.0, ">", 0.25, "", weight.site(Role.WEIGHT), Stat.STD),
            Evidence("root mean square of the last layer", grown.first, ">", 1e3, "", last.site(Role.OUTPUT), Stat.RMS),
            Evidence("growth from the first layer to the last", 2.3e4, ">", 1e3, "×"),
        ),
        (
            Fix("variance-scaling-init", "Draw the weights as He et al. do for ReLU.", CODE, Reach.MODEL, trial()),
            Fix(
                "clip-gradients",
                "Clip the gradient norm; this hides the cause.",
                "",
                Reach.RUN,
                trial(Verdict.NO_EFFECT),
            ),
        ),
        Certainty.PROVEN,
        0,
        names,
        1.0,
        (
            Finding(
                "exploding-activations", "Activations grow 12 times per layer", Severity.ERROR, "", Location("body.1")
            ),
            Finding(
                "non-finite-activation",
                "The first NaN is made by log_softmax",
                Severity.ERROR,
                "",
                Location.at(SourceLine("train.py", 41), "", "log_softmax", 2),
            ),
            Finding("loss-diverging", "The loss rises from 2.31 to 9.1e4 in one step", Severity.WARNING, ""),
        ),
    )


def dead(made: Recording) -> Finding:
    """A layer with dead units, without a trial."""
    layer = made.layers[1]
    line = SourceLine("train.py", 15, "nn.ReLU(),")
    return Finding(
        "dead-relu",
        "39 % of the units of body.1 never gave anything but 0",
        Severity.WARNING,
        "A unit that gives 0 for every sample gets no gradient, so it cannot come back by itself.",
        Location.at(line, "body.1", samples=(3, 17)),
        (Evidence("units that never fired", 0.39, "≥", 0.2, "", layer.site(Role.OUTPUT), Stat.UNIT_ACTIVE),),
        (Fix("leaky-relu", "Let a small gradient through.", "nn.LeakyReLU(0.01)"),),
        share=0.39,
    )


def remark() -> Finding:
    """An advice-level finding."""
    return Finding(
        "adam-l2-weight-decay", "Adam is used with weight_decay=0.01", Severity.ADVICE, "AdamW decouples it."
    )


CHECKS = (
    "missing-zero-grad",
    "double-softmax",
    "unshuffled-data",
    "eval-mode-in-training",
    "loss-shape-broadcast",
    "label-range",
)
ABSTAINED = (
    Abstention("overfitting", "no evaluation was seen"),
    Abstention("train-eval-shift", "no evaluation was seen"),
    Abstention("causal-leak", "the model is not autoregressive, as far as can be told"),
)


def sick(made: Recording | None = None, **changes: object) -> Report:
    """A report with an error, a warning, an advice, and something in every other section."""
    made = recording() if made is None else made
    values: dict[str, object] = {
        "target": "train.py",
        "verdict": "sick",
        "steps": made.steps,
        "findings": (root(made), dead(made), remark()),
        "ignored": (remark(),),
        "experiments": (
            Experiment(
                "overfit-tiny-batch", "failed", "8 samples: 2.31 → 2.30 with your optimizer, 0.004 with Adam at 0.001"
            ),
            Experiment("batchnorm-bypass", "could not run", "there is no BatchNorm"),
        ),
        "abstentions": ABSTAINED,
        "crashes": (Crash("check redundant-units", "ValueError: array must not contain infs or NaNs"),),
        "passed": CHECKS,
        "blind_spots": ("the work of 2 data loader processes",),
        "netdoctor": "0.1.0",
        "torch": "2.13.0",
        "observing_s": 1.24,
        "experiments_s": 14.2,
        "losses": {"loss": (2.31, NAN)},
    }
    return Report(**(values | changes))  # type: ignore[arg-type]


def healthy() -> Report:
    """Nothing was found."""
    return sick(
        verdict="healthy",
        findings=(remark(),),
        ignored=(),
        crashes=(),
        blind_spots=(),
        losses={"loss": (2.31, 0.031)},
        experiments=(Experiment("overfit-tiny-batch", "passed", "8 samples: 2.31 → 0.0009 in 140 steps"),),
    )


def unseen() -> Report:
    """The script trained nothing."""
    return Report("train.py", "not observed", 0, blind_spots=("the script never called backward",), netdoctor="0.1.0")


def evil() -> Report:
    """Every text that the user's program controls is hostile."""
    made = recording()
    location = Location(EVIL, EVIL, EVIL, 3, EVIL, 1, tuple(range(1000)))
    finding = Finding(
        "dead-relu",
        EVIL,
        Severity.ERROR,
        EVIL,
        location,
        (Evidence(EVIL, NAN, ">", math.inf, EVIL, made.layers[0].site(Role.OUTPUT), Stat.RMS),),
        (Fix("x", EVIL, EVIL, trial=Trial(Verdict.COULD_NOT_RUN, says=EVIL)),),
        places=(EVIL, EVIL),
        symptoms=(Finding("loss-diverging", EVIL, Severity.ERROR, EVIL, location),),
    )
    return sick(
        target=EVIL,
        findings=(finding,) * 7,
        ended=EVIL,
        blind_spots=(EVIL,),
        crashes=(Crash(EVIL, EVIL),),
        experiments=(Experiment(EVIL, "failed", EVIL),),
        abstentions=(Abstention("x", EVIL),),
        losses={EVIL: (NAN, math.inf)},
        passed=(EVIL,),
    )
