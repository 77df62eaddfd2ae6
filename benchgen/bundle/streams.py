"""Byte streams of dataset files: decompressed within bounds, cut into lines."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any, cast

from benchgen.bundle.tree import BundleTree

MAX_DATASET_BYTES = 4 << 30
MAX_ROW_BYTES = 16 << 20
_ZSTD_WINDOW_BYTES = 1 << 27
_BOM = b"\xef\xbb\xbf"


class DatasetFaultError(Exception):
    """A dataset file that cannot be read further; ``line`` counts from 1, None where there are no lines."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class _Bounded(io.RawIOBase):
    """A stream that gives at most ``MAX_DATASET_BYTES`` and names damage in words."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            chunk = self._source.read(len(buffer))
        except (EOFError, zlib.error, OSError) as error:
            raise DatasetFaultError(f"expected intact compressed data, found: {error}") from None
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise DatasetFaultError(f"expected intact compressed data, found: {error}") from None
        self._given += len(chunk)
        if self._given > MAX_DATASET_BYTES:
            raise DatasetFaultError(f"expected at most {MAX_DATASET_BYTES:,} bytes of data, found more")
        buffer[: len(chunk)] = chunk
        return len(chunk)


@contextmanager
def open_dataset(tree: BundleTree, path: str) -> Iterator[IO[bytes]]:
    """The bytes of a dataset file, decompressed as its name says (``.gz``, ``.zst``)."""
    with ExitStack() as stack:
        source = stack.enter_context(tree.open(path))
        if path.endswith(".gz"):
            source = cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=source)))
        elif path.endswith(".zst"):
            source = stack.enter_context(_zstd(source))
        yield stack.enter_context(io.BufferedReader(_Bounded(source), 1 << 18))


def _zstd(source: IO[bytes]) -> Any:
    try:
        import zstandard
    except ImportError:
        raise DatasetFaultError(
            "expected zstandard to be installed for .zst files; pip install 'benchgen[data]'"
        ) from None
    decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    return decompressor.stream_reader(source, read_across_frames=True, closefd=False)


def text_lines(stream: IO[bytes]) -> Iterator[str]:
    """The lines of a stream with their ends, as text; a byte order mark is taken off.

    Raises ``DatasetFaultError`` at a line that is not UTF-8 or longer than ``MAX_ROW_BYTES``.
    """
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise DatasetFaultError(f"expected a line of at most {MAX_ROW_BYTES:,} bytes, found more", number)
        if number == 1:
            line = line.removeprefix(_BOM)
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            byte = line[error.start]
            place = f"the byte 0x{byte:02x} at column {error.start + 1}"
            raise DatasetFaultError(f"expected UTF-8, found {place}", number) from None
        yield text
