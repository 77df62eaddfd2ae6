"""``results.jsonl``: what a scoring program may say of single cases.

One JSON object a line: ``{"case_id", "value", "passed"?, "answer"?, "explanation"?}``. Lines that are something else
are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import orjson

MOST_CASES = 100_000


def read_cases(content: bytes | None) -> Iterator[dict[str, Any]]:
    """The cases of a file."""
    for number, line in enumerate((content or b"").splitlines()):
        if number >= MOST_CASES:
            return
        if not line.strip():
            continue
        try:
            case = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(case, dict) and isinstance(case.get("case_id"), str) and _is_number(case.get("value")):
            yield case


def count_cases(content: bytes | None) -> int:
    """How many cases a file tells of."""
    return sum(1 for _ in read_cases(content))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
