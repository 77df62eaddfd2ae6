"""Plausible wrong answers."""

from __future__ import annotations

import re

CANNED = "simulated answer"
CLUELESS = "I am not sure about this one."

_LETTER = re.compile(r"(?i:\banswer(?:\s+is)?\s*:?\s*|^)\(?(?P<letter>[A-Z])\)?[.\s]*$")
_NUMBER = re.compile(r"\d(?:[\d,]*\d)?(?:\.\d+)?")


def wrong_answer(solution: str, draw: float) -> str:
    """Return an answer that looks like ``solution`` and is not; ``draw`` in [0, 1) picks among several.

    Only the last line is kept: what comes before it often names the right answer too, and a rule that looks
    anywhere in the response would find it there.
    """
    lines = solution.strip().splitlines()
    line = lines[-1] if lines else ""
    letter = _LETTER.search(line)
    if letter is not None:
        start, end = letter.span("letter")
        return line[:start] + _other(letter["letter"], "ABCD", draw) + line[end:]
    numbers = _NUMBER.findall(line)
    if numbers:
        number = numbers[-1]
        # The first digit changes, since a tolerance may forgive the last one.
        changed = _other(number[0], "123456789", draw) + number[1:]
        return _NUMBER.sub(lambda found: changed if found[0] == number else found[0], line)
    return CLUELESS


def _other(symbol: str, alphabet: str, draw: float) -> str:
    others = [other for other in alphabet if other != symbol]
    return others[int(draw * len(others))]
