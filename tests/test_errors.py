"""Why an experiment failed, in words for the report."""

from __future__ import annotations

import pytest

from netdoctor.errors import CannotReplayError, why_it_failed


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (CannotReplayError("the step reads a file"), "the step reads a file"),
        (RuntimeError("shapes cannot be multiplied\nmore"), "the copy failed: shapes cannot be multiplied"),
        (KeyError("x"), "the copy failed: KeyError 'x'"),
        (RuntimeError(), "the copy failed: RuntimeError"),
    ],
)
def test_the_type_is_told_only_where_the_message_needs_it(error: Exception, said: str) -> None:
    assert why_it_failed(error) == said
