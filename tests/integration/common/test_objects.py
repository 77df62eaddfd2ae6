"""Object storage by identity, and cases read from it: checked, cached, and none that is not the right one."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from pydantic import SecretStr

from benchgen.errors import NotFound, PermissionDenied, Unavailable
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.local.files import PROGRAM_ROOT
from tests import conftest
from tests.integration.scorer.support import object_settings
from tests.resilience.cluster import WRONG_CLOCK


@pytest.fixture
async def hub(object_store: conftest.ObjectStore) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(object_settings(object_store, "hub")) as objects:
        yield objects


async def put_index(hub: ObjectStore, *sizes: int) -> str:
    """Store cases in parts of these sizes; returns the index's digest."""
    parts, first = [], 0
    for size in sizes:
        lines = [
            # Not a line's end, though some take it for one.
            orjson.dumps({"position": n, "text": f"case {n}\u2028\x85"}) + b"\n"
            for n in range(first, first + size)
        ]
        data = b"".join(lines)
        sha256 = hashlib.sha256(data).hexdigest()
        await hub.put(Bucket.INPUTS, f"parts/{sha256}.jsonl", data)
        parts.append({"bytes": len(data), "count": size, "first": first, "sha256": sha256})
        first += size
    index = orjson.dumps({"cases": first, "kind": "inputs", "parts": parts, "schema": 1})
    digest = hashlib.sha256(index).hexdigest()
    await hub.put(Bucket.INPUTS, f"index/{digest}.json", index)
    return digest


async def test_what_an_identity_may(object_store: conftest.ObjectStore, hub: ObjectStore) -> None:
    await hub.put(Bucket.TARGETS, "a", b"the answer")
    await hub.put(Bucket.INPUTS, "a", b"the question")
    async with ObjectStore(object_settings(object_store, "runner")) as runner:
        assert await runner.get(Bucket.INPUTS, "a") == b"the question"
        for bucket in (Bucket.TARGETS, Bucket.SOLUTIONS, Bucket.BUNDLES):
            with pytest.raises(PermissionDenied):
                await runner.get(bucket, "a")
        with pytest.raises(PermissionDenied):
            await runner.put(Bucket.INPUTS, "b", b"another")
        await runner.put(Bucket.PAYLOADS, "p", b"")
    settings = object_settings(object_store, "runner").model_copy(
        update={"s3_secret_key": SecretStr("guessed")}
    )
    async with ObjectStore(settings) as stranger:
        with pytest.raises(PermissionDenied):
            await stranger.get(Bucket.INPUTS, "a")


async def test_objects_and_files(hub: ObjectStore, tmp_path: Path) -> None:
    assert not await hub.exists(Bucket.BUNDLES, "x")
    with pytest.raises(NotFound):
        await hub.get(Bucket.BUNDLES, "x")
    data = bytes(range(256)) * 50_000
    (tmp_path / "in").write_bytes(data)
    await hub.put_file(Bucket.BUNDLES, "x", tmp_path / "in")
    assert await hub.exists(Bucket.BUNDLES, "x")
    await hub.fetch_file(Bucket.BUNDLES, "x", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == data
    # Again, and with something else: names are digests, so this is what a repair does.
    await hub.put(Bucket.BUNDLES, "x", b"short")
    assert await hub.get(Bucket.BUNDLES, "x") == b"short"


async def test_a_store_that_is_not_there(object_store: conftest.ObjectStore) -> None:
    settings = object_settings(object_store, "hub").model_copy(update={"s3_endpoint": "127.0.0.1:1"})
    async with ObjectStore(settings) as objects:
        with pytest.raises(Unavailable):
            await objects.get(Bucket.INPUTS, "a")


async def test_rows_in_the_order_asked_over_parts(hub: ObjectStore) -> None:
    reader = CaseReader(Bucket.INPUTS, hub, None, memory_bytes=1)
    digest = await put_index(hub, 3, 1, 4)
    for positions in ([0, 1, 2, 3, 4, 5, 6, 7], [7, 0, 3, 3, 1], [5], []):
        rows = await reader.rows(digest, positions)
        assert [row["position"] for row in rows] == positions
        assert all(row["text"] == f"case {row['position']}\u2028\x85" for row in rows)
    with pytest.raises(NotFound, match="no case at position 8"):
        await reader.rows(digest, [1, 8])
    with pytest.raises(NotFound):
        await reader.rows("0" * 64, [0])


async def test_what_is_stored_under_a_digest_must_have_it(hub: ObjectStore) -> None:
    digest = await put_index(hub, 2)
    await hub.put(Bucket.INPUTS, f"index/{digest}.json", b'{"schema": 1}')
    with pytest.raises(Unavailable, match="does not have this digest"):
        await CaseReader(Bucket.INPUTS, hub, None).rows(digest, [0])


async def test_a_cache_on_disk_spares_the_store_and_is_not_trusted(
    hub: ObjectStore, object_store: conftest.ObjectStore, tmp_path: Path
) -> None:
    digest = await put_index(hub, 2)
    assert len(await CaseReader(Bucket.INPUTS, hub, tmp_path).rows(digest, [0, 1])) == 2
    away = object_settings(object_store, "hub").model_copy(update={"s3_endpoint": "127.0.0.1:1"})
    async with ObjectStore(away) as nowhere:
        assert len(await CaseReader(Bucket.INPUTS, nowhere, tmp_path).rows(digest, [0, 1])) == 2
    (part,) = (tmp_path / "inputs" / "parts").iterdir()
    part.write_bytes(part.read_bytes().replace(b"case 0", b"case 9"))
    rows = await CaseReader(Bucket.INPUTS, hub, tmp_path).rows(digest, [0])
    assert rows[0]["text"].startswith("case 0")
    assert b"case 0" in part.read_bytes()


async def test_a_cache_that_cannot_be_written_does_no_harm(hub: ObjectStore, tmp_path: Path) -> None:
    digest = await put_index(hub, 2)
    (tmp_path / "inputs").write_text("a file where a folder should be")
    reader = CaseReader(Bucket.INPUTS, hub, tmp_path)
    assert [row["position"] for row in await reader.rows(digest, [1])] == [1]


async def test_what_a_killed_process_was_writing_is_removed(hub: ObjectStore, tmp_path: Path) -> None:
    folder = tmp_path / Bucket.INPUTS / "parts"
    folder.mkdir(parents=True)
    for name in (".part-old", ".part-young", "whole.jsonl"):
        (folder / name).write_bytes(b"half of it")
    long_ago = time.time() - 7200
    for name in (".part-old", "whole.jsonl"):
        os.utime(folder / name, (long_ago, long_ago))
    CaseReader(Bucket.INPUTS, hub, tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == [".part-young", "whole.jsonl"]


_USE = """
import asyncio, sys, time
from services.common.config import ObjectSettings
from services.common.objects import Bucket, ObjectStore

async def use() -> None:
    async with ObjectStore(ObjectSettings.model_validate_json(sys.argv[1])) as store:
        # The first call gets no body that could say what is wrong.
        assert not await store.exists(Bucket.INPUTS, "clock")
        await store.put(Bucket.INPUTS, "clock", b"ticks")
        assert await store.get(Bucket.INPUTS, "clock") == b"ticks"
        print(round(time.time()))

asyncio.run(use())
"""


@pytest.mark.parametrize("hours", [-30, 5])
async def test_a_machine_whose_clock_is_wrong(object_store: conftest.ObjectStore, hours: int) -> None:
    settings = object_settings(object_store, "hub")
    told = settings.model_dump() | {"s3_secret_key": settings.s3_secret_key.get_secret_value()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _USE,
        orjson.dumps(told).decode(),
        env={"PYTHONPATH": f"{WRONG_CLOCK}:{PROGRAM_ROOT}", "WRONG_CLOCK_SECONDS": str(hours * 3600)},
        stdout=asyncio.subprocess.PIPE,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0
    # It was as wrong as this test wants it.
    assert abs(int(said) - time.time() - hours * 3600) < 60
