"""Opens a folder or a zip as a ``BundleTree``. Neither is trusted, a zip least of all."""

from __future__ import annotations

import copy
import os
import stat
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO

from benchgen.bundle.problems import BundleInvalid, Problem, ProblemLog
from benchgen.bundle.tree import (
    MAX_FILE_BYTES,
    MAX_FILES,
    MAX_TREE_BYTES,
    BundleFile,
    BundleTree,
    PathRegister,
    hash_stream,
    ignored,
    nfc,
    parents,
    path_problem,
)

# Deflate reaches 1,032 : 1 on zeros; text that somebody wrote stays far below this.
MAX_RATIO = 200
# Small entries may compress as well as they like.
RATIO_FLOOR_BYTES = 16 << 20
# 10,000 entries with long names and extra fields fit several times.
MAX_DIRECTORY_BYTES = 16 << 20
# Of an archive and all archives in it.
MAX_ENTRIES = 50_000
# The end records: 22 bytes and a comment of at most 65,535, before them 76 for large archives.
_TAIL_BYTES = 22 + 65_535 + 76
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED_FLAGS = 0x1 | 0x40
_UTF8_FLAG = 0x800
_BROKEN = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


class _TooLargeError(Exception):
    """A stream gave more bytes than it may."""


class Budget:
    """Counts the bytes of all files together, those of archives inside the archive included."""

    def __init__(self) -> None:
        self.spent = 0
        self.entries = 0

    def check(self, size: int, packed: int | None) -> None:
        """Raises where a file of ``size`` bytes so far, from ``packed`` bytes of a zip, is too much."""
        if size > MAX_FILE_BYTES:
            raise _TooLargeError(f"expected a file of at most {MAX_FILE_BYTES:,} bytes, found more")
        if self.spent + size > MAX_TREE_BYTES:
            raise _TooLargeError(f"expected at most {MAX_TREE_BYTES:,} bytes in all files, found more")
        if packed is not None and too_dense(size, packed):
            raise _TooLargeError(f"expected a compression ratio of at most {MAX_RATIO} : 1, found more")


def too_dense(size: int, packed: int) -> bool:
    """Whether an entry of ``size`` bytes is refused because it takes only ``packed`` bytes of a zip."""
    return size > RATIO_FLOOR_BYTES and size > packed * MAX_RATIO


def load_folder(folder: Path) -> BundleTree:
    """The folder as a tree; its files are hashed now and read again when opened.

    Raises ``BundleInvalid`` with every problem: links, special files, unusable names, limits.
    """
    root = Path(folder)
    if not root.is_dir():
        raise BundleInvalid([Problem(str(folder), "expected a folder, found none")])
    log = ProblemLog()
    register = PathRegister(log)
    budget = Budget()
    files: list[BundleFile] = []
    sources: dict[str, Path] = {}
    for relative in _walk(root, log):
        path = nfc(relative)
        problem = path_problem(path)
        if problem is not None:
            log.add(ascii(path), problem)
        elif register.admit(path):
            sources[path] = root / relative
            if len(sources) > MAX_FILES:
                log.add("", f"expected at most {MAX_FILES:,} files, found more")
                break
            file = _hash_file(path, sources[path], budget, log)
            if file is not None:
                files.append(file)
    log.raise_if_any()
    return BundleTree(tuple(sorted(files, key=lambda file: file.path)), lambda path: sources[path].open("rb"))


def _walk(root: Path, log: ProblemLog) -> Iterator[str]:
    """The relative POSIX paths of the regular files below a folder, in sorted order."""
    pending = [""]
    while pending:
        prefix = pending.pop()
        with os.scandir(root / prefix) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            relative = f"{prefix}{entry.name}"
            if ignored(relative):
                continue
            if entry.is_symlink():
                log.add(relative, "expected a file or a folder, found a symbolic link; copy its target")
            elif entry.is_dir(follow_symlinks=False):
                pending.append(f"{relative}/")
            elif entry.is_file(follow_symlinks=False):
                yield relative
            else:
                log.add(relative, "expected a file or a folder, found a special file")


def _hash_file(path: str, source: Path, budget: Budget, log: ProblemLog) -> BundleFile | None:
    try:
        with source.open("rb") as stream:
            size, sha256 = hash_stream(stream, lambda size: budget.check(size, None))
    except _TooLargeError as error:
        log.add(path, str(error))
        return None
    except OSError as error:
        log.add(path, f"expected a readable file, found: {error.strerror}")
        return None
    budget.spent += size
    return BundleFile(path, size, sha256)


def open_zip(archive: Path, *, budget: Budget | None = None, inner: bool = False) -> BundleTree:
    """The zip as a tree. Every entry is inflated once, measured and hashed; nothing is written to disk.

    One folder around everything (as macOS and GitHub make it) is taken off. Raises ``BundleInvalid`` with
    every problem: names that escape or collide, links, encryption, unknown compression, bombs, damaged data.

    :param budget: what the archive counts against, where it is one of several.
    :param inner: it is an archive inside a bundle, whose programs rely on its names: no folder is taken off,
        names may differ in nothing but case, and of equal names the last one counts, as for ``unzip``.
    """
    name = Path(archive).name
    budget = budget or Budget()
    log = ProblemLog()
    files: list[BundleFile] = []
    try:
        if (size := _directory_bytes(Path(archive))) > MAX_DIRECTORY_BYTES:
            message = f"expected a table of contents of at most {MAX_DIRECTORY_BYTES:,} bytes, found {size:,}"
            raise BundleInvalid([Problem(name, message)])
        with zipfile.ZipFile(archive) as opened:
            infos = _admissible(opened.infolist(), log, inner=inner)
            budget.entries += len(infos)
            if budget.entries > MAX_ENTRIES:
                message = f"expected at most {MAX_ENTRIES:,} files in all archives, found more"
                raise BundleInvalid([Problem(name, message)])
            for path, info in infos.items():
                file = _hash_entry(opened, path, info, budget, log)
                if file is not None:
                    files.append(file)
    except _BROKEN as error:
        raise BundleInvalid([Problem(name, f"expected a zip archive, found: {error}")]) from None
    log.raise_if_any()

    def opener(path: str) -> AbstractContextManager[IO[bytes]]:
        return _open_entry(Path(archive), infos[path])

    return BundleTree(tuple(sorted(files, key=lambda file: file.path)), opener)


def _directory_bytes(archive: Path) -> int:
    """How long the table of contents says it is: zipfile reads all of it before it can be asked."""
    with archive.open("rb") as stream:
        stream.seek(max(0, archive.stat().st_size - _TAIL_BYTES))
        tail = stream.read()
    end = tail.rfind(b"PK\x05\x06")
    if end < 0:
        return 0
    # zipfile knows the larger record only right before the plain one, with its locator between them.
    large = tail[max(0, end - 76) : end]
    if large.startswith(b"PK\x06\x06") and large[56:60] == b"PK\x06\x07":
        return int.from_bytes(large[40:48], "little")
    return int.from_bytes(tail[end + 12 : end + 16], "little")


def _admissible(
    entries: list[zipfile.ZipInfo], log: ProblemLog, *, inner: bool
) -> dict[str, zipfile.ZipInfo]:
    """The entries that are files of the bundle, by path, without the folder around everything."""
    if len(entries) > MAX_FILES:
        log.add("", f"expected at most {MAX_FILES:,} entries, found {len(entries):,}")
        log.raise_if_any()
    named: list[tuple[str, zipfile.ZipInfo]] = []
    for info in entries:
        path = _entry_path(info, log, inner=inner)
        if path is not None:
            named.append((path, info))
    if inner:
        return _last_of_each(named, log)
    tops = {path.split("/", 1)[0] for path, _ in named}
    nested = len(tops) == 1 and all("/" in path for path, _ in named)
    register = PathRegister(log)
    admitted: dict[str, zipfile.ZipInfo] = {}
    for path, info in named:
        bare = path.split("/", 1)[1] if nested else path
        if not ignored(bare) and register.admit(bare):
            admitted[bare] = info
    return admitted


def _last_of_each(named: list[tuple[str, zipfile.ZipInfo]], log: ProblemLog) -> dict[str, zipfile.ZipInfo]:
    """The files of an inner archive; none of them may be a folder of another."""
    admitted = {path: info for path, info in named if not ignored(path)}
    for path in admitted:
        if any(parent in admitted for parent in parents(path)):
            log.add(path, "expected a folder around this file, found that the folder is also a file")
    return admitted


def _entry_path(info: zipfile.ZipInfo, log: ProblemLog, *, inner: bool) -> str | None:
    """The path of an entry that is a file; None for folders, for what is ignored and what has a problem."""
    # orig_filename: zipfile cuts the other one at the first NUL.
    name = info.orig_filename
    if inner:
        name = name.removeprefix("./")
        if not name:
            return None
    if not info.flag_bits & _UTF8_FLAG and not name.isascii():
        # Without the flag zipfile reads cp437; macOS writes UTF-8 and does not say so.
        try:
            name = name.encode("cp437").decode("utf-8")
        except UnicodeError:
            if inner:
                return None if name.endswith("/") else _checked(nfc(name), info, log)
            log.add(ascii(name), "expected a name in UTF-8, found another encoding")
            return None
    return _checked(nfc(name), info, log)


def _checked(path: str, info: zipfile.ZipInfo, log: ProblemLog) -> str | None:
    folder = path.endswith("/")
    problem = path_problem(path[:-1] if folder else path) or _entry_problem(info, folder)
    if problem is not None:
        log.add(ascii(path)[1:-1], problem)
        return None
    return None if folder or ignored(path) else path


def _entry_problem(info: zipfile.ZipInfo, folder: bool) -> str | None:
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if stat.S_ISLNK(mode):
        return "expected a file or a folder, found a symbolic link"
    if kind and kind not in (stat.S_IFREG, stat.S_IFDIR):
        return "expected a file or a folder, found a special file"
    if folder and (info.file_size or info.compress_size > 2):
        return "expected a folder to be empty of data, found bytes in it"
    if info.flag_bits & _ENCRYPTED_FLAGS:
        return "expected an entry without a password, found an encrypted one"
    if info.compress_type not in _METHODS:
        return f"expected a stored or deflated entry, found compression method {info.compress_type}"
    return None


def _hash_entry(
    opened: zipfile.ZipFile, path: str, info: zipfile.ZipInfo, budget: Budget, log: ProblemLog
) -> BundleFile | None:
    try:
        with opened.open(_unbounded(info)) as stream:
            size, sha256 = hash_stream(stream, lambda size: budget.check(size, info.compress_size))
    except _TooLargeError as error:
        log.add(path, str(error))
        return None
    except _BROKEN as error:
        log.add(path, f"expected intact data, found: {error}")
        return None
    if size != info.file_size:
        log.add(path, f"expected the declared {info.file_size:,} bytes, found {size:,}")
        return None
    budget.spent += size
    return BundleFile(path, size, sha256)


def _unbounded(info: zipfile.ZipInfo) -> zipfile.ZipInfo:
    """The entry without its declared size: zipfile would stop there and hide that the data goes on."""
    real = copy.copy(info)
    real.file_size = MAX_FILE_BYTES * 2
    return real


@contextmanager
def _open_entry(archive: Path, info: zipfile.ZipInfo) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(archive) as opened, opened.open(info) as stream:
        yield stream
