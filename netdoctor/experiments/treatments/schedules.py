"""Treatments of schedules: stepped with the optimizer, and with a rate for each group."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from netdoctor.capture.ledger import named
from netdoctor.capture.planned import MOST, Rates, whole
from netdoctor.capture.step import Action, Iteration
from netdoctor.checks.training.group_rates_overwritten import overwritten
from netdoctor.experiments.treatments.treatment import Bench, Case, Maker, Treatment

STEPS = 100  # of a trial: the whole run of the schedule goes into them
HIGHER = (
    2.0  # times the highest rate that the run came to: what the schedule rises to, else it is no matter of the rate
)
SAME = 0.01  # relative: the rates that the run had must be those of the schedule alone


def per_step(case: Case) -> Treatment | None:
    """The schedule stepped with every optimizer step, beside as often as the run stepped it; both in fast motion.

    Only for schedules that rise (a warm-up that never came to its top): what a decay does at its end shows in no trial.
    None where the rates of the run were not those of the schedule alone.
    """
    schedule, steps, calls = whole(case.step.planned), case.recording.steps, case.recording.counts.get("scheduler", 0)
    if schedule is None or case.step.begins or len(case.step.optimizers) != 1 or not 0 < steps <= MOST:
        return None
    course, last = schedule.course(steps), min(calls, steps)
    if not _alone(case, course, last) or _top(course) < HIGHER * _top(course[: last + 1]):
        return None
    length = min(STEPS, steps)
    meant = [number * steps // length for number in range(length)]

    def both(bench: Bench) -> None:
        rates = [course[step * calls // steps] for step in meant]
        bench.iterations = [_at(bench.iterations[n % len(bench.iterations)], r) for n, r in enumerate(rates)]

    def apply(bench: Bench) -> None:
        bench.iterations = [_at(it, course[step]) for it, step in zip(bench.iterations, meant, strict=True)]

    says = "" if length == steps else f"the schedule of {steps} steps run through in {length}"
    return Treatment(apply, both=both, says=says)


def _top(course: list[Rates]) -> float:
    return max(float(group["lr"]) for rates in course for group in rates[:1])


def _alone(case: Case, course: list[Rates], last: int) -> bool:
    """Whether the first and the last rate of the run are those of the schedule after none and after all of its calls."""
    series = case.recording.scalars.get("lr")
    if series is None or not series.values.size:
        return False
    ends = (float(series.values[0]), course[0]), (float(series.values[-1]), course[max(last - 1, 0)], course[last])
    return all(any(abs(seen - float(r[0]["lr"])) <= SAME * abs(seen) for r in rates) for seen, *rates in ends)


def _at(iteration: Iteration, rates: Rates) -> Iteration:
    """The iteration with the optimizer's options as the schedule has them."""
    lrs = tuple(float(group["lr"]) for group in rates)
    more = [{key: value for key, value in group.items() if key != "lr"} for group in rates]

    def changed(action: Action) -> Action:
        if action.kind != "step":
            return action
        known = (*action.options, *({} for _ in more[len(action.options) :]))
        return replace(action, lrs=lrs, options=tuple(one | new for one, new in zip(known, more, strict=False)))

    return Iteration([changed(action) for action in iteration.actions], iteration.bytes)


def group_rates(case: Case) -> Treatment | None:
    """Each group at the rate that it was built with, times what the run made of its highest rate; beside one rate for all, as the
    run had it. Both in fast motion: the rates of the whole run go into a trial."""
    found = next((o for o in case.recording.optimizers if overwritten(o)), None)
    series = None if found is None else case.recording.scalars.get(named("lr", found.index))
    if found is None or series is None or not float(np.nanmax(series.values, initial=0.0)) > 0:
        return None
    length, top, built = min(STEPS, len(series.values)), float(np.nanmax(series.values)), found.rates
    course = [float(series.values[number * len(series.values) // length]) for number in range(length)]

    def run(bench: Bench, rates: tuple[float, ...]) -> None:
        turn = [bench.iterations[number % len(bench.iterations)] for number in range(length)]
        bench.iterations = [_rated(it, rates, lr / top) for it, lr in zip(turn, course, strict=True)]

    says = f"the rates of {len(series.values)} steps run through in {length}"
    return Treatment(lambda bench: run(bench, built), both=lambda bench: run(bench, (top,) * len(built)), says=says)


def _rated(iteration: Iteration, rates: tuple[float, ...], factor: float) -> Iteration:
    """The iteration with these rates, times a factor, for the optimizer that has as many groups."""

    def changed(action: Action) -> Action:
        fits = action.kind == "step" and len(action.lrs) == len(rates)
        return replace(action, lrs=tuple(factor * rate for rate in rates)) if fits else action

    return Iteration([*map(changed, iteration.actions)], iteration.bytes)


TREATMENTS: dict[str, Maker] = {
    "schedule-per-step": per_step,
    "scheduler-after-step": per_step,
    "keep-group-rates": group_rates,
}
