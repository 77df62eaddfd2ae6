"""What a provider says about time: when to try again, and when a rate limit that is used up is filled again."""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable, Mapping
from datetime import datetime

#: Pairs of headers: what is left, and when it is all there again. OpenAI and those like it, Anthropic, OpenRouter, and
#: the draft of the IETF.
_LIMITS = (
    *((f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}") for what in ("requests", "tokens")),
    *(
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset")
        for what in ("requests", "tokens", "input-tokens", "output-tokens")
    ),
    ("x-ratelimit-remaining", "x-ratelimit-reset"),
    ("ratelimit-remaining", "ratelimit-reset"),
)
#: Numbers from here on are times since 1970, in seconds or in milliseconds; smaller ones are seconds from now.
_EPOCH_S, _EPOCH_MS = 10**9, 10**12
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds that the provider asks to wait, None where it does not say; ``now`` is Unix time in seconds.

    Looked at in order: ``retry-after-ms``; ``retry-after`` in seconds or as an HTTP date; the reset of a rate
    limit that is used up. Times are compared with the answer's own date where it has one.
    """
    seconds = _number(headers.get("retry-after-ms"))
    if seconds is not None:
        return seconds / 1_000
    raw = headers.get("retry-after")
    if raw:
        seconds = _number(raw)
        return seconds if seconds is not None else _until(_http_date(raw), headers, now)
    return used_up(headers, now)


def used_up(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds until a rate limit of which nothing is left is filled again; None where something is left of each."""
    return max(_resets(headers, now), default=None)


def _resets(headers: Mapping[str, str], now: float) -> Iterable[float]:
    for remaining, reset in _LIMITS:
        if headers.get(remaining) == "0" and (raw := headers.get(reset)):
            seconds = _from_now(raw, headers, now)
            # Azure writes 0 for what it does not know.
            if seconds:
                yield seconds


def _from_now(raw: str, headers: Mapping[str, str], now: float) -> float | None:
    """Seconds from now: a duration, a number of seconds, or a time."""
    seconds = _number(raw)
    if seconds is None:
        seconds = duration(raw)
        return seconds if seconds is not None else _until(_timestamp(raw), headers, now)
    if seconds < _EPOCH_S:
        return seconds
    return _until(seconds / (1_000 if seconds >= _EPOCH_MS else 1), headers, now)


def duration(raw: str) -> float | None:
    """Read ``1s``, ``6m0s`` or ``12ms`` as seconds; None for anything else."""
    if not re.fullmatch(r"(?:\d{1,9}(?:\.\d{1,9})?(?:ms|[smhd]))+", raw):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhd])", raw))


def _number(raw: str | None) -> float | None:
    if raw is None or not re.fullmatch(r"\s*\d{1,15}(?:\.\d{1,9})?\s*", raw):
        return None
    return float(raw)


def _until(then: float | None, headers: Mapping[str, str], now: float) -> float | None:
    # Of the same clock, where the answer says what it shows: this machine's may be wrong by hours.
    there = _http_date(headers.get("date") or "")
    return None if then is None else max(0.0, then - (now if there is None else there))


def _http_date(raw: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(raw).timestamp()
    except (ValueError, OverflowError):
        return None


def _timestamp(raw: str) -> float | None:
    """RFC 3339, as Anthropic writes it. Without a time zone it means nothing."""
    try:
        when = datetime.fromisoformat(raw)
        return when.timestamp() if when.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None
