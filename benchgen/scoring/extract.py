"""Finding the answer in a response.

An extractor takes the text and returns the answer, or None when there is none. A blank answer counts as none,
so that the next way of a list is tried. Every extractor is linear in the length of the text or, for patterns
of a bundle, bounded in time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, assert_never

import regex

from benchgen.scoring.jsontext import MISSING, find_json, json_text, resolve
from benchgen.scoring.patterns import PATTERN_TIMEOUT_S, compile_pattern
from benchgen.scoring.spec import (
    AfterExtract,
    BoxedExtract,
    CodeExtract,
    Extract,
    LineExtract,
    PointerExtract,
    RegexExtract,
    TagExtract,
)

Extractor = Callable[[str], str | None]

_BOXED_TOKENS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
# A fence is at least three backticks at the start of a line, and closed by one that has nothing after it.
_FENCED = re.compile(r"^[ \t]*(`{3,})[^`\n]*\n(.*?)(?:^[ \t]*\1[ \t]*$|\Z)", re.DOTALL | re.MULTILINE)
_THINK_TAGS = re.compile(r"<(/?)think>")


class CompiledExtract(NamedTuple):
    """One or several ways to the answer."""

    find: Extractor
    nothing: str  # what to say when nothing was found


def strip_thinking(text: str) -> str | None:
    """The text without its ``<think>...</think>`` parts, or None when such a part never ends.

    A closing tag without an opening one ends reasoning that began in the prompt: all before it goes.
    """
    if "think>" not in text:
        return text
    kept: list[str] = []
    start: int | None = 0  # where visible text began; None inside a reasoning part
    for tag in _THINK_TAGS.finditer(text):
        if not tag[1]:
            if start is not None:
                kept.append(text[start : tag.start()])
            start = None
        else:
            if start is not None:
                kept.clear()
            start = tag.end()
    if start is None:
        return None
    kept.append(text[start:])
    return "".join(kept)


def _by_regex(spec: RegexExtract) -> Extractor:
    pattern = compile_pattern(spec.regex, spec.flags)
    group: int | str | None = spec.group
    if group is None and pattern.groups <= 1:
        group = pattern.groups

    def answer(match: regex.Match[str]) -> str | None:
        if group is not None:
            return match[group]
        return next((part for part in match.groups() if part is not None), None)

    def first(text: str) -> str | None:
        match = pattern.search(text, timeout=PATTERN_TIMEOUT_S)
        return None if match is None else answer(match)

    def last(text: str) -> str | None:
        match = None
        for match in pattern.finditer(text, timeout=PATTERN_TIMEOUT_S):  # noqa: B007 - the last one is wanted
            pass
        return None if match is None else answer(match)

    return first if spec.take == "first" else last


def _by_pointer(spec: PointerExtract) -> Extractor:
    def find(text: str) -> str | None:
        document = find_json(text)
        value: Any = MISSING if document is MISSING else resolve(document, spec.json_pointer)
        if value is MISSING or value is None:
            return None
        return value if isinstance(value, str) else json_text(value)

    return find


def _by_tag(spec: TagExtract) -> Extractor:
    opening, closing = f"<{spec.tag}>", f"</{spec.tag}>"

    def find(text: str) -> str | None:
        start = text.rfind(opening)
        if start < 0:
            return None
        start += len(opening)
        end = text.find(closing, start)
        return text[start:] if end < 0 else text[start:end]

    return find


def _by_line(spec: LineExtract) -> Extractor:
    def find(text: str) -> str | None:
        lines = text.strip().splitlines()
        if not lines:
            return None
        return lines[0] if spec.line == "first" else lines[-1]

    return find


def last_boxed(text: str) -> str | None:
    """The content of the last ``\\boxed{...}`` that is closed, the outermost one if they are nested."""
    found: str | None = None
    open_braces: list[int] = []  # where the content of a box begins, -1 for any other brace
    for token in _BOXED_TOKENS.finditer(text):
        symbol = token[0]
        if symbol == "}":
            start = open_braces.pop() if open_braces else -1
            if start >= 0:
                found = text[start : token.start()]
        elif symbol == "{":
            open_braces.append(-1)
        elif symbol.startswith("\\boxed"):
            open_braces.append(token.end())
    return found


def _by_marker(spec: AfterExtract) -> Extractor:
    def find(text: str) -> str | None:
        _, marker, rest = text.rpartition(spec.after)
        lines = rest.strip().splitlines() if marker else []
        return lines[0] if lines else None

    return find


def last_code(text: str) -> str | None:
    """What is in the last fenced block, white space and all; the whole text where there is none."""
    text = text.replace("\r\n", "\n")
    found = text
    for block in _FENCED.finditer(text):
        found = block[2]
    return found


def _compile_one(spec: Extract) -> CompiledExtract:
    match spec:
        case RegexExtract():
            return CompiledExtract(_by_regex(spec), "the pattern matched nothing")
        case PointerExtract():
            return CompiledExtract(
                _by_pointer(spec), f"no JSON value at {spec.json_pointer or 'the top'}"[:120]
            )
        case TagExtract():
            return CompiledExtract(_by_tag(spec), f"there is no <{spec.tag}>"[:120])
        case LineExtract():
            return CompiledExtract(_by_line(spec), "the response is empty")
        case BoxedExtract():
            return CompiledExtract(last_boxed, "there is no \\boxed{...}")
        case AfterExtract():
            return CompiledExtract(_by_marker(spec), f"nothing follows {spec.after!r}"[:120])
        case CodeExtract():
            return CompiledExtract(last_code, "there is no code")
        case _:
            assert_never(spec)


def compile_extract(specs: Sequence[Extract]) -> CompiledExtract | None:
    """All ways in one, tried in order; None when there are none, so that the whole response is the answer."""
    ways = [_compile_one(spec) for spec in specs]
    if not ways:
        return None
    if len(ways) == 1:
        only = ways[0].find

        def find_only(text: str) -> str | None:
            answer = only(text)
            return answer if answer and not answer.isspace() else None

        return CompiledExtract(find_only, ways[0].nothing)

    def find(text: str) -> str | None:
        for way in ways:
            answer = way.find(text)
            if answer and not answer.isspace():
                return answer
        return None

    return CompiledExtract(find, f"none of the {len(ways)} ways found one")
