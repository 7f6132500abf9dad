"""Errors that netdoctor raises on purpose: each carries one plain sentence and the exit code of the command line."""

from __future__ import annotations


class NetdoctorError(Exception):
    """Base of all errors that netdoctor raises; `exit_code` is what the command line ends with."""

    exit_code = 2


class MisuseError(NetdoctorError):
    """The input cannot be used as given; the message says what to do instead."""


class CannotReplayError(NetdoctorError):
    """A captured training step cannot be run again on a copy; the message is the reason, fit for an abstention."""


def why_it_failed(error: Exception) -> str:
    """Why an experiment could not run, in words for the report. What is raised on purpose says it all; of anything else, which
    the user's own code raises on the copy, the type is told only where the message means nothing without it."""
    said = str(error).strip().partition("\n")[0][:200]
    if isinstance(error, NetdoctorError):
        return said
    known = isinstance(error, RuntimeError | ValueError | TypeError) and said
    return f"the copy failed: {said if known else f'{type(error).__name__} {said}'.strip()}"
