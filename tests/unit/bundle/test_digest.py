"""Digests: equal for equal trees whatever they were read from, different for different ones."""

from __future__ import annotations

import hashlib
import tempfile
import zipfile
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from benchgen.bundle import load_folder, open_zip
from benchgen.bundle.digest import canonical_json, tree_digest
from benchgen.bundle.tree import BundleFile

from .support import write

NAMES = st.text("abc", min_size=1, max_size=3)
TREES = st.dictionaries(NAMES.map(lambda name: f"{name}.txt"), st.binary(max_size=20), min_size=1, max_size=5)


def digest_of(files: dict[str, bytes]) -> str:
    return tree_digest(
        BundleFile(path, len(data), hashlib.sha256(data).hexdigest()) for path, data in files.items()
    )


@given(TREES, TREES)
def test_two_trees_share_a_digest_only_if_they_are_equal(
    one: dict[str, bytes], other: dict[str, bytes]
) -> None:
    assert (digest_of(one) == digest_of(other)) == (one == other)


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(0, 9), st.text("0f", max_size=3)), max_size=4))
def test_no_two_lists_of_files_are_hashed_as_the_same_bytes(entries: list[tuple[str, int, str]]) -> None:
    """A path that holds quotes, commas or digits cannot pass for the size or digest beside it."""
    unique = {path: (size, sha256) for path, size, sha256 in entries}
    files = [BundleFile(path, size, sha256) for path, (size, sha256) in unique.items()]
    for index, file in enumerate(files):
        changed = [
            *files[:index],
            BundleFile(f"{file.path}{file.size}", file.size, file.sha256),
            *files[index + 1 :],
        ]
        assert tree_digest(changed) != tree_digest(files)


@settings(max_examples=30, deadline=None)
@given(TREES, st.randoms(use_true_random=False))
def test_a_folder_and_any_zip_of_it_have_one_digest(files: dict[str, bytes], random: Random) -> None:
    names = list(files)
    random.shuffle(names)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / "tree", dict(files))
        for nested, method in (("", zipfile.ZIP_STORED), ("top/", zipfile.ZIP_DEFLATED)):
            with zipfile.ZipFile(folder / "b.zip", "w", method) as archive:
                for path in names:
                    info = zipfile.ZipInfo(nested + path, (2001, 2, 3, 4, 5, 6))
                    archive.writestr(info, files[path], compress_type=method)
            assert (
                open_zip(folder / "b.zip").digest == load_folder(folder / "tree").digest == digest_of(files)
            )


def test_canonical_json_is_sorted_and_tight() -> None:
    assert canonical_json({"b": [1, "é"], "a": None}) == '{"a":null,"b":[1,"é"]}'.encode()
