"""Packs a folder into a zip that depends on nothing but its content."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Container
from pathlib import Path
from typing import NamedTuple

from benchgen.bundle.reader import load_folder, too_dense
from benchgen.bundle.tree import CHUNK_BYTES, BundleTree

# The earliest time that a zip can hold: file times are no content.
_EPOCH = (1980, 1, 1, 0, 0, 0)
_PLAIN_FILE = 0o100644 << 16


class PackedBundle(NamedTuple):
    """A written zip: the digest of its tree, how many files it holds, and its own size in bytes."""

    digest: str
    files: int
    bytes: int


def pack(folder: Path, out_zip: Path) -> PackedBundle:
    """Writes the folder as a zip: the same content gives the same bytes. It appears whole or not at all.

    Raises ``BundleInvalid`` where the folder cannot be a bundle; whether it is a good one, ``validate`` says.
    """
    return pack_tree(load_folder(folder), out_zip)


def pack_tree(tree: BundleTree, out_zip: Path) -> PackedBundle:
    """Writes a tree as a zip; see ``pack``."""
    unfinished = out_zip.with_name(f".{out_zip.name}.{os.getpid()}.tmp")
    try:
        entries = _write(tree, unfinished, plain=frozenset())
        # Whoever opens the zip takes these for bombs. They are rare: it costs less to write everything again
        # than to measure everything first.
        dense = frozenset(e.filename for e in entries if too_dense(e.file_size, e.compress_size))
        if dense:
            _write(tree, unfinished, plain=dense)
        unfinished.replace(out_zip)
    finally:
        unfinished.unlink(missing_ok=True)
    return PackedBundle(tree.digest, len(tree.files), out_zip.stat().st_size)


def _write(tree: BundleTree, path: Path, plain: Container[str]) -> list[zipfile.ZipInfo]:
    """Writes the zip: all of it compressed, but for the files in ``plain``. Its entries, with their sizes."""
    with zipfile.ZipFile(path, "w", compresslevel=6) as archive:
        for file in tree.files:
            info = zipfile.ZipInfo(file.path, _EPOCH)
            info.compress_type = zipfile.ZIP_STORED if file.path in plain else zipfile.ZIP_DEFLATED
            info.external_attr = _PLAIN_FILE
            info.create_system = 3
            info.file_size = file.size
            with tree.open(file.path) as source, archive.open(info, "w") as target:
                shutil.copyfileobj(source, target, CHUNK_BYTES)
    return archive.infolist()
