"""Packed programs and data, fetched by digest and kept on disk: as zips, and unpacked for boxes to look into."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Self
from uuid import uuid4

from benchgen.errors import Unavailable
from services.common.competition.archives import unpack
from services.common.objects import Bucket, ObjectStore

PROGRAMS = "programs"
SUBMISSIONS = "submissions"


_Make = Callable[[Path], Coroutine[Any, Any, None]]
"""Writes a file or folder at a path that is given."""


def pack_key(sha256: str, folder: str = PROGRAMS) -> str:
    """Where a pack is, within its bucket."""
    return f"{folder}/{sha256}.zip"


class PackStore:
    """Fetches packs. What is on disk is named by its digest, whole or not there, and read by anybody.

    :param cache_dir: where they are kept; a folder that goes at the end of the block when not given.
    """

    def __init__(self, objects: ObjectStore, cache_dir: Path | None) -> None:
        self._objects = objects
        self._own = None if cache_dir is not None else tempfile.TemporaryDirectory(prefix="benchgen-packs-")
        self._dir = Path(self._own.name) if self._own is not None else (cache_dir or Path()) / "packs"
        self._fetching: dict[Path, asyncio.Task[None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._own is not None:
            self._own.cleanup()

    async def zip(self, bucket: Bucket, sha256: str, folder: str = PROGRAMS) -> Path:
        """A pack as it is stored.

        :raises NotFound: there is none.
        :raises Unavailable: the store cannot be reached, or what came back is damaged.
        """
        path = self._dir / bucket / f"{sha256}.zip"
        await self._once(path, lambda new: self._fetch(bucket, pack_key(sha256, folder), sha256, new))
        return path

    async def folder(self, bucket: Bucket, sha256: str) -> Path:
        """The files of a pack, unpacked; see :meth:`zip`."""
        path = self._dir / bucket / sha256

        async def make(new: Path) -> None:
            archive = await self.zip(bucket, sha256)
            await asyncio.to_thread(unpack, archive, new)

        await self._once(path, make)
        return path

    async def _once(self, path: Path, make: _Make) -> None:
        """Make a file or folder unless it is there. Whoever wants the same meanwhile waits for it."""
        if path.exists():
            return
        task = self._fetching.get(path)
        if task is None:
            task = asyncio.create_task(_made(path, make), name=f"pack {path.name[:12]}")
            self._fetching[path] = task
            task.add_done_callback(lambda _: self._fetching.pop(path))
        await asyncio.shield(task)

    async def _fetch(self, bucket: Bucket, key: str, sha256: str, path: Path) -> None:
        await self._objects.fetch_file(bucket, key, path)
        if await asyncio.to_thread(_sha256_of, path) != sha256:
            raise Unavailable(f"{bucket}/{key}: what was stored does not have this digest")


async def _made(path: Path, make: _Make) -> None:
    new = path.with_name(f".{path.name}-{uuid4().hex}")
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        await make(new)
        try:
            os.rename(new, path)
        except OSError:
            # Another process was first.
            if not path.exists():
                raise
    finally:
        if new.is_dir():
            await asyncio.to_thread(shutil.rmtree, new, ignore_errors=True)
        else:
            new.unlink(missing_ok=True)


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
