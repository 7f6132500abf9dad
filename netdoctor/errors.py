"""Errors that netdoctor raises on purpose: each carries one plain sentence and the exit code of the command line."""

from __future__ import annotations


class NetdoctorError(Exception):
    """Base of all errors that netdoctor raises; `exit_code` is what the command line ends with."""

    exit_code = 2


class MisuseError(NetdoctorError):
    """The input cannot be used as given; the message says what to do instead."""


class CannotReplayError(NetdoctorError):
    """A captured training step cannot be run again on a copy; the message is the reason, fit for an abstention."""
