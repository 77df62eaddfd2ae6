"""How the command ends: what its exit codes mean, and the one exception that ends it early."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The exit codes, which scripts rely on."""

    DONE = 0
    GATE_FAILED = 1
    BAD_INPUT = 2
    UNFINISHED = 3
    UNREACHABLE = 4
    INTERRUPTED = 130


class Stop(Exception):
    """Ends the command with an exit code and a message on stderr.

    :param hint: what to do about it, on a line of its own.
    """

    def __init__(self, code: Exit, message: str, hint: str = "") -> None:
        self.code = code
        self.message = message
        self.hint = hint
        super().__init__(message)
