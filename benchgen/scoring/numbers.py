"""Numbers as people and models write them, as exact decimals.

``Decimal`` is used because its conversions are linear in the number of digits: a response of a million digits
neither hangs nor fails, as it would with ``int``.
"""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from typing import NamedTuple

_EXACT_CHARS = 400
"""A number written with more characters than this is not an answer to anything and is not read."""

# No signals: what cannot be represented becomes NaN or infinity, which count as no number. The precision
# holds every number that is read without rounding, and the exponent's bounds keep 1e999999 comparable.
_CONTEXT = Context(prec=450, Emax=MAX_EMAX, Emin=MIN_EMIN, traps=[])

_MINUS = str.maketrans({"−": "-", "﹣": "-", "－": "-", "＋": "+"})
_SEPARATORS = str.maketrans("", "", ",\u00a0\u2009\u202f")

_NUMBER = re.compile(
    r"""
    (?:                                              # a sign, unless it stands between two operands
      (?<![A-Za-z0-9_)\]}%]) (?P<sign>[-+])
      (?: \\?[$€£¥₹] [ ]? )?
    )?
    (?:
      \\[dt]?frac \{ (?P<over>-?\d{1,400}) \} \{ (?P<under>\d{1,400}) \}
    |
      (?<![A-Za-z0-9_]) (?<!\d\.)                    # not the tail of a name or of another number
      (?:
        (?P<whole>\d{1,400}) [ ] (?P<part>\d{1,400}) / (?P<parts>\d{1,400}) (?![\d/])
      |
        (?P<digits>
          (?: \d{1,3} (?: [,\u00a0\u2009\u202f] \d{3} )+ (?!\d) | \d+ ) (?: \.\d+ )?
        | (?<!\.) \.\d+
        )
        (?:
          [ ]?/[ ]? (?P<divisor>\d{1,400} (?:\.\d{1,400})? ) (?! [\d/] )
        | (?P<exponent> [eE] [-+]? \d{1,20} (?![A-Za-z0-9_]) )
        | [ ]? (?: [x×*] | \\times ) [ ]? 10 [ ]? \^ [ ]? \{? (?P<power> [-+]? \d{1,20} )
        )?
      )
    )
    """,
    re.VERBOSE,
)


class Number(NamedTuple):
    """A number that was found in a text."""

    text: str  # as it was written
    value: Decimal


def _value(match: re.Match[str]) -> Decimal | None:
    """The number of a match; None when it is too long, or divides by zero."""
    if match.end() - match.start() > _EXACT_CHARS:
        return None
    minus = match["sign"] == "-"
    if (digits := match["digits"]) is not None:
        power = match["exponent"] or (f"e{match['power']}" if match["power"] else "")
        value = _CONTEXT.create_decimal(digits.translate(_SEPARATORS) + power)
        if (divisor := match["divisor"]) is not None:
            value = _CONTEXT.divide(value, Decimal(divisor))
    elif match["whole"] is not None:
        value = _CONTEXT.add(
            Decimal(match["whole"]), _CONTEXT.divide(Decimal(match["part"]), Decimal(match["parts"]))
        )
    else:
        value = _CONTEXT.divide(Decimal(match["over"]), Decimal(match["under"]))
    if not value.is_finite():
        return None
    return value.copy_negate() if minus else value


def last_number(text: str) -> Number | None:
    """The last number in a text. A number does not reach over the end of a line."""
    end = len(text)
    while end >= 0:
        start = text.rfind("\n", 0, end) + 1
        line = text[start:end]
        if not line.isascii():
            line = line.translate(_MINUS)
        match = None
        for match in _NUMBER.finditer(line):  # noqa: B007 - the last one is wanted
            pass
        if match is not None:
            value = _value(match)
            return None if value is None else Number(match[0], value)
        end = start - 1
    return None


def as_number(value: object) -> Decimal | None:
    """A target as a number: a JSON number, or text that contains one."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        return Decimal(value)
    if isinstance(value, float):
        # repr gives the shortest decimal that means this float: 0.1 is 0.1, not 0.1000000000000000055...
        number = Decimal(repr(value))
        return number if number.is_finite() else None
    if isinstance(value, str):
        found = last_number(value)
        return None if found is None else found.value
    return None


def within(answer: Decimal, target: Decimal, abs_tol: float, rel_tol: float) -> bool:
    """Whether the numbers differ by no more than the larger of the tolerances; exact when both are 0."""
    if answer == target:
        return True
    if not abs_tol and not rel_tol:
        return False
    relative = _CONTEXT.multiply(Decimal(repr(rel_tol)), abs(target))
    allowed = max(Decimal(repr(abs_tol)), relative)
    return _CONTEXT.abs(_CONTEXT.subtract(answer, target)) <= allowed
