"""Zips that are submitted to competitions: looked through, packed again, stored by digest with the inputs."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import NamedTuple

import orjson

from benchgen.bundle.competition.publish import Pack, write_pack
from benchgen.bundle.problems import BundleInvalid
from benchgen.bundle.reader import open_zip
from benchgen.errors import InvalidInput
from benchgen.eval.v1 import environment_pb2
from services.common.competition.packs import SUBMISSIONS, pack_key
from services.common.objects import Bucket, ObjectStore
from services.hub.publishing.domain import Version

_MOST_LABEL = 200


class _Packed(NamedTuple):
    pack: Pack
    files: int


async def accept(
    objects: ObjectStore, header: environment_pb2.SubmissionHeader, archive: Path, scratch: Path
) -> environment_pb2.Submission:
    """Store a submission.

    :raises InvalidInput: the archive cannot be used; says everything that is wrong with it.
    """
    with tempfile.TemporaryDirectory(dir=scratch, prefix="submission-") as folder:
        try:
            packed = await asyncio.to_thread(_packed, archive, Path(folder))
        except BundleInvalid as invalid:
            raise InvalidInput(f"the submission cannot be used: {invalid.message}") from None
        sha256 = packed.pack.sha256
        key = pack_key(sha256, SUBMISSIONS)
        await objects.put_file(Bucket.INPUTS, key, Path(folder) / f"{sha256}.zip")
    return environment_pb2.Submission(
        digest=sha256,
        files=packed.files,
        label=header.label[:_MOST_LABEL],
        answers_only=header.answers_only,
    )


def _packed(archive: Path, folder: Path) -> _Packed:
    # Problems name the file: not as we call it.
    shown = folder / "submission.zip"
    shown.symlink_to(archive)
    tree = open_zip(shown, inner=True)
    return _Packed(write_pack(tree, folder), len(tree.files))


def assets_of(version: Version) -> frozenset[str]:
    """The digests of the pages and pictures that a version shows."""
    if not version.competition_about:
        return frozenset()
    about = orjson.loads(version.competition_about)
    shown = [about["image"], about["terms"], *about["pages"]]
    return frozenset(asset["sha256"] for asset in shown if asset is not None)
