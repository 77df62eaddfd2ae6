"""Reads ``environment.yaml`` into an ``EnvironmentManifest``, or into problems that a person can act on."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from benchgen.bundle.manifest import UNSUPPORTED_HARNESSES, UNSUPPORTED_RULES, EnvironmentManifest
from benchgen.bundle.problems import ProblemLog, did_you_mean, found, listed
from benchgen.bundle.tree import MANIFEST_FILE, BundleTree
from benchgen.bundle.yamldoc import MAX_YAML_BYTES, Path, YamlDocument, dotted, read_yaml

# What pydantic's error types say, in words for authors; names in braces come from the error's context.
_EXPECTED = {
    "string_type": "a text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "tuple_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "literal_error": "{expected}",
    "enum": "{expected}",
    "string_too_short": "at least {min_length} character(s)",
    "string_too_long": "at most {max_length} characters",
    "string_pattern_mismatch": "a text that matches {pattern}",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "at least {min_length} entries",
    "too_long": "at most {max_length} entries",
}


class ParsedManifest(NamedTuple):
    """The manifest, None where it has problems, and its document, None where that is no YAML."""

    manifest: EnvironmentManifest | None
    document: YamlDocument | None


def parse_manifest(tree: BundleTree, log: ProblemLog) -> ParsedManifest:
    """Reads the manifest of a tree; every problem goes to the log."""
    if MANIFEST_FILE not in tree:
        hint = ""
        for misspelled in ("environment.yml", "competition.yml"):
            if misspelled in tree:
                hint = f"; rename {misspelled}"
        expected = "expected this file, or a competition.yaml, at the top of the bundle"
        log.add(MANIFEST_FILE, f"{expected}, found none{hint}")
        return ParsedManifest(None, None)
    size = tree.size(MANIFEST_FILE)
    if size > MAX_YAML_BYTES:
        log.add(MANIFEST_FILE, f"expected at most {MAX_YAML_BYTES:,} bytes, found {size:,}")
        return ParsedManifest(None, None)
    problems_before = len(log)
    document = read_yaml(tree.read(MANIFEST_FILE, MAX_YAML_BYTES), MANIFEST_FILE, log)
    if document is None:
        return ParsedManifest(None, None)
    document.broken += _unsupported(document, log)
    try:
        manifest = EnvironmentManifest.model_validate(document.data)
    except ValidationError as error:
        _explain(error, document, log)
        return ParsedManifest(None, document)
    return ParsedManifest(manifest if len(log) == problems_before else None, document)


def _unsupported(document: YamlDocument, log: ProblemLog) -> list[Path]:
    """Parts that a later version understands: one clear problem each, not a puzzle about their fields."""
    data = document.data if isinstance(document.data, Mapping) else {}
    candidates: list[tuple[Path, Any, frozenset[str], str]] = [
        (("harness",), data.get("harness"), UNSUPPORTED_HARNESSES, "harness")
    ]
    rules = data.get("scoring")
    for index, rule in enumerate(rules if isinstance(rules, list) else []):
        candidates.append((("scoring", index), rule, UNSUPPORTED_RULES, "rule"))
    paths: list[Path] = []
    for path, part, names, noun in candidates:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if isinstance(kind, str) and kind in names:
            place = (*path, "type")
            message = f'the {noun} type "{kind}" is not supported by this version'
            log.add(MANIFEST_FILE, message, line=document.line(place), field=dotted(place))
            paths.append(path)
    return paths


def _explain(error: ValidationError, document: YamlDocument, log: ProblemLog) -> None:
    """Adds one problem for each place that pydantic complained about, but for those that are told already."""
    by_place: dict[Path, list[ErrorDetails]] = {}
    for detail in error.errors(include_url=False):
        place = place_of(detail, document.data)
        if not document.is_broken(place):
            by_place.setdefault(place, []).append(detail)
    for place, details in sorted(by_place.items(), key=lambda item: document.line(item[0]) or 0):
        message = _message(details, place, document.data)
        log.add(MANIFEST_FILE, message, line=document.line(place), field=dotted(place) or None)


def place_of(detail: ErrorDetails, data: Any) -> Path:
    """Where in the document an error is: pydantic's location without the tags and branches of unions."""
    return _resolved(detail["loc"], data, missing=detail["type"] == "missing")


def _resolved(location: Path, data: Any, *, missing: bool) -> Path:
    """The parts of a location that lead through the data, as many as possible and the last one above all.

    A tag of a union can have the name of a field, so each part may be either. A missing field is in no data.
    """
    if not location:
        return ()
    part, rest = location[0], location[1:]
    if missing and not rest:
        return (part,) if isinstance(data, Mapping) else ()
    without = _resolved(rest, data, missing=missing)
    if not _has(data, part):
        return without
    within = (part, *_resolved(rest, data[part], missing=missing))
    last = location[-1]
    return max(within, without, key=lambda place: (place[-1:] == (last,), len(place)))


def _has(data: Any, part: str | int) -> bool:
    if isinstance(data, list):
        return isinstance(part, int) and part < len(data)
    return isinstance(data, Mapping) and part in data


def _message(details: list[ErrorDetails], place: Path, data: Any) -> str:
    kind = details[0]["type"]
    if kind == "missing":
        return "expected this required field, found none"
    if kind == "extra_forbidden":
        known = known_fields(place[:-1], data)
        return f"expected one of the fields {listed(known)}, found this{did_you_mean(str(place[-1]), known)}"
    value = details[0]["input"]
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        context = details[0].get("ctx", {})
        tags = [tag.strip(" '\"") for tag in str(context.get("expected_tags", "")).split(",") if tag]
        if kind == "union_tag_not_found":
            return "expected a field `type`, found none"
        tag = str(context.get("tag", ""))
        return f'expected `type` to be one of {listed(tags)}, found "{tag}"{did_you_mean(tag, tags)}'
    if kind == "value_error":
        said = str(details[0].get("ctx", {}).get("error", details[0]["msg"]))
        return said if "found" in said else f"{said}, found {found(value)}"
    expected = list(dict.fromkeys(_expected(detail) for detail in details))
    return f"expected {' or '.join(expected)}, found {found(value)}{_hint(kind, value, details[0])}"


def _expected(detail: ErrorDetails) -> str:
    phrase = _EXPECTED.get(detail["type"])
    if phrase is None:
        return detail["msg"].removeprefix("expected ")
    return phrase.format(**detail.get("ctx", {}))


def _hint(kind: str, value: Any, detail: ErrorDetails) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float | datetime.date):
        return "; YAML reads it so unless it is in quotes"
    if kind in ("literal_error", "enum") and isinstance(value, str):
        words = str(detail.get("ctx", {}).get("expected", "")).replace(" or ", ", ").split(", ")
        return did_you_mean(value, [word.strip("'") for word in words])
    return ""


def known_fields(place: Path, data: Any) -> list[str]:
    """The field names that the manifest knows at a place."""
    models: list[type[BaseModel]] = [EnvironmentManifest]
    for part in place:
        data = data[part]
        if isinstance(part, str):
            annotations = [field.annotation for model in models if (field := _field(model, part)) is not None]
            models = [found for annotation in annotations for found in _models_in(annotation)]
        models = _of_type(models, data)
    return sorted({field.alias or name for model in models for name, field in model.model_fields.items()})


def _field(model: type[BaseModel], name: str) -> Any:
    return next((field for key, field in model.model_fields.items() if (field.alias or key) == name), None)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models_in(argument)


def _of_type(models: list[type[BaseModel]], data: Any) -> list[type[BaseModel]]:
    """The members of a union that the `type` in the data chooses; all of them where it chooses none."""
    kind = data.get("type") if isinstance(data, Mapping) else None
    chosen = [model for model in models if kind in _types_of(model)]
    return chosen or models


def _types_of(model: type[BaseModel]) -> tuple[Any, ...]:
    field = model.model_fields.get("type")
    return get_args(field.annotation) if field else ()
