"""A mutant of every fault is diagnosed; all mutants are whole programs."""

from __future__ import annotations

import pytest

from netdoctor import catalogue
from tests.mutations.__main__ import line, said
from tests.mutations.catalogue import FAULTS, MISSED
from tests.mutations.injection import Fault, Outcome, mutated, run

MUTANTS = [(fault, program) for fault in FAULTS for program in fault.programs]


def _id(value: object) -> str:
    return value.name if isinstance(value, Fault) else str(value)


@pytest.mark.parametrize(("fault", "program"), MUTANTS, ids=_id)
def test_a_mutant_is_a_program_with_something_changed(fault: Fault, program: str) -> None:
    from tests.scripts import FIXTURES

    source = mutated(fault, program)
    compile(source, program, "exec")
    assert source != (FIXTURES / "healthy" / f"{program}.py").read_text().replace("# expect: healthy\n", "", 1)


def test_an_edit_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match="mlp_wine has no 'nowhere in it'"):
        mutated(Fault("odd", (), {"mlp_wine": (("nowhere in it", ""),)}), "mlp_wine")


def test_faults_are_varied_over_programs_and_name_checks_that_exist() -> None:
    known = {check.name for check in catalogue.all_checks()}
    for fault in FAULTS:
        assert len(fault.programs) >= 3, fault.name
        assert set(fault.expected) <= known, fault.name
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)


def test_the_table_counts_ranks() -> None:
    fault = Fault("odd", ("b",), {})
    outcomes = [
        Outcome(fault, "p", 1, 1.0, found, ("s",), "") for found in (("b", "a"), ("a", "b"), ("x", "y", "z", "b"), ())
    ]
    assert [o.rank for o in outcomes] == [0, 1, 3, None]
    assert line("odd", outcomes) == "| odd | 4 | 1 | 2 |"
    assert said(outcomes[3]).strip() == "missed  odd in p: nothing (symptoms: s)"


def known(fault: Fault) -> list[str]:
    """The programs in which the fault was measured and found."""
    return [program for program in list(fault.programs)[:3] if (fault.name, program) not in MISSED]


# Every third fault, each in another kind of program than the one before: some two minutes. `python -m tests.mutations` runs all.
CHOSEN = [(fault, known(fault)[number % len(known(fault))]) for number, fault in enumerate(FAULTS[::3])]


def test_what_is_missed_is_a_mutant() -> None:
    assert set(MISSED) <= {(fault.name, program) for fault, program in MUTANTS}


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "program"), CHOSEN, ids=_id)
def test_the_root_cause_is_among_the_first_three(fault: Fault, program: str) -> None:
    outcome = run(fault, program)
    assert outcome.rank is not None, said(outcome)
    assert outcome.rank < 3, said(outcome)
