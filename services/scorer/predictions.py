"""Files of recorded answers: checked line by line, then stored in parts that a shard can read alone.

A file is JSON lines ``{case_id, trial?, response, usage?, latency_ms?}``. Its parts have the boundaries of the
environment's own parts, so a shard reads one or two of them whatever the size of the file. A part begins with the
sha256 of its own name and content: what is read is what was stored there.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import BinaryIO

import orjson
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from benchgen.errors import InvalidInput, NotFound, Unavailable
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader, Index
from services.scorer.domain import TrialKey
from services.scorer.intake import DIGEST

MAX_BYTES = 4 * 1024**3
MAX_LINE = 16 * 1024 * 1024
_MAX_PROBLEMS = 20
#: How files of zip, and gzip with its usual method, begin.
_PACKED = (b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b\x08\x00", b"\x1f\x8b\x08\x08")
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


def folder_of(targets_digest: str, digest: str) -> str:
    """Where the parts of a file are."""
    return f"{targets_digest}/{digest}/"


class PredictionStore:
    """Takes files in and gives answers out."""

    def __init__(self, objects: ObjectStore, targets: CaseReader) -> None:
        self._objects = objects
        self._targets = targets

    async def accept(self, targets_digest: str, chunks: AsyncIterator[bytes]) -> tuple[str, int]:
        """Check and store a file; returns its digest and how many answers it has.

        :raises InvalidInput: lines that cannot be used, all at once as far as 20; or the digest is none.
        """
        if not DIGEST.fullmatch(targets_digest):
            raise InvalidInput("targets_digest: expected the one of a version, 64 lower-case hex digits")
        index = await self._targets.index(targets_digest)
        positions = await self._positions(targets_digest, index)
        with tempfile.TemporaryFile() as file:
            digest = hashlib.sha256()
            size = 0
            async for chunk in chunks:
                size += len(chunk)
                if size > MAX_BYTES:
                    raise InvalidInput(f"predictions: at most {MAX_BYTES} bytes")
                digest.update(chunk)
                file.write(chunk)
            # A file may have millions of lines: off the event loop.
            rows = await asyncio.to_thread(_check, file, positions)
            name = digest.hexdigest()
            for part in index.parts:
                data = await asyncio.to_thread(rows.between, file, part.first, part.first + part.count)
                key = _key(targets_digest, name, part.first)
                await self._objects.put(Bucket.PREDICTIONS, key, b"\n".join([_checksum(key, data), data]))
        return name, len(rows)

    async def _positions(self, targets_digest: str, index: Index) -> dict[str, int]:
        positions: dict[str, int] = {}
        for part in index.parts:
            rows = await self._targets.rows(targets_digest, range(part.first, part.first + part.count))
            positions.update((row["id"], row["position"]) for row in rows)
        return positions

    async def read(
        self, digest: str, targets_digest: str, positions: Sequence[int]
    ) -> dict[TrialKey, Prediction]:
        """The answers to some cases; those without any are left out.

        :raises InvalidInput: there are no such predictions for this environment.
        :raises Unavailable: the store cannot be reached, or what came back is damaged.
        """
        index = await self._targets.index(targets_digest)
        wanted = set(positions)
        found: dict[TrialKey, Prediction] = {}
        for first in sorted({index.part_of(position).first for position in positions}):
            key = _key(targets_digest, digest, first)
            try:
                checksum, _, data = (await self._objects.get(Bucket.PREDICTIONS, key)).partition(b"\n")
            except NotFound:
                raise InvalidInput(
                    f"predictions {digest[:12]} were not uploaded for this version of the environment"
                ) from None
            if checksum != _checksum(key, data):
                raise Unavailable(f"predictions {key}: what was stored does not have its digest")
            for line in data.splitlines():
                position, trial, *answer = orjson.loads(line)
                if position in wanted:
                    found[TrialKey(position, trial)] = Prediction(*answer)
        return found


class Rows:
    """Where each answer is in a file, by case: eight bytes a number, so that files of millions of lines fit."""

    def __init__(self) -> None:
        self._keys = array("q")
        self._offsets = array("q")
        self._lines = array("q")

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, position: int, trial: int, offset: int, line: int) -> None:
        self._keys.append(position * _MAX_TRIALS + trial)
        self._offsets.append(offset)
        self._lines.append(line)

    def sort(self) -> None:
        """Order by case and trial."""
        order = sorted(range(len(self)), key=self._keys.__getitem__)
        self._keys = array("q", (self._keys[place] for place in order))
        self._offsets = array("q", (self._offsets[place] for place in order))
        self._lines = array("q", (self._lines[place] for place in order))

    def repeated(self, file: BinaryIO) -> Iterator[tuple[int, str]]:
        """Answers to a trial that has one already: the line, and what is wrong; after :meth:`sort`."""
        for place in range(1, len(self)):
            if self._keys[place] == self._keys[place - 1]:
                again = self._read(file, place)
                yield (
                    self._lines[place],
                    f"case {again.case_id!r}, trial {again.trial}:"
                    f" answered in line {self._lines[place - 1]} already",
                )

    def between(self, file: BinaryIO, first: int, end: int) -> bytes:
        """The answers to cases from ``first`` up to ``end``, a JSON array a line; after :meth:`sort`."""
        start, stop = (bisect_left(self._keys, position * _MAX_TRIALS) for position in (first, end))
        return b"\n".join(self._answer(file, place) for place in range(start, stop))

    def _answer(self, file: BinaryIO, place: int) -> bytes:
        position, trial = divmod(self._keys[place], _MAX_TRIALS)
        line = self._read(file, place)
        usage = line.usage or _Usage()
        return orjson.dumps(
            [position, trial, line.response, usage.input_tokens, usage.output_tokens, line.latency_ms]
        )

    def _read(self, file: BinaryIO, place: int) -> _Line:
        file.seek(self._offsets[place])
        return _parse(file.readline())


def _check(file: BinaryIO, positions: dict[str, int]) -> Rows:
    """Find every answer in the file.

    :raises InvalidInput: what cannot be used, with line numbers.
    """
    file.seek(0)
    if file.read(4) in _PACKED:
        raise InvalidInput(
            "these predictions are packed: expected JSON lines as plain text, one answer a line"
        )
    rows = Rows()
    problems: list[tuple[int, str]] = []
    for number, start, raw in _lines(file):
        if not raw.strip():
            continue
        try:
            line = _parse(raw)
            position = positions.get(line.case_id)
            if position is None:
                raise InvalidInput(f"case_id: the environment has no case {line.case_id!r}")
        except InvalidInput as error:
            problems.append((number, error.message))
            if len(problems) >= _MAX_PROBLEMS:
                break
        else:
            rows.add(position, line.trial, start, number)
    rows.sort()
    problems += islice(rows.repeated(file), _MAX_PROBLEMS - len(problems))
    said = [f"line {number}: {message}" for number, message in sorted(problems)]
    if len(said) >= _MAX_PROBLEMS:
        said.append("... and maybe more")
    if not said and not len(rows):
        said.append("the file is empty")
    if said:
        raise InvalidInput("these predictions cannot be used:\n  " + "\n  ".join(said))
    return rows


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Every line with its number and where it starts. Of one that is too long only the beginning."""
    file.seek(0)
    number = offset = 0
    while raw := file.readline(MAX_LINE + 1):
        number += 1
        yield number, offset, raw
        offset += len(raw)
        while len(raw) > MAX_LINE and not raw.endswith(b"\n"):
            raw = file.readline(MAX_LINE + 1)
            offset += len(raw)


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


def _key(targets_digest: str, digest: str, first: int) -> str:
    # By environment, so that nobody reads the answers to the cases of another one.
    return f"{folder_of(targets_digest, digest)}{first}.jsonl"


def _checksum(key: str, data: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\n" + data).hexdigest().encode()
