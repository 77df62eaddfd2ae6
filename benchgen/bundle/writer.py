"""Packs a folder into a zip that depends on nothing but its content."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

from benchgen.bundle.reader import load_folder
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
        with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
            for file in tree.files:
                info = zipfile.ZipInfo(file.path, _EPOCH)
                info.compress_type = zipfile.ZIP_DEFLATED
                info.external_attr = _PLAIN_FILE
                info.create_system = 3
                info.file_size = file.size
                with tree.open(file.path) as source, archive.open(info, "w") as target:
                    shutil.copyfileobj(source, target, CHUNK_BYTES)
        unfinished.replace(out_zip)
    finally:
        unfinished.unlink(missing_ok=True)
    return PackedBundle(tree.digest, len(tree.files), out_zip.stat().st_size)
