"""Programs on this machine's disk: fetched once, unpacked once, shown to boxes read-only."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path

from benchgen.bundle.programs import MAX_PROGRAM_BYTES, program_key
from benchgen.bundle.tree import path_problem
from benchgen.errors import InvalidInput, Unavailable
from services.common.objects import Bucket, ObjectStore

_FOLDER = "programs"


class ProgramStore:
    """Unpacked programs by digest.

    :param cache_dir: where they are kept; a folder that goes with this object when None.
    """

    def __init__(self, objects: ObjectStore, cache_dir: Path | None) -> None:
        self._objects = objects
        self._own = (
            None if cache_dir is not None else tempfile.TemporaryDirectory(prefix="benchgen-programs-")
        )
        self._folder = (cache_dir or Path(self._own.name if self._own else "")) / _FOLDER
        self._turn = asyncio.Lock()

    def close(self) -> None:
        """Remove what goes with this object."""
        if self._own is not None:
            self._own.cleanup()

    async def folder(self, digest: str) -> Path:
        """A folder that holds a program.

        :raises Unavailable: the object store cannot be reached, or what came back is damaged.
        :raises InvalidInput: it is no program.
        """
        target = self._folder / digest
        async with self._turn:
            if not target.is_dir():
                data = await self._objects.get(Bucket.INPUTS, program_key(digest))
                if hashlib.sha256(data).hexdigest() != digest:
                    raise Unavailable(f"program {digest}: what was stored does not have this digest")
                await asyncio.to_thread(_unpack, data, target)
        return target


def _unpack(data: bytes, target: Path) -> None:
    """Unpack a program so that it is there whole or not at all, whoever else does so."""
    target.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            entries = packed.infolist()
            if sum(entry.file_size for entry in entries) > MAX_PROGRAM_BYTES:
                raise InvalidInput(f"expected a program of at most {MAX_PROGRAM_BYTES:,} bytes")
            for entry in entries:
                if path_problem(entry.filename) is not None:
                    raise InvalidInput(f"expected a plain path in a program, found {entry.filename[:80]!r}")
                path = made / entry.filename
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(packed.read(entry))
        _open_to_all(made)
        with suppress(OSError):
            # Fails where another process was faster: it has the same bytes.
            os.rename(made, target)
        if not target.is_dir():
            raise Unavailable(f"{target}: the program cannot be kept there")
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _open_to_all(folder: Path) -> None:
    """The box's user is another one: all may read, and run what is a program."""
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755)
