"""What the child process says to its parent: stages on its standard output, its result in a file."""

from __future__ import annotations

from dataclasses import dataclass

import orjson
from pydantic import TypeAdapter

from benchgen.bundle.problems import Problem
from services.hub.publishing.domain import Built

RESULT_FILE = "result.json"
BUNDLE_FILE = "bundle.zip"


@dataclass(frozen=True, slots=True)
class Opened:
    """The archive is sound, and this is its digest; the files are being checked."""

    digest: str


@dataclass(frozen=True, slots=True)
class Checked:
    """The bundle is valid, and this is what it calls itself; prompts are being rendered."""

    digest: str
    environment: str
    version: str


Stage = Opened | Checked


@dataclass(frozen=True, slots=True)
class Result:
    """How it ended: exactly one of the two says something."""

    built: Built | None
    problems: tuple[Problem, ...]


_STAGE: TypeAdapter[Stage] = TypeAdapter(Stage)
_RESULT: TypeAdapter[Result] = TypeAdapter(Result)


def write_stage(stage: Stage) -> bytes:
    """A stage as a line."""
    return orjson.dumps(stage) + b"\n"


def read_stage(line: bytes) -> Stage:
    """:raises ValueError: it is no stage."""
    return _STAGE.validate_json(line)


def write_result(result: Result) -> bytes:
    """The result as a file's content."""
    return orjson.dumps(result)


def read_result(data: bytes) -> Result:
    """:raises ValueError: it is no result."""
    return _RESULT.validate_json(data)
