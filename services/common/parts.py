"""Materialised data: one index and its parts in object storage, read by digest and cached on disk.

An index names its parts; both are named by the sha256 of their bytes, so whatever is read is checked, and
whatever is cached never goes stale.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import structlog

from benchgen.errors import InvalidInput, NotFound, Unavailable
from services.common.objects import Bucket, ObjectStore

log = structlog.get_logger()

Row = dict[str, Any]

_LOADS_AT_ONCE = 4
_UNFINISHED = ".part-"
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Part:
    """A contiguous range of cases."""

    first: int
    count: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Index:
    """All parts of one store of one version, in order."""

    cases: int
    parts: tuple[Part, ...]

    def part_of(self, position: int) -> Part:
        """The part that holds a case.

        :raises NotFound: there is no such case.
        """
        if not 0 <= position < self.cases:
            raise NotFound(f"there is no case at position {position}: the data has {self.cases}")
        return self.parts[bisect_right(self.parts, position, key=lambda part: part.first) - 1]


def read_index(data: bytes) -> Index:
    """Parse an index object.

    :raises InvalidInput: it is of a schema that this version does not know.
    """
    fields = orjson.loads(data)
    if fields.get("schema") != 1:
        raise InvalidInput(f"index schema {fields.get('schema')!r}: expected 1")
    parts = tuple(Part(part["first"], part["count"], part["sha256"]) for part in fields["parts"])
    return Index(fields["cases"], parts)


class CaseReader:
    """Reads cases of one kind of store by position.

    :param cache_dir: where objects are kept on disk; shared by all processes of one identity on a machine.
    :param memory_bytes: how much of what was read is kept in memory; the part in use is kept whatever its size.
    """

    def __init__(
        self,
        bucket: Bucket,
        objects: ObjectStore,
        cache_dir: Path | None,
        *,
        memory_bytes: int = 32 * 1024 * 1024,
    ) -> None:
        self._bucket = bucket
        self._objects = objects
        self._dir = cache_dir / bucket if cache_dir is not None else None
        if self._dir is not None:
            _remove_unfinished(self._dir)
        self._indexes: OrderedDict[str, Index] = OrderedDict()
        # Lines as they are stored: a reader rarely wants all rows of a part.
        self._parts: OrderedDict[str, list[bytes]] = OrderedDict()
        self._bytes = 0
        self._most_bytes = memory_bytes
        self._loading: dict[str, asyncio.Task[list[bytes]]] = {}
        # A part may have 16 MiB: few at once.
        self._loads = asyncio.Semaphore(_LOADS_AT_ONCE)

    async def index(self, digest: str) -> Index:
        """The index with this digest."""
        found = self._indexes.get(digest)
        if found is None:
            found = read_index(await self._object(f"index/{digest}.json", digest))
            self._indexes[digest] = found
            while len(self._indexes) > 16:
                self._indexes.popitem(last=False)
        return found

    async def rows(self, digest: str, positions: Sequence[int]) -> list[Row]:
        """The rows of cases, in the order asked.

        :raises NotFound: there is no such case, or no such data.
        :raises Unavailable: the store cannot be reached, or what came back is damaged.
        """
        index = await self.index(digest)
        rows: list[Row] = []
        part: Part | None = None
        lines: list[bytes] = []
        for position in positions:
            if part is None or not part.first <= position < part.first + part.count:
                part = index.part_of(position)
                lines = await self._part(part)
            rows.append(orjson.loads(lines[position - part.first]))
        return rows

    async def _part(self, part: Part) -> list[bytes]:
        lines = self._parts.get(part.sha256)
        if lines is not None:
            self._parts.move_to_end(part.sha256)
            return lines
        # Whoever wants the same part meanwhile waits for the same load, and nobody else does.
        loading = self._loading.get(part.sha256)
        if loading is None:
            loading = asyncio.create_task(self._load(part), name=f"load {part.sha256[:12]}")
            self._loading[part.sha256] = loading
            loading.add_done_callback(lambda _: self._loading.pop(part.sha256))
        return await asyncio.shield(loading)

    async def _load(self, part: Part) -> list[bytes]:
        async with self._loads:
            data = await self._object(f"parts/{part.sha256}.jsonl", part.sha256)
        while self._parts and self._bytes + len(data) > self._most_bytes:
            _, evicted = self._parts.popitem(last=False)
            self._bytes -= sum(map(len, evicted))
        # Not splitlines: that would also split at characters that JSON leaves as they are.
        lines = data.split(b"\n")
        self._parts[part.sha256] = lines
        self._bytes += sum(map(len, lines))
        return lines

    async def _object(self, key: str, digest: str) -> bytes:
        path = self._dir / key if self._dir is not None else None
        if path is not None:
            cached = await asyncio.to_thread(_read_if_whole, path, digest)
            if cached is not None:
                return cached
        data = await self._objects.get(self._bucket, key)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Unavailable(f"{self._bucket}/{key}: what was stored does not have this digest")
        if path is not None:
            try:
                await asyncio.to_thread(write_atomically, path, data)
            except OSError as error:
                # A full disk: what was read is good all the same.
                log.warning("cache.failed", path=str(path), error=str(error))
        return data


def _read_if_whole(path: Path, digest: str) -> bytes | None:
    try:
        data = path.read_bytes()
    except OSError:
        # Not there, most often; whatever else is wrong with it, there is the store.
        return None
    return data if hashlib.sha256(data).hexdigest() == digest else None


def _remove_unfinished(folder: Path) -> None:
    """Remove what killed processes were writing; others may be at work on what is young."""
    for path in folder.glob(f"*/{_UNFINISHED}*"):
        # Another process may be as tidy.
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                path.unlink()


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that other processes see whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=_UNFINISHED)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
