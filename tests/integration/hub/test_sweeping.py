"""Objects that nothing names are removed when they are old enough, and no others."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any

import pytest

from benchgen.eval.v1 import run_pb2
from services.common.clock import SharedClock
from services.common.objects import Bucket, ObjectStore
from services.hub.publishing import ledger
from services.hub.publishing.jobs import upload_key
from services.hub.sweeping import Sweeper
from tests.conftest import Database
from tests.conftest import ObjectStore as Buckets
from tests.integration.hub.runs_support import World, world
from tests.integration.hub.scorer_support import Scorer
from tests.integration.hub.support import object_settings

NOW = timedelta(seconds=-2)


class Stub:
    """Calls the scorer without a wire between."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer

    async def ListPredictions(self, request: Any, timeout: float) -> Any:  # noqa: N802
        return await self._scorer.ListPredictions(request, None)

    async def DeletePredictions(self, request: Any, timeout: float) -> Any:  # noqa: N802
        return await self._scorer.DeletePredictions(request, None)


@pytest.fixture
async def here(database: Callable[..., Database], nats_url: str) -> AsyncIterator[World]:
    async with world(database().dsn("hub"), nats_url) as made:
        yield made


@pytest.fixture
async def objects(object_store: Buckets) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(object_settings(object_store, "hub")) as store:
        yield store


def sweeper(here: World, objects: ObjectStore, age: timedelta) -> Sweeper:
    return Sweeper(here.hub.db, objects, Stub(here.scorer), SharedClock(here.hub.db), age)  # type: ignore[arg-type]


async def test_uploads_stay_while_they_are_needed(here: World, objects: ObjectStore) -> None:
    digests = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("wanted", "published", "orphan")}
    for digest in digests.values():
        await objects.put(Bucket.BUNDLES, upload_key(digest), b"zip")
    await objects.put(Bucket.BUNDLES, f"bundles/{digests['orphan']}.zip", b"zip")
    for name in ("wanted", "published"):
        await ledger.add(here.hub.db, uuid.uuid4(), digests[name], 3)
    await here.hub.db.execute(
        "UPDATE publications SET state = 'READY' WHERE upload_sha256 = $1", digests["published"]
    )
    await sweeper(here, objects, timedelta(days=1)).step()
    assert len(await objects.page(Bucket.BUNDLES, "uploads/")) == 3
    await sweeper(here, objects, NOW).step()
    left = [listed.key for listed in await objects.page(Bucket.BUNDLES, "")]
    assert left == [f"bundles/{digests['orphan']}.zip", upload_key(digests["wanted"])]


async def test_recorded_answers_stay_while_a_run_is_of_them(here: World, objects: ObjectStore) -> None:
    used, orphan = "a" * 64, "b" * 64
    # The run may not have begun: the scorer knows nothing of it yet.
    await here.hub.create(10, predictions=run_pb2.Predictions(digest=used))
    here.scorer.predictions = {("d" * 64, used), ("d" * 64, orphan)}
    await sweeper(here, objects, NOW).step()
    assert here.scorer.predictions == {("d" * 64, used)}


async def test_objects_are_listed_page_by_page(objects: ObjectStore) -> None:
    keys = [f"uploads/{n:02d}.zip" for n in range(7)]
    for key in keys:
        await objects.put(Bucket.BUNDLES, key, b"zip")
    seen: list[str] = []
    while page := await objects.page(Bucket.BUNDLES, "uploads/", after=seen[-1] if seen else "", count=3):
        seen += [listed.key for listed in page]
    assert seen == keys
    moment = (await objects.page(Bucket.BUNDLES, keys[0]))[0].written_at
    await objects.remove_unless_newer(Bucket.BUNDLES, keys[0], moment - timedelta(seconds=1))
    assert await objects.exists(Bucket.BUNDLES, keys[0])
    for _ in range(2):
        await objects.remove_unless_newer(Bucket.BUNDLES, keys[0], moment)
    assert not await objects.exists(Bucket.BUNDLES, keys[0])
