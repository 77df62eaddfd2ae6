"""JSON in the middle of prose: finding it, parsing it within bounds, pointing into it."""

from __future__ import annotations

import json
import re
from typing import Any, Final

MAX_DEPTH = 64
"""Values that are nested deeper than this are not accepted."""

_MAX_ATTEMPTS = 50
"""How many opening brackets may turn out not to begin JSON before the search ends; keeps it linear."""

_FENCE = re.compile(r"```[ \t]*(?:json|JSON|jsonc|json5)?[ \t]*\n(.*?)```", re.DOTALL)
_OPENING = re.compile(r"[\[{]")


class Missing:
    """The type of :data:`MISSING`."""


MISSING: Final = Missing()
"""There is no such value; distinct from JSON's null."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def too_deep(value: Any) -> bool:
    """Whether arrays and objects are nested more than :data:`MAX_DEPTH` levels deep."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        deeper: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                deeper.extend(item.values())
            elif isinstance(item, list):
                deeper.extend(item)
        if not deeper:
            return False
        level = deeper
    return True


def parse_json(text: str) -> Any:
    """The value of a text that is JSON from end to end, or :data:`MISSING`."""
    try:
        value = _DECODER.decode(text)
    except (ValueError, RecursionError):
        return MISSING
    return MISSING if too_deep(value) else value


def find_json(text: str) -> Any:
    """The JSON value of a response, or :data:`MISSING`.

    Tried in this order: the whole text, the last fenced block that parses, the last object or array that
    stands in the text.
    """
    value = parse_json(text.strip())
    if value is not MISSING:
        return value
    for block in reversed(_FENCE.findall(text)[-_MAX_ATTEMPTS:]):
        value = parse_json(block.strip())
        if value is not MISSING:
            return value
    return _last_embedded(text)


def _last_embedded(text: str) -> Any:
    found: Any = MISSING
    position = 0
    attempts = 0
    while attempts < _MAX_ATTEMPTS and (opening := _OPENING.search(text, position)):
        try:
            value, position = _DECODER.raw_decode(text, opening.start())
        except (ValueError, RecursionError):
            position = opening.end()
            attempts += 1
            continue
        if not too_deep(value):
            found = value
    return found


def resolve(value: Any, pointer: str) -> Any:
    """The value that an RFC 6901 pointer leads to, or :data:`MISSING`."""
    for token in pointer.split("/")[1:]:
        key = token.replace("~1", "/").replace("~0", "~")
        if isinstance(value, dict):
            value = value.get(key, MISSING)
        elif isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 10:
            value = value[int(key)] if int(key) < len(value) else MISSING
        else:
            return MISSING
    return value


def pointer_token(key: str) -> str:
    """A member's name as a step of a pointer."""
    return key.replace("~", "~0").replace("/", "~1")


def json_text(value: Any) -> str:
    """Compact JSON, members sorted by name."""
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
