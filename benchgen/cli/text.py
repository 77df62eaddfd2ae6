"""Numbers and words as people read them. What is not known is said so and is never a 0."""

from __future__ import annotations

import time
import unicodedata
from decimal import Decimal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from google.protobuf.timestamp_pb2 import Timestamp

UNKNOWN = "unknown"
_LAYOUT = frozenset("\n\t")
# These turn the direction of everything after them, the terminal's own words included.
_DIRECTIONS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def count(number: int) -> str:
    """`1,319`."""
    return f"{number:,}"


def tokens(given: int | None, made: int | None) -> str:
    """`120 in, 45 out`; `?` for what was not reported."""
    return ", ".join(
        f"{'?' if number is None else count(number)} {way}" for number, way in ((given, "in"), (made, "out"))
    )


def counted(number: int, word: str) -> str:
    """`1 case`, `1,319 cases`."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def score(value: float | None) -> str:
    """A mean: `71.2%` for those from 0 to 1, plain otherwise."""
    if value is None:
        return "–"
    return f"{value * 100:.1f}%" if 0 <= value <= 1 else f"{value:.4g}"


def usd(amount: float | None) -> str:
    """`$12.34`, and enough digits to see small sums."""
    if amount is None:
        return UNKNOWN
    if amount == 0 or amount >= 1:
        return f"${amount:,.2f}"
    return f"${Decimal(f'{amount:.2g}'):f}" if amount < 0.0001 else f"${amount:.4f}"


def milliseconds(amount: float | None) -> str:
    """`0.8 ms`, `812 ms`, `1.23 s`, `2 min 5 s`."""
    if amount is None:
        return "–"
    if amount < 10:
        return f"{amount:.1f} ms"
    return f"{amount:.0f} ms" if amount < 1000 else duration(amount / 1000)


def duration(seconds: float) -> str:
    """`1.2 s`, `42 s`, `2 min 5 s`, `5 h 2 min`, `2 d 3 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s" if seconds < 1 else f"{seconds:.2f} s"
    whole = round(seconds)
    for size, big, small in ((86_400, "d", "h"), (3_600, "h", "min"), (60, "min", "s")):
        if whole >= size:
            parts, rest = divmod(whole, size)
            unit = {"h": 3_600, "min": 60, "s": 1}[small]
            tail = f" {rest // unit} {small}" if rest // unit else ""
            return f"{parts} {big}{tail}"
    return f"{seconds:.0f} s" if seconds >= 20 else f"{seconds:.1f} s"


def rate(per_second: float) -> str:
    """`93/s`, `4.2/s`, `12/min`."""
    if per_second >= 10:
        return f"{per_second:,.0f}/s"
    return f"{per_second:.1f}/s" if per_second >= 0.5 else f"{per_second * 60:.1f}/min"


def size(number: int) -> str:
    """`812 bytes`, `1.2 MB`."""
    for factor, unit in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= factor:
            return f"{number / factor:.1f} {unit}"
    return counted(number, "byte")


def age(moment: Timestamp) -> str:
    """`12 s ago`, `3 h ago`; nothing for a time that is not set."""
    if not moment.seconds:
        return "–"
    seconds = max(0.0, time.time() - moment.seconds)
    for length, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def clean(text: str) -> str:
    """Text that somebody else wrote, without characters that would steer the terminal."""
    return "".join("�" if _steers(character) else character for character in text.replace("\r\n", "\n"))


def _steers(character: str) -> bool:
    if character in _LAYOUT:
        return False
    return character in _DIRECTIONS or unicodedata.category(character) in ("Cc", "Cs")


def shortened(text: str, length: int) -> str:
    """The text, with a gap in its middle when it is longer: answers stand at the end."""
    if len(text) <= length:
        return text
    head = length * 3 // 5
    return f"{text[:head].rstrip()} […] {text[-(length - head) :].lstrip()}"
