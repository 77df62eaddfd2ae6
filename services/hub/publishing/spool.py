"""Receiving an upload: into a file, hashed as it arrives, within its bounds."""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import environment_pb2

Message = environment_pb2.UploadBundleRequest | environment_pb2.UploadSubmissionRequest

MOST_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Received:
    """A whole upload: its file, the sha256 of its bytes in lower-case hex, and its size in bytes."""

    path: Path
    sha256: str
    size: int


@asynccontextmanager
async def received(
    chunks: AsyncIterator[Message], scratch: Path, *, declared: int, most: int
) -> AsyncIterator[Received]:
    """The upload as a file, for as long as the block lasts.

    :param declared: the size that the caller announced, bytes; 0 when it did not.
    :param most: the largest upload, bytes.
    :raises InvalidInput: it is too large, empty, cut off, or not made of chunks.
    """
    if declared > most:
        raise InvalidInput(_too_large(declared, most))
    digest, size = hashlib.sha256(), 0
    with tempfile.NamedTemporaryFile(dir=scratch, prefix="upload-", buffering=0) as file:

        def add(chunk: bytes) -> None:
            digest.update(chunk)
            file.write(chunk)

        async for message in chunks:
            if message.WhichOneof("part") != "chunk":
                raise InvalidInput("expected one header and then chunks, found another header")
            if len(message.chunk) > MOST_CHUNK_BYTES:
                raise InvalidInput(
                    f"chunk: expected at most {MOST_CHUNK_BYTES:,} bytes, found {len(message.chunk):,}"
                )
            size += len(message.chunk)
            if size > most:
                raise InvalidInput(_too_large(size, most))
            await asyncio.to_thread(add, message.chunk)
        if size == 0:
            raise InvalidInput("expected a zip archive, found nothing")
        if declared not in (0, size):
            raise InvalidInput(f"expected the announced {declared:,} bytes, found {size:,}")
        yield Received(Path(file.name), digest.hexdigest(), size)


def _too_large(size: int, most: int) -> str:
    return f"expected a bundle of at most {most:,} bytes, found {size:,} or more"
