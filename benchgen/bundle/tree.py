"""A bundle as a tree of files: the same whether it came from a folder or a zip."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import IO

from benchgen.bundle.digest import tree_digest
from benchgen.bundle.problems import BundleInvalid, Problem, ProblemLog

MANIFEST_FILE = "environment.yaml"

MAX_FILES = 10_000
MAX_FILE_BYTES = 1 << 30
MAX_TREE_BYTES = 2 << 30
MAX_PATH_BYTES = 512
CHUNK_BYTES = 1 << 18

_IGNORED_FOLDERS = frozenset({".git", "__pycache__", "__MACOSX", ".ipynb_checkpoints", ".venv"})
_IGNORED_FILES = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file: its POSIX path in the bundle (NFC), its size in bytes, and the sha256 of its bytes in hex."""

    path: str
    size: int
    sha256: str


Opener = Callable[[str], AbstractContextManager[IO[bytes]]]


@dataclass(frozen=True)
class BundleTree:
    """The files of a bundle, sorted by path. ``opener`` gives the bytes of one of them as a stream."""

    files: tuple[BundleFile, ...]
    opener: Opener

    @cached_property
    def digest(self) -> str:
        """The digest of the bundle, in hex: the same for a folder and for any zip of it."""
        return tree_digest(self.files)

    @cached_property
    def _by_path(self) -> dict[str, BundleFile]:
        return {file.path: file for file in self.files}

    @property
    def paths(self) -> list[str]:
        """The paths of all files, sorted."""
        return [file.path for file in self.files]

    def __contains__(self, path: str) -> bool:
        return path in self._by_path

    def size(self, path: str) -> int:
        """The size of a file in bytes; ``KeyError`` where there is no such file."""
        return self._by_path[path].size

    def open(self, path: str) -> AbstractContextManager[IO[bytes]]:
        """The bytes of a file as a stream, for use in ``with``; ``KeyError`` where there is no such file."""
        return self.opener(self._by_path[path].path)

    def read(self, path: str, limit: int) -> bytes:
        """The whole of a small file; raises ``BundleInvalid`` where it is larger than ``limit`` bytes."""
        size = self.size(path)
        if size > limit:
            raise BundleInvalid([Problem(path, f"expected at most {limit:,} bytes, found {size:,}")])
        with self.open(path) as stream:
            return stream.read(limit + 1)


def ignored(path: str) -> bool:
    """Whether a path belongs to the machine it was packed on and not to the bundle."""
    *folders, name = path.split("/")
    return (
        name in _IGNORED_FILES
        or name in _IGNORED_FOLDERS
        or name.startswith("._")
        or any(folder in _IGNORED_FOLDERS for folder in folders)
    )


def path_problem(path: str) -> str | None:
    """Why a path cannot be in a bundle, or None where it can."""
    if not path or path.startswith("/"):
        return "expected a path relative to the bundle, found an absolute one"
    if "\\" in path:
        return "expected folders separated by /, found a backslash"
    if len(path) > 1 and path[1] == ":":
        return "expected a path relative to the bundle, found a drive letter"
    if any(part in ("", ".", "..") for part in path.split("/")):
        return "expected a plain path, found an empty, . or .. component"
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        return "expected printable characters in the path, found a control character or a lone surrogate"
    if len(path.encode()) > MAX_PATH_BYTES:
        return f"expected a path of at most {MAX_PATH_BYTES} bytes"
    return None


class PathRegister:
    """Refuses paths that cannot stand side by side on every file system.

    These are paths that are equal after NFC and case folding, and a file that is also a folder.
    """

    def __init__(self, log: ProblemLog) -> None:
        self._log = log
        self._files: dict[str, str] = {}
        self._folders: dict[str, str] = {}

    def admit(self, path: str) -> bool:
        """Notes a path; adds a problem and answers False where it collides with an earlier one."""
        folded = _folded(path)
        other = self._files.get(folded) or self._folders.get(folded)
        folders = list(parents(folded))
        other = other or next((self._files[parent] for parent in folders if parent in self._files), None)
        if other is not None:
            same = "it twice" if other == path else f"also {other!r}, the same file on some systems"
            self._log.add(path, f"expected each file once, found {same}")
            return False
        self._files[folded] = path
        for parent in folders:
            self._folders.setdefault(parent, path)
        return True


def nfc(path: str) -> str:
    """The path in Unicode normal form C, in which bundles name files."""
    return unicodedata.normalize("NFC", path)


def hash_stream(stream: IO[bytes], consumed: Callable[[int], None]) -> tuple[int, str]:
    """Reads a stream to its end: its size and sha256. ``consumed`` hears the size so far and may raise."""
    digest = hashlib.sha256()
    size = 0
    while chunk := stream.read(CHUNK_BYTES):
        digest.update(chunk)
        size += len(chunk)
        consumed(size)
    return size, digest.hexdigest()


def _folded(path: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def parents(path: str) -> Iterator[str]:
    """The folders that a file lies in, the outermost first."""
    parts = path.split("/")
    for end in range(1, len(parts)):
        yield "/".join(parts[:end])
