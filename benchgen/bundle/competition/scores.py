"""Reads what a scoring program wrote: ``scores.json``, else ``scores.txt``.

A value that is no number is told, and leaves its column without a score. It is never taken as 0.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchgen.bundle.competition.model import Column, Computation, Dialect
from benchgen.bundle.problems import ProblemLog, found, shortened
from benchgen.bundle.yamldoc import read_yaml

SCORE_FILES = ("scores.json", "scores.txt")
"""Where scores are looked for, the first one that is there."""

MAX_SCORES_BYTES = 1 << 20
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_NOT_FINITE = re.compile(r"[+-]?\.?(?:nan|inf|infinity)", re.IGNORECASE)
_GLUED = re.compile(r"([^\s:]+):([^\s:]\S*)")


class ScoresUnreadableError(Exception):
    """There are no scores at all; the message says why."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The value of each column that has one, and for each that has none the reason."""

    values: Mapping[str, float]
    reasons: Mapping[str, str]


def read_scores(files: Mapping[str, bytes], columns: Sequence[Column], dialect: Dialect) -> Scores:
    """The scores of one task.

    :param files: of the scoring program's output, those named in ``SCORE_FILES`` at least.
    :raises ScoresUnreadableError: there is no such file, or it is none that can be read.
    """
    name = next((name for name in SCORE_FILES if name in files), None)
    if name is None:
        raise ScoresUnreadableError(
            "expected the scoring program to write scores.json (or scores.txt) to its output folder, found neither"
        )
    content = files[name]
    if len(content) > MAX_SCORES_BYTES:
        raise ScoresUnreadableError(
            f"{name}: expected at most {MAX_SCORES_BYTES:,} bytes, found {len(content):,}"
        )
    written = _json(content) if name == "scores.json" else _text(content, dialect)
    values: dict[str, float] = {}
    reasons: dict[str, str] = {}
    for column in columns:
        if column.computation is not None:
            continue
        if column.key not in written:
            keys = ", ".join(sorted(map(str, written))[:12]) or "no keys"
            reasons[column.key] = f'{name}: expected a key "{column.key}", found {shortened(keys)}'
            continue
        number, reason = _number(written[column.key])
        if number is None:
            reasons[column.key] = f"{name}: {column.key}: {reason}"
        else:
            values[column.key] = number
    return _computed(Scores(values, reasons), columns)


def _json(content: bytes) -> dict[str, Any]:
    try:
        written = json.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ScoresUnreadableError("scores.json: expected UTF-8, found another encoding") from None
    except (ValueError, RecursionError) as error:
        raise ScoresUnreadableError(f"scores.json: expected valid JSON, found: {error}") from None
    if not isinstance(written, dict):
        message = f'scores.json: expected an object such as {{"accuracy": 0.91}}, found {found(written)}'
        raise ScoresUnreadableError(message)
    return written


def _text(content: bytes, dialect: Dialect) -> dict[str, Any]:
    if dialect is not Dialect.V2 and (lines := _old_lines(content)) is not None:
        return lines
    log = ProblemLog()
    document = read_yaml(content, "scores.txt", log, lenient=True)
    data = document.data if document is not None else None
    if isinstance(data, dict):
        return data
    glued = _GLUED.search(content.decode("utf-8", "replace"))
    if glued is not None:
        raise ScoresUnreadableError(
            f"scores.txt: expected lines such as `{glued[1]}: {glued[2]}`, found"
            f" `{shortened(glued[0])}` without a blank after the colon, which YAML does not read as a key and a value"
        )
    if log.problems:
        problem = log.problems[0]
        line = "" if problem.line is None else f" (line {problem.line})"
        raise ScoresUnreadableError(f"scores.txt: {problem.message}{line}")
    raise ScoresUnreadableError(f"scores.txt: expected lines such as `accuracy: 0.91`, found {found(data)}")


def _old_lines(content: bytes) -> dict[str, Any] | None:
    """``key:value`` in every line, as versions 1.5 and 1.8 read this file: without a blank too.

    None where a line is something else.
    """
    read: dict[str, Any] = {}
    for line in content.decode("utf-8-sig", "replace").splitlines():
        if line.strip():
            key, colon, value = line.partition(":")
            if not colon or not _is_plain(value.strip()):
                return None
            read[key.strip().strip("\"'")] = value.strip()
    return read or None


def _is_plain(text: str) -> bool:
    return bool(_NUMBER.fullmatch(text) or _NOT_FINITE.fullmatch(text))


def _number(value: object) -> tuple[float | None, str]:
    """The number that a value is; None, and the reason, where it is none."""
    if isinstance(value, bool):
        return (1.0 if value else 0.0), ""
    if isinstance(value, str):
        text = value.strip()
        if _NOT_FINITE.fullmatch(text):
            return None, f"expected a number, found {shortened(text)}, which cannot be ranked"
        if not _NUMBER.fullmatch(text):
            return None, f"expected a number, found {found(value)}"
        value = float(text)
    if not isinstance(value, int | float):
        return None, f"expected a number, found {found(value)}"
    try:
        number = float(value)
    except OverflowError:
        return None, "expected a number of ordinary size, found one that is too large"
    if not math.isfinite(number):
        name = "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
        return None, f"expected a number, found {name}, which cannot be ranked"
    return number, ""


def _computed(scores: Scores, columns: Sequence[Column]) -> Scores:
    """With the columns that are computed from others. One of those that is missing leaves them missing."""
    values, reasons = dict(scores.values), dict(scores.reasons)
    by_index = {column.index: column for column in columns}

    def fill(column: Column) -> None:
        if column.computation is None or column.key in values or column.key in reasons:
            return
        parts = [by_index[index] for index in column.computed_from if index in by_index]
        for part in parts:
            fill(part)
        missing = [part.key for part in parts if part.key not in values]
        if missing or not parts:
            reasons[column.key] = (
                f"computed from columns of which {', '.join(missing) or 'all'} have no score"
            )
        else:
            values[column.key] = compute(column.computation, [values[part.key] for part in parts])

    for column in columns:
        fill(column)
    return Scores(values, reasons)


def compute(computation: Computation, values: Sequence[float]) -> float:
    """What a computed column holds, of at least one value."""
    match computation:
        case "avg":
            return math.fsum(values) / len(values)
        case "sum":
            return math.fsum(values)
        case "min":
            return min(values)
        case "max":
            return max(values)
