"""Reference solutions by digest and position, from object storage, with a cache that is bounded in bytes."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Generic, NamedTuple, TypeVar

import orjson

from benchgen.errors import InvalidInput, Unavailable
from services.common.objects import Bucket, ObjectStore
from services.common.parts import Index, Part, read_index

T = TypeVar("T")

CACHE_BYTES = 64 * 1024 * 1024


class Solution(NamedTuple):
    """The reference solution of one case."""

    case_id: str
    text: str


class Solutions:
    """Reads solutions. What is held is answered without waiting; an object is fetched once at a time."""

    def __init__(self, objects: ObjectStore, cache_bytes: int = CACHE_BYTES) -> None:
        self._objects = objects
        self._indexes: _Cache[Index] = _Cache(cache_bytes // 4)
        self._parts: _Cache[list[Solution]] = _Cache(cache_bytes)
        self._fetching: dict[str, asyncio.Task[Any]] = {}

    def peek(self, digest: str, position: int) -> Solution | None:
        """The solution if it is held in memory.

        :raises NotFound: there is no such case.
        """
        index = self._indexes.get(digest)
        if index is None:
            return None
        part = index.part_of(position)
        rows = self._parts.get(part.sha256)
        return None if rows is None else rows[position - part.first]

    async def get(self, digest: str, position: int) -> Solution:
        """The solution of a case.

        :raises NotFound: there is no such data or no such case.
        :raises InvalidInput: what the digest names is no store of solutions.
        :raises Unavailable: the store cannot be reached, or what came back is damaged.
        """
        index = self._indexes.get(digest)
        if index is None:
            index = await self._once(digest, lambda: self._fetch_index(digest))
        part = index.part_of(position)
        rows = self._parts.get(part.sha256)
        if rows is None:
            rows = await self._once(part.sha256, lambda: self._fetch_part(part))
        return rows[position - part.first]

    async def _once(self, key: str, fetch: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Share one fetch among all who want it now; a caller that goes away does not end it for others."""
        task: asyncio.Task[T] | None = self._fetching.get(key)
        if task is None:
            task = asyncio.get_running_loop().create_task(fetch())
            self._fetching[key] = task
            task.add_done_callback(lambda _: self._fetching.pop(key, None))
        return await asyncio.shield(task)

    async def _fetch_index(self, digest: str) -> Index:
        data = await self._object(f"index/{digest}.json", digest)
        fields = orjson.loads(data)
        if fields.get("kind") != Bucket.SOLUTIONS:
            raise InvalidInput(f"{digest}: expected an index of solutions, found {fields.get('kind')!r}")
        index = read_index(data)
        self._indexes.put(digest, index, len(data))
        return index

    async def _fetch_part(self, part: Part) -> list[Solution]:
        data = await self._object(f"parts/{part.sha256}.jsonl", part.sha256)
        rows = [Solution(row["id"], row["solution"]) for row in map(orjson.loads, data.split(b"\n")[:-1])]
        if len(rows) != part.count:
            raise Unavailable(f"part {part.sha256}: expected {part.count} cases, found {len(rows)}")
        self._parts.put(part.sha256, rows, len(data))
        return rows

    async def _object(self, key: str, digest: str) -> bytes:
        data = await self._objects.get(Bucket.SOLUTIONS, key)
        if hashlib.sha256(data).hexdigest() != digest:
            raise Unavailable(f"{key}: what was stored does not have this digest")
        return data


class _Cache(Generic[T]):
    """The most recently used values, up to a number of bytes; the last one is kept whatever its size."""

    def __init__(self, room: int) -> None:
        self._room = room
        self._used = 0
        self._held: OrderedDict[str, tuple[T, int]] = OrderedDict()

    def get(self, key: str) -> T | None:
        found = self._held.get(key)
        if found is None:
            return None
        self._held.move_to_end(key)
        return found[0]

    def put(self, key: str, value: T, size: int) -> None:
        previous = self._held.pop(key, None)
        self._used += size - (previous[1] if previous is not None else 0)
        self._held[key] = (value, size)
        while self._used > self._room and len(self._held) > 1:
            _, (_, gone) = self._held.popitem(last=False)
            self._used -= gone
