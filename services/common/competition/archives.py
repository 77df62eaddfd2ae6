"""From zips, in which folders are stored, to tars, in which boxes take and give them, and back."""

from __future__ import annotations

import hashlib
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from benchgen.bundle.tree import CHUNK_BYTES, path_problem

_SPOOL_BYTES = 1 << 20
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100644 << 16


@dataclass(frozen=True, slots=True)
class Zipped:
    """A zip on disk: its sha256, its own size, and the paths of its files."""

    path: Path
    sha256: str
    bytes: int
    names: tuple[str, ...]


class _Spool(tempfile.SpooledTemporaryFile[bytes]):
    """In memory while it is small, then on an unnamed file; gone with its last reference."""

    def __del__(self) -> None:
        self.close()


def tar_of(archive: Path) -> IO[bytes]:
    """The files of a zip that was packed by us, as a tar. Every file may be executed."""
    spool = _Spool(max_size=_SPOOL_BYTES)
    with zipfile.ZipFile(archive) as source, tarfile.open(fileobj=spool, mode="w") as tar:
        for info in source.infolist():
            if info.is_dir():
                continue
            member = tarfile.TarInfo(info.filename)
            member.size = info.file_size
            member.mode = 0o755
            with source.open(info) as stream:
                tar.addfile(member, stream)
    spool.seek(0)
    return spool


def zip_of(tars: Iterable[IO[bytes]], extra: Mapping[str, bytes], path: Path) -> Zipped:
    """The files of tars that came out of boxes as one zip; ``extra`` are files that take the place of theirs.

    Names that could lead out of the folder, or stand for a file and a folder, are left out.
    """
    names: set[str] = set()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in tars:
            file.seek(0)
            with tarfile.open(fileobj=file) as tar:
                for member in tar:
                    content = tar.extractfile(member) if member.isreg() else None
                    name = member.name.removeprefix("./")
                    if content is None or name in extra or name in names or path_problem(name) is not None:
                        continue
                    names.add(name)
                    _add(archive, name, content.read, member.size)
        for name, data in sorted(extra.items()):
            names.add(name)
            archive.writestr(_entry(name, len(data)), data)
    return zipped(path, names)


def zipped(path: Path, names: Iterable[str]) -> Zipped:
    """A written zip."""
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return Zipped(path, sha256, path.stat().st_size, tuple(sorted(names)))


def _add(archive: zipfile.ZipFile, name: str, read: Callable[[int], bytes], size: int) -> None:
    with archive.open(_entry(name, size), "w") as target:
        while chunk := read(CHUNK_BYTES):
            target.write(chunk)


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.compress_type = zipfile.ZIP_DEFLATED
    info.external_attr = _MODE
    info.create_system = 3
    info.file_size = size
    return info


def unpack(archive: Path, folder: Path) -> None:
    """The files of a zip that was packed by us, in a folder that everybody may read: boxes have users of their own."""
    folder.mkdir(mode=0o755, parents=True)
    folder.chmod(0o755)
    with zipfile.ZipFile(archive) as source:
        for info in source.infolist():
            if info.is_dir() or path_problem(info.filename) is not None:
                continue
            target = folder / info.filename
            for parent in reversed(target.relative_to(folder).parents[:-1]):
                (folder / parent).mkdir(mode=0o755, exist_ok=True)
                (folder / parent).chmod(0o755)
            with source.open(info) as stream, target.open("xb") as file:
                while chunk := stream.read(CHUNK_BYTES):
                    file.write(chunk)
            target.chmod(0o644)
