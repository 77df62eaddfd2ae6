"""Files of recorded answers: checked line by line, then stored in parts that a shard can read alone.

A file is JSON lines ``{case_id, trial?, response, usage?, latency_ms?}``. Its parts have the boundaries of the
environment's own parts, so a shard reads one or two of them whatever the size of the file.
"""

from __future__ import annotations

import hashlib
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchgen.errors import InvalidInput
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader, Index
from services.scorer.domain import TrialKey

MAX_BYTES = 4 * 1024**3
MAX_LINE = 16 * 1024 * 1024
_MAX_PROBLEMS = 20
_MAX_TRIALS = 1000


class _Usage(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    input_tokens: int | None = Field(default=None, ge=0, lt=2**31)
    output_tokens: int | None = Field(default=None, ge=0, lt=2**31)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    case_id: str
    response: str
    trial: int = Field(default=0, ge=0, lt=_MAX_TRIALS)
    usage: _Usage | None = None
    latency_ms: float | None = Field(default=None, ge=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One recorded answer; what was not recorded with it is None."""

    response: str
    input_tokens: int | None = None
    output_tokens: int | None = None
    latency_ms: float | None = None


class PredictionStore:
    """Takes files in and gives answers out."""

    def __init__(self, objects: ObjectStore, targets: CaseReader) -> None:
        self._objects = objects
        self._targets = targets

    async def accept(self, targets_digest: str, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Check and store a file; returns its digest and how many answers it has.

        :raises InvalidInput: lines that cannot be used, all at once as far as 20.
        """
        index = await self._targets.index(targets_digest)
        positions = await self._positions(targets_digest, index)
        with tempfile.TemporaryFile() as file:
            digest = hashlib.sha256(targets_digest.encode())
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_BYTES:
                    raise InvalidInput(f"predictions: at most {MAX_BYTES} bytes")
                digest.update(chunk)
                file.write(chunk)
            rows = _check(file, positions)
            name = digest.hexdigest()
            await self._write(name, index, file, rows)
        return name, len(rows)

    async def _positions(self, targets_digest: str, index: Index) -> dict[str, int]:
        positions: dict[str, int] = {}
        for part in index.parts:
            rows = await self._targets.rows(targets_digest, range(part.first, part.first + part.count))
            positions.update((row["id"], row["position"]) for row in rows)
        return positions

    async def _write(self, digest: str, index: Index, file: BinaryIO, rows: Rows) -> None:
        for part in index.parts:
            lines = b"\n".join(rows.between(file, part.first, part.first + part.count))
            await self._objects.put(Bucket.PAYLOADS, _key(digest, part.first), lines)

    async def read(
        self, digest: str, targets_digest: str, positions: Sequence[int]
    ) -> dict[TrialKey, Prediction]:
        """The answers to some cases; those without any are left out."""
        index = await self._targets.index(targets_digest)
        wanted = set(positions)
        found: dict[TrialKey, Prediction] = {}
        for first in sorted({index.part_of(position).first for position in positions}):
            for line in (await self._objects.get(Bucket.PAYLOADS, _key(digest, first))).splitlines():
                position, trial, *answer = orjson.loads(line)
                if position in wanted:
                    found[TrialKey(position, trial)] = Prediction(*answer)
        return found


class Rows:
    """Where each answer is in a file, by case: eight bytes a number, so that files of millions of lines fit."""

    def __init__(self) -> None:
        self._positions = array("q")
        self._trials = array("q")
        self._offsets = array("q")

    def __len__(self) -> int:
        return len(self._offsets)

    def add(self, position: int, trial: int, offset: int) -> None:
        self._positions.append(position)
        self._trials.append(trial)
        self._offsets.append(offset)

    def sort(self) -> None:
        """Order by case and trial."""
        order = sorted(range(len(self)), key=lambda place: (self._positions[place], self._trials[place]))
        self._positions = array("q", (self._positions[place] for place in order))
        self._trials = array("q", (self._trials[place] for place in order))
        self._offsets = array("q", (self._offsets[place] for place in order))

    def between(self, file: BinaryIO, first: int, end: int) -> Iterator[bytes]:
        """The answers to cases from ``first`` up to ``end``, each as a JSON array; after :meth:`sort`."""
        for place in range(bisect_left(self._positions, first), bisect_left(self._positions, end)):
            file.seek(self._offsets[place])
            line = _Line.model_validate(orjson.loads(file.readline()))
            usage = line.usage or _Usage()
            yield orjson.dumps(
                [
                    self._positions[place],
                    self._trials[place],
                    line.response,
                    usage.input_tokens,
                    usage.output_tokens,
                    line.latency_ms,
                ]
            )


def _check(file: BinaryIO, positions: dict[str, int]) -> Rows:
    """Find every answer in the file.

    :raises InvalidInput: what cannot be used, with line numbers.
    """
    rows = Rows()
    problems: list[str] = []
    seen: dict[tuple[int, int], int] = {}
    file.seek(0)
    offset = 0
    for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
        start, offset = offset, offset + len(raw)
        if len(problems) >= _MAX_PROBLEMS:
            problems.append("... and maybe more")
            break
        if not raw.strip():
            continue
        try:
            line = _parse(raw)
            position = positions.get(line.case_id)
            if position is None:
                raise InvalidInput(f"case_id: the environment has no case {line.case_id!r}")
            before = seen.setdefault((position, line.trial), number)
            if before != number:
                raise InvalidInput(
                    f"case {line.case_id!r}, trial {line.trial}: answered in line {before} already"
                )
        except InvalidInput as error:
            problems.append(f"line {number}: {error}")
            continue
        rows.add(position, line.trial, start)
    if not problems and not len(rows):
        problems.append("the file is empty")
    if problems:
        raise InvalidInput("these predictions cannot be used:\n  " + "\n  ".join(problems))
    rows.sort()
    return rows


def _parse(raw: bytes) -> _Line:
    if len(raw) > MAX_LINE:
        raise InvalidInput(f"expected at most {MAX_LINE} bytes")
    try:
        return _Line.model_validate(orjson.loads(raw))
    except orjson.JSONDecodeError as error:
        raise InvalidInput(f"expected a JSON object, found {error}") from None
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        raise InvalidInput(
            "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'line'}: {fault['msg']}" for fault in faults)
        ) from None


def _key(digest: str, first: int) -> str:
    return f"predictions/{digest}/{first}.jsonl"
