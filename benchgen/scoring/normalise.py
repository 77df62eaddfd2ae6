"""Bringing answer and target to one form before they are compared."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable

import regex

from benchgen.scoring.patterns import PATTERN_TIMEOUT_S, compile_pattern
from benchgen.scoring.spec import Normalise

Normaliser = Callable[[str], str]

# ASCII symbols such as $ and + belong to the punctuation of Python's `string` module, which SQuAD removes.
_PUNCTUATION = regex.compile(r"[!-/:-@\[-`{-~\p{P}]+")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)


def _nfkc(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFKC", text)


def _without(pattern: regex.Pattern[str]) -> Normaliser:
    return lambda text: pattern.sub("", text, timeout=PATTERN_TIMEOUT_S)


def _strip_punctuation(text: str) -> str:
    return _PUNCTUATION.sub("", text)


def _strip_articles(text: str) -> str:
    return _ARTICLES.sub(" ", text)


def _collapse_whitespace(text: str) -> str:
    """Every run of white space is one space; a run at an end stays, as one space, for `strip` to decide."""
    inner = " ".join(text.split())
    if not inner:
        return " " if text else ""
    lead = " " if text[0].isspace() else ""
    trail = " " if text[-1].isspace() else ""
    return f"{lead}{inner}{trail}"


def compile_normalise(spec: Normalise) -> Normaliser:
    """One function that does all steps of ``spec`` in the order of its fields.

    The function raises ``TimeoutError`` when a pattern of ``remove`` takes too long.
    """
    steps: list[Normaliser] = [_without(compile_pattern(pattern)) for pattern in spec.remove]
    if spec.nfkc:
        steps.append(_nfkc)
    if spec.case_fold:
        steps.append(str.casefold)
    if spec.strip_punctuation:
        steps.append(_strip_punctuation)
    if spec.strip_articles:
        steps.append(_strip_articles)
    if spec.collapse_whitespace:
        steps.append(_collapse_whitespace)
    if spec.strip:
        steps.append(str.strip)
    if not steps:
        return str
    if len(steps) == 1:
        return steps[0]

    def normalise(text: str) -> str:
        for step in steps:
            text = step(text)
        return text

    return normalise
