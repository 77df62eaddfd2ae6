"""What can still be used of a manifest that has problems, so that they hide no problems of the rows."""

from __future__ import annotations

import copy
from typing import Any

from pydantic import ValidationError

from benchgen.bundle.manifest import CaseRecipe
from benchgen.bundle.parse import known_fields, place_of
from benchgen.bundle.problems import MAX_PROBLEMS, nearest
from benchgen.bundle.yamldoc import Path, YamlDocument

_MESSAGE = {"role": "user", "content": "-"}
# What stands in for a part with a problem where leaving it out would look like another problem; "*" is any
# position in a list. Nothing is made of a stand-in: its place is noted as broken.
_STAND_INS: dict[Path, Any] = {
    ("dataset",): {"file": "-", "target": "-"},
    ("dataset", "file"): "-",
    ("dataset", "target"): "-",
    ("dataset", "slices", "*"): "-",
    ("dataset", "few_shot", "file"): "-",
    ("dataset", "few_shot", "count"): 1,
    ("dataset", "few_shot", "answer"): "-",
    ("harness",): {"type": "chat", "messages": [_MESSAGE]},
    ("harness", "type"): "chat",
    ("harness", "prompt"): "-",
    ("harness", "files"): "-",
    ("harness", "command"): ["-"],
    ("harness", "command", "*"): "-",
    ("harness", "fields", "*"): "-",
    ("harness", "messages", "*"): _MESSAGE,
    ("harness", "messages", "*", "role"): "user",
    ("harness", "messages", "*", "content"): "-",
    ("oracle",): "-",
    ("scoring",): [],
    ("scoring", "*"): {"name": "x", "type": "regex", "pattern": "."},
    ("scoring", "*", "name"): "x",
    ("scoring", "*", "target"): "-",
    ("scoring", "*", "pattern"): ".",
    ("scoring", "*", "setup"): "-",
    ("scoring", "*", "tests"): "-",
    ("scoring", "*", "entry_point"): "-",
    ("scoring", "*", "files"): "-",
    ("scoring", "*", "command"): ["-"],
}


def salvage(document: YamlDocument) -> CaseRecipe | None:
    """The parts that cases are made with; those that have problems are noted in ``document.broken``.

    None where there are more problems than anybody is told.
    """
    data = document.data if isinstance(document.data, dict) else {}
    parts = {name: copy.deepcopy(data[name]) for name in CaseRecipe.model_fields if name in data}
    for place in list(document.broken):
        if place and _at(parts, place) is not None:
            document.broken.append(_take_out(parts, place))
    for _ in range(MAX_PROBLEMS):
        try:
            return CaseRecipe.model_validate(parts)
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
        place = place_of(detail, parts)
        if detail["type"] == "extra_forbidden":
            document.broken += _misspelled(parts, place)
        document.broken.append(_take_out(parts, place))
    return None


def _misspelled(parts: dict[str, Any], place: Path) -> list[Path]:
    """The place of the field that an unknown one was probably meant to be: it only seems to be missing."""
    meant = nearest(str(place[-1]), known_fields(place[:-1], parts))
    if meant is None or meant in _at(parts, place[:-1]):
        return []
    meant_place = (*place[:-1], meant)
    _put_stand_in(parts, meant_place)
    return [meant_place]


def _take_out(parts: dict[str, Any], place: Path) -> Path:
    """Replaces what is at a place, or leaves it out, or does so with what is around it: the place it was."""
    if not _put_stand_in(parts, place):
        parent = _at(parts, place[:-1])
        # Leaving out an entry of a list would move the others, whose places are told.
        if not isinstance(parent, dict) or place[-1] not in parent:
            return _take_out(parts, place[:-1])
        del parent[place[-1]]
    return place


def _put_stand_in(parts: dict[str, Any], place: Path) -> bool:
    pattern = tuple("*" if isinstance(part, int) else part for part in place)
    if pattern not in _STAND_INS:
        return False
    _at(parts, place[:-1])[place[-1]] = copy.deepcopy(_STAND_INS[pattern])
    return True


def _at(parts: dict[str, Any], place: Path) -> Any:
    """What is at a place, None where nothing is."""
    value: Any = parts
    for part in place:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            value = value[part]
        else:
            return None
    return value
