"""Comparing two JSON values, and saying where they first differ."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from benchgen.scoring.jsontext import MISSING, json_text, pointer_token, resolve
from benchgen.scoring.normalise import Normaliser
from benchgen.scoring.spec import JsonMatch

_SHOWN = 60  # characters of a value in an explanation


def shown(value: Any) -> str:
    """A value as JSON, shortened for an explanation."""
    if value is MISSING:
        return "nothing"
    text = json_text(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


class _Key(NamedTuple):
    """What arrays are sorted by. Keys nest like the values: one text of all would grow with every level."""

    kind: int
    number: float = 0.0
    text: str = ""
    parts: tuple[Any, ...] = ()  # keys of the items of an array, (name, key) of the members of an object


class _Ordered(NamedTuple):
    key: _Key
    value: Any


class JsonComparison:
    """Compares answers with targets as one rule asks."""

    def __init__(self, spec: JsonMatch, normalise: Normaliser) -> None:
        self._fields = spec.fields and [
            field if field.startswith("/") else f"/{pointer_token(field)}" for field in spec.fields
        ]
        self._allow_extra = spec.allow_extra
        self._ignore_order = spec.ignore_order
        self._abs_tol = spec.abs_tol
        self._rel_tol = spec.rel_tol
        self._normalise = normalise

    def has_nothing_of(self, target: Any) -> bool:
        """Whether the target has none of the rule's fields, so that any answer would match."""
        return self._fields is not None and all(
            resolve(target, pointer) is MISSING for pointer in self._fields
        )

    def difference(self, answer: Any, target: Any) -> str | None:
        """The first difference in words, or None when the values match."""
        if self._fields is None:
            return self._compare(answer, target, "")
        for pointer in self._fields:
            found = self._compare(resolve(answer, pointer), resolve(target, pointer), pointer)
            if found is not None:
                return found
        return None

    def _compare(self, answer: Any, target: Any, pointer: str) -> str | None:
        if self._ignore_order:
            answer, target = self._ordered(answer).value, self._ordered(target).value
        return self._differ(answer, target, pointer)

    def _differ(self, answer: Any, target: Any, pointer: str) -> str | None:
        if isinstance(target, dict) and isinstance(answer, dict):
            return self._objects(answer, target, pointer)
        if isinstance(target, list) and isinstance(answer, list):
            return self._arrays(answer, target, pointer)
        if self._same(answer, target):
            return None
        return f"at {pointer or 'the top'}: expected {shown(target)}, got {shown(answer)}"

    def _objects(self, answer: dict[str, Any], target: dict[str, Any], pointer: str) -> str | None:
        for key, wanted in target.items():
            found = self._differ(answer.get(key, MISSING), wanted, f"{pointer}/{pointer_token(key)}")
            if found is not None:
                return found
        if not self._allow_extra:
            for key, value in answer.items():
                if key not in target:
                    return f"at {pointer}/{pointer_token(key)}: expected nothing, got {shown(value)}"
        return None

    def _arrays(self, answer: list[Any], target: list[Any], pointer: str) -> str | None:
        if len(answer) != len(target):
            return f"at {pointer or 'the top'}: expected {len(target)} items, got {len(answer)}"
        for index, (got, wanted) in enumerate(zip(answer, target, strict=True)):
            # A sorted position means nothing to the reader.
            step = "*" if self._ignore_order else str(index)
            found = self._differ(got, wanted, f"{pointer}/{step}")
            if found is not None:
                return found
        return None

    def _ordered(self, value: Any) -> _Ordered:
        """The value with every array in it sorted, so that arrays with matching items look alike.

        Each part is visited once, from the inside out: sorting on the way down would visit it once a level.
        """
        if isinstance(value, list):
            items = sorted((self._ordered(item) for item in value), key=lambda item: item.key)
            return _Ordered(_Key(3, parts=tuple(item.key for item in items)), [item.value for item in items])
        if isinstance(value, dict):
            members = {key: self._ordered(item) for key, item in sorted(value.items())}
            parts = tuple((key, item.key) for key, item in members.items())
            return _Ordered(_Key(4, parts=parts), {key: item.value for key, item in members.items()})
        if isinstance(value, str):
            return _Ordered(_Key(2, text=self._normalise(value)), value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return _Ordered(_Key(0, text=str(value)), value)
        return _Ordered(_Key(1, number=_as_float(value)), value)

    def _same(self, answer: Any, target: Any) -> bool:
        if isinstance(target, str) and isinstance(answer, str):
            return answer == target or self._normalise(answer) == self._normalise(target)
        if isinstance(target, bool) or isinstance(answer, bool):
            return answer is target
        if isinstance(target, int | float) and isinstance(answer, int | float):
            return self._close(answer, target)
        # Two MISSING are the same: neither side has the field.
        return answer is target

    def _close(self, answer: float, target: float) -> bool:
        if answer == target:
            return True
        difference = abs(_as_float(answer) - _as_float(target))
        # A decimal tolerance such as 0.1 must not fail on the last bit of a binary difference.
        allowed = max(self._abs_tol, self._rel_tol * abs(_as_float(target)))
        return difference <= allowed or (allowed > 0 and math.isclose(difference, allowed, rel_tol=1e-12))


def _as_float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
