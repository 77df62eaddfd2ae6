"""The programs and data of a bundle as trees of their own, whether they are folders, zips or plain files."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from benchgen.bundle.competition.model import Reference
from benchgen.bundle.problems import BundleInvalid, ProblemLog
from benchgen.bundle.reader import Budget, open_zip
from benchgen.bundle.tree import CHUNK_BYTES, BundleFile, BundleTree

_DEEPEST = 3


class Nested:
    """Opens what a bundle refers to. Zips are copied out first: a zip in a zip cannot be read in place.

    All of them together stay within the bounds of one bundle. Trees are usable while the block lasts.
    """

    def __init__(self, tree: BundleTree, log: ProblemLog) -> None:
        self._tree = tree
        self._log = log
        self._budget = Budget()
        self._budget.spent = sum(file.size for file in tree.files)
        self._budget.entries = len(tree.files)
        self._known: dict[Reference, BundleTree | None] = {}
        self._scratch = tempfile.TemporaryDirectory(prefix="benchgen-")
        self._count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._scratch.cleanup()

    def data(self, reference: Reference) -> BundleTree | None:
        """The files exactly as they lie there; None, with problems in the log, where they cannot be read."""
        if reference not in self._known:
            self._known[reference] = self._open(reference)
        return self._known[reference]

    def program(self, reference: Reference) -> BundleTree | None:
        """The files of a program, its metadata at the top.

        Where that is not at the top, the only folder that has one is taken, or the only zip inside the zip.
        """
        tree = self.data(reference)
        for _ in range(_DEEPEST):
            if tree is None:
                return None
            root = program_root(tree)
            if (
                metadata_file(root) is not None
                or len(tree.files) != 1
                or not tree.paths[0].lower().endswith(".zip")
            ):
                return root
            tree = self._unzip(tree, tree.paths[0], f"{reference.path}/{tree.paths[0]}")
        return tree

    def _open(self, reference: Reference) -> BundleTree | None:
        if reference.kind == "folder":
            return subtree(self._tree, reference.path)
        if reference.kind == "file":
            return _alone(self._tree, reference.path)
        return self._unzip(self._tree, reference.path, reference.path)

    def _unzip(self, tree: BundleTree, path: str, shown: str) -> BundleTree | None:
        self._count += 1
        copy = Path(self._scratch.name) / f"{self._count}.zip"
        with tree.open(path) as source, copy.open("wb") as target:
            shutil.copyfileobj(source, target, CHUNK_BYTES)
        try:
            return open_zip(copy, budget=self._budget, inner=True)
        except BundleInvalid as invalid:
            for problem in invalid.problems:
                inner = "" if problem.file in ("", copy.name) else f"/{problem.file}"
                self._log.add(f"{shown}{inner}", problem.message)
            return None


METADATA_FILES = ("metadata.yaml", "metadata")
"""Where a program says its command, the first one that is there."""


def metadata_file(tree: BundleTree) -> str | None:
    """The metadata at the top of a tree; None where there is none."""
    return next((name for name in METADATA_FILES if name in tree), None)


def program_root(tree: BundleTree) -> BundleTree:
    """The folder of a program that has its metadata: the top, or else the only one that is nearest to it."""
    if metadata_file(tree) is not None:
        return tree
    folders = {path.rpartition("/")[0] for path in tree.paths if path.rpartition("/")[2] in METADATA_FILES}
    depth = min((folder.count("/") for folder in folders), default=0)
    nearest = [folder for folder in folders if folder.count("/") == depth]
    return subtree(tree, nearest[0]) if len(nearest) == 1 else tree


def subtree(tree: BundleTree, folder: str) -> BundleTree:
    """A folder of a tree as a tree."""
    prefix = f"{folder}/"

    def opener(path: str) -> AbstractContextManager[IO[bytes]]:
        return tree.opener(prefix + path)

    return BundleTree(tuple(_inside(tree, prefix)), opener)


def _inside(tree: BundleTree, prefix: str) -> Iterator[BundleFile]:
    for file in tree.files:
        if file.path.startswith(prefix):
            yield BundleFile(file.path.removeprefix(prefix), file.size, file.sha256)


def _alone(tree: BundleTree, path: str) -> BundleTree:
    name = path.rpartition("/")[2]
    file = next(file for file in tree.files if file.path == path)
    return BundleTree((BundleFile(name, file.size, file.sha256),), lambda _: tree.opener(path))
