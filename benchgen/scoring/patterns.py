"""Patterns that strangers wrote: compiled once, bounded in length, matched under a time limit.

The ``regex`` library is used instead of ``re`` because it can give up: a pattern such as ``(a|aa)+$`` would
otherwise hold the process for ages.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

import regex

PATTERN_MAX_CHARS = 2_000
"""The longest pattern that is accepted, in characters."""

PATTERN_TIMEOUT_S = 0.25
"""How long one pattern may work on one response, in seconds of this process's CPU time."""

Flag = Literal["ignore_case", "multiline", "dot_all"]

_FLAGS: dict[Flag, int] = {
    "ignore_case": regex.IGNORECASE,
    "multiline": regex.MULTILINE,
    "dot_all": regex.DOTALL,
}


class PatternInvalid(ValueError):
    """The pattern cannot be compiled; the message says where and why."""


@lru_cache(maxsize=512)
def _compile(pattern: str, flags: int) -> regex.Pattern[str]:
    try:
        return regex.compile(pattern, flags)
    except regex.error as error:
        raise PatternInvalid(f"bad pattern: {error}") from error
    except RecursionError as error:
        raise PatternInvalid("bad pattern: groups are nested too deeply") from error


def compile_pattern(pattern: str, flags: Iterable[Flag] = ()) -> regex.Pattern[str]:
    """The compiled pattern; :class:`PatternInvalid` when it is malformed or too long."""
    if len(pattern) > PATTERN_MAX_CHARS:
        raise PatternInvalid(
            f"bad pattern: expected at most {PATTERN_MAX_CHARS} characters, found {len(pattern)}"
        )
    bits = 0
    for flag in flags:
        bits |= _FLAGS[flag]
    return _compile(pattern, bits)
