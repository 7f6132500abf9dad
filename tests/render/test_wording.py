from __future__ import annotations

import math
import os
import unicodedata
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netdoctor.finding import Evidence, Location, Measured, Trial, Verdict
from netdoctor.render import wording
from netdoctor.report import Experiment
from tests.render import builders


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2.31, "2.31"),
        (0.004, "0.004"),
        (1024.0, "1024"),
        (0.1 + 0.2, "0.3"),
        (23456.7, "23457"),
        (123456.0, "1.2e5"),
        (1e9, "1e9"),
        (1e-5, "1e-5"),
        (-3.456, "-3.46"),
        (0.0, "0"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert wording.number(value) == text


@given(st.floats(-1e300, 1e300))
def test_numbers_keep_their_size(value: float) -> None:
    assert float(wording.number(value)) == pytest.approx(value, rel=0.06)


@given(st.text(), st.integers(2, 50))
def test_clean_is_one_short_harmless_line(text: str, limit: int) -> None:
    cleaned = wording.clean(text, limit)
    assert len(cleaned) <= limit
    assert not any(unicodedata.category(c) in {"Cc", "Cf", "Cs"} for c in cleaned)
    assert wording.clean(cleaned, limit) == cleaned


def test_clean_leaves_ordinary_names_alone() -> None:
    for name in ("body.3.weight", "层.卷积", "naïve", "a_b[0]"):
        assert wording.clean(name) == name


def test_clean_drops_whole_escape_sequences() -> None:
    assert wording.clean("a\x1b[31;1mb\x1b]0;title\x07c\x1b[?25ld") == "abcd"


def test_code_keeps_its_lines_and_indentation() -> None:
    assert wording.clean_code("\nif x:\n\ty = 1\x1b[2J\n") == "if x:\n    y = 1"
    assert wording.clean_code("x\n" * 200).count("\n") == wording.CODE_LINES


@pytest.mark.parametrize(
    ("losses", "text"),
    [
        ((2.31, 1.0, 0.004), "2.31 → 0.004"),
        ((2.31, 9.1e4, math.nan, math.nan), "2.31 → NaN at step 2"),
        ((math.inf, 1.0), "∞ at step 0"),
        ((2.0,), "2 → 2"),
        ((), "no loss"),
    ],
)
def test_course(losses: tuple[float, ...], text: str) -> None:
    assert wording.course(losses) == text


def test_trial_sentence_says_both_arms() -> None:
    assert (
        wording.trial_sentence(builders.trial())
        == "with it: 2.31 → 0.004 in 100 steps; without it: 2.31 → NaN at step 2"
    )
    assert wording.trial_sentence(Trial(Verdict.COULD_NOT_RUN, says="no copy can be made")) == "no copy can be made"
    differ = Trial(Verdict.CURED, (2.0,), (1.0,), measured=Measured("two passes differ by", 31.0, 0.0, "%"))
    assert wording.trial_sentence(differ) == "two passes differ by: with it 0 %, without it 31 %"


def test_every_verdict_of_a_trial_has_words() -> None:
    assert len({wording.trial_verdict(Trial(verdict)) for verdict in Verdict}) == len(Verdict)


def test_evidence_keeps_its_relation_and_limit() -> None:
    assert (
        wording.evidence_sentence(Evidence("dead units", 53.0, "≥", 50.0, "%"))
        == "dead units: 53 %, at or above the limit of 50 %"
    )
    assert wording.evidence_sentence(Evidence("rms", 2e9, ">", 1e3)) == "rms: 2e9, above the limit of 1000"


def test_paths_beneath_the_current_directory_are_relative() -> None:
    inside = os.path.join(os.getcwd(), "a", "train.py")
    assert wording.shown_path(inside) == os.path.join("a", "train.py")
    assert wording.shown_path("/elsewhere/train.py") == "/elsewhere/train.py"


def test_place_says_everything_known_and_nothing_else() -> None:
    assert wording.place(Location()) == ""
    known = Location("body.3", "relu", "train.py", 14, "", 2, (3,))
    assert wording.place(known) == "train.py:14 · body.3 (relu) · step 2 · sample 3 of the batch"


def test_headlines() -> None:
    assert wording.headline(builders.sick()) == "2 root causes found: 1 error, 1 warning; 3 symptoms explained."
    assert wording.headline(builders.healthy()) == "Healthy: nothing wrong was found in 100 steps."
    assert "no verdict" in wording.headline(builders.unseen())


@pytest.mark.parametrize(("blocked", "healthy"), [(0, True), (2, True), (3, False), (4, False)])
def test_where_most_could_not_be_tried_nothing_is_called_healthy(blocked, healthy):
    made = [Experiment(f"x{at}", "could not run" if at < blocked else "passed", "") for at in range(4)]
    said = wording.headline(replace(builders.healthy(), experiments=tuple(made)))
    assert said.startswith("Healthy: ") is healthy
    assert healthy or said == f"Nothing wrong was found in 100 steps, but {blocked} of 4 experiments could not run."


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("finished", ""),
        ("stopped after 5 steps", "It was stopped after 5 steps, as asked."),
        ("raised TypeError: no", "The script did not finish by itself: raised TypeError: no."),
        ("raised RuntimeError: a. b.", "The script did not finish by itself: raised RuntimeError: a. b."),
    ],
)
def test_how_it_ended_is_one_sentence(how, says):
    assert wording.ended(replace(builders.sick(), ended=how)) == says
