"""Programs of a bundle: a folder of it, packed so that the same files are the same bytes everywhere."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Collection, Iterable
from pathlib import Path

from benchgen.bundle.digest import sha256_hex
from benchgen.bundle.problems import did_you_mean
from benchgen.bundle.tree import BundleTree

FOLDER = "programs"
MAX_PROGRAM_BYTES = 64 << 20

_EPOCH = (1980, 1, 1, 0, 0, 0)
# Files of programs may be executed; what a bundle's archive says of that is not carried on.
_MODE = 0o100755 << 16


def program_key(digest: str) -> str:
    """Where a packed program is, within its store."""
    return f"{FOLDER}/{digest}.zip"


#: The whole bundle as a program's folder, but for what a program must not see.
WHOLE_BUNDLE = "."


def program_files(tree: BundleTree, folder: str, without: Collection[str] = ()) -> list[str]:
    """The paths of a folder's files, sorted; empty where there is no such folder.

    :param without: files and folders of the bundle that are left out.
    """
    inside = tree.paths if folder == WHOLE_BUNDLE else [p for p in tree.paths if p.startswith(f"{folder}/")]
    return [path for path in inside if not any(path == out or path.startswith(f"{out}/") for out in without)]


def program_problem(tree: BundleTree, folder: str, without: Collection[str] = ()) -> str | None:
    """Why a folder of the bundle cannot be a program, or None where it can."""
    files = program_files(tree, folder, without)
    if not files:
        if folder in tree:
            return f'expected a folder of the bundle, found a file at "{folder}"'
        near = did_you_mean(folder, _folders(tree.paths))
        return f'expected a folder of the bundle, found none at "{folder}"{near}'
    size = sum(tree.size(path) for path in files)
    if size > MAX_PROGRAM_BYTES:
        return f"expected a program of at most {MAX_PROGRAM_BYTES:,} bytes, found {size:,}"
    return None


def _folders(paths: Iterable[str]) -> list[str]:
    return sorted({path.rpartition("/")[0] for path in paths if "/" in path})


def pack_program(tree: BundleTree, folder: str, store: Path, without: Collection[str] = ()) -> str:
    """Write a folder of the bundle as a zip below a store; returns its digest.

    Nothing is compressed: no version of any library has a say in the bytes.
    """
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
        for path in program_files(tree, folder, without):
            info = zipfile.ZipInfo(path.removeprefix(f"{folder}/"), _EPOCH)
            info.external_attr = _MODE
            info.create_system = 3
            archive.writestr(info, tree.read(path, MAX_PROGRAM_BYTES))
    data = packed.getvalue()
    digest = sha256_hex(data)
    target = store / program_key(digest)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(data)
    return digest
