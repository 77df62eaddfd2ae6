"""Which option a response names.

Signs are tried from the most to the least explicit; the first kind that is present decides. Where a kind
counts only when it is unambiguous, two different options of that kind mean that no option was named.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import NamedTuple

from benchgen.scoring.normalise import Normaliser

LETTERS = string.ascii_uppercase

_WRAPPED = r"[\s*_`\"'“”‘’()\[\]{}<>$]*"
_ALONE = re.compile(rf"{_WRAPPED}(?:\\(?:text|mathrm)\{{)?{_WRAPPED}([A-Za-z]){_WRAPPED}[.:,;!)]?{_WRAPPED}")
_BOXED = re.compile(r"\\boxed\s?\{\s?(?:\\(?:text|mathrm|textbf)\{)?\s?\(?([A-Za-z])\)?\s?\}")
# After a cue a capital letter counts; a small one only at the end of a line: "the answer is a number".
_LETTER = r"[\s*_`\"'“”‘’(\[{<$]{0,9}(?:([A-Z])(?![A-Za-z'’])|([a-z])(?=[)\].*_`\"'”’}>$]{0,9}[ \t]*$))"
_ANSWER = re.compile(
    r"(?i:\banswer\b)(?:[ *_]{0,4}(?i:choice|option|letter))?"
    r"[*_ ]{0,4}(?:(?i:is|would be|should be|must be)\b)?"
    rf"[*_ ]{{0,4}}:?(?:[*_ ]{{0,4}}(?i:option|choice|the letter)\b)?{_LETTER}",
    re.MULTILINE,
)
_OPTION = re.compile(rf"(?i:\b(?:option|choice|letter)\b)(?:\s(?i:is)\b)?:?{_LETTER}", re.MULTILINE)
_LABEL = re.compile(r"^[\s*_(\[]{0,9}([A-Z])(?:[)\].:]|\*\*)(?![A-Za-z0-9])", re.MULTILINE)
_MARKED = re.compile(r"\(([A-Z])\)|\*\*\(?([A-Z])\)?[.:)]?\*\*")


class Chosen(NamedTuple):
    """The option that a response names."""

    option: int | None  # counted from 0; None when there is none
    problem: str  # why there is none


def _letters(pattern: re.Pattern[str], text: str, count: int) -> list[int]:
    """The options that the matches name, in the order of the text, without letters beyond the last option."""
    found: list[int] = []
    for groups in pattern.findall(text):
        letter = groups if isinstance(groups, str) else next(filter(None, groups))
        index = LETTERS.index(letter.upper())
        if index < count:
            found.append(index)
    return found


def _alone(text: str, count: int) -> int | None:
    """The option of a text that is a letter and nothing else."""
    if len(text) > 60:
        return None
    match = _ALONE.fullmatch(text)
    if match is None:
        return None
    index = LETTERS.index(match[1].upper())
    return index if index < count else None


def _one(found: Sequence[int]) -> Chosen | None:
    """The only option that is named; None when none is, so that the next kind of sign is tried."""
    distinct = sorted(set(found))
    if not distinct:
        return None
    if len(distinct) == 1:
        return Chosen(distinct[0], "")
    return Chosen(None, f"no choice found: {LETTERS[distinct[0]]} and {LETTERS[distinct[1]]} are both named")


def _by_letter(text: str, count: int) -> Chosen | None:
    index = _alone(text, count)
    if index is not None:
        return Chosen(index, "")
    for cue in (_BOXED, _ANSWER):
        # The last statement wins: models correct themselves.
        if found := _letters(cue, text, count):
            return Chosen(found[-1], "")
    lines = text.strip().splitlines()
    for line in (lines[-1], lines[0]) if lines else ():
        index = _alone(line, count)
        if index is not None:
            return Chosen(index, "")
    marked = _letters(_LABEL, text, count) + _letters(_MARKED, text, count)
    return _one(marked) or _one(_letters(_OPTION, text, count))


def _by_text(text: str, options: Sequence[str], normalise: Normaliser) -> Chosen | None:
    """The option whose text is the response, or the only one whose text stands in it as whole words."""
    answer = normalise(text)
    texts = [normalise(option) for option in options]
    same = [index for index, option in enumerate(texts) if option == answer]
    if same:
        return _one(same)
    named: list[int] = []
    spans: list[tuple[int, int]] = []
    # Longest first: "Paris, Texas" in a response does not also name "Paris".
    for index in sorted(range(len(texts)), key=lambda index: -len(texts[index])):
        span = _find_words(answer, texts[index])
        if span and not any(start <= span[0] and span[1] <= end for start, end in spans):
            named.append(index)
            spans.append(span)
    return _one(named)


def _find_words(text: str, words: str) -> tuple[int, int] | None:
    span = find_words(text, words)
    return None if span < 0 or not words else (span, span + len(words))


def find_words(text: str, words: str) -> int:
    """Where ``words`` stands in ``text``, cutting no word at its ends; -1 if nowhere."""
    start = text.find(words)
    while start >= 0:
        end = start + len(words)
        glued_before = start > 0 and _is_word(text[start - 1]) and _is_word(words[:1])
        glued_after = end < len(text) and _is_word(text[end]) and _is_word(words[-1:])
        if not glued_before and not glued_after:
            return start
        start = text.find(words, start + 1)
    return -1


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def choose(text: str, options: Sequence[str] | None, normalise: Normaliser) -> Chosen:
    """The option that ``text`` names, by its letter or, if the options are known, by its text."""
    count = len(LETTERS) if options is None else min(len(options), len(LETTERS))
    chosen = _by_letter(text, count)
    if chosen is None and options is not None:
        chosen = _by_text(text, options, normalise)
    return chosen or Chosen(None, "no choice found")


def target_index(target: object, options: Sequence[str] | None, normalise: Normaliser) -> int | None:
    """The option that a target means, as ``spec.Choice`` explains; None when it means none."""
    count = len(LETTERS) if options is None else len(options)
    if isinstance(target, bool):
        return None
    if isinstance(target, int):
        return target if 0 <= target < count else None
    if not isinstance(target, str):
        return None
    index = _alone(target, count)
    if index is not None:
        return index
    if options is not None:
        wanted = normalise(target)
        for index, option in enumerate(options):
            if normalise(option) == wanted:
                return index
    digits = target.strip()
    if digits.isascii() and digits.isdigit() and len(digits) < 4 and int(digits) < count:
        return int(digits)
    return None
