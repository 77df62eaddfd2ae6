"""Removes objects that nothing names: uploads whose publication has ended, recorded answers that no run is of."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

import asyncpg
import grpc
import structlog

from benchgen.eval.v1 import result_pb2
from benchgen.statuses import error_of
from services.common.clock import SharedClock
from services.common.objects import Bucket, ObjectStore
from services.hub.publishing import ledger
from services.hub.publishing.jobs import UPLOADS
from services.hub.runs import removal_store
from services.hub.runs.removal import delete_predictions
from services.hub.wire import timestamp

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

_PAGE = 1000
_CALL_SECONDS = 30.0


class Sweeper:
    """Looks through the object store page by page. Several hubs may do so at once.

    :param age: what was written since is left alone: somebody may be about to name it.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        objects: ObjectStore,
        scorer: RecordServiceAsyncStub,
        clock: SharedClock,
        age: timedelta,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._scorer = scorer
        self._clock = clock
        self._age = age

    async def step(self) -> None:
        """Look at everything once.

        :raises BenchgenError: the object store or the scorer is away.
        """
        before = self._clock.moment() - self._age
        await self._uploads(before)
        try:
            await self._predictions(before)
        except grpc.RpcError as failure:
            log.warning("sweep.predictions", error=error_of(failure).message)

    async def _uploads(self, before: datetime) -> None:
        after, removed = "", 0
        while page := await self._objects.page(Bucket.BUNDLES, UPLOADS, after=after, count=_PAGE):
            old = {
                item.key.removeprefix(UPLOADS).removesuffix(".zip"): item.key
                for item in page
                if item.written_at < before
            }
            for digest in old.keys() - await ledger.wanted_uploads(self._pool, old):
                await self._objects.remove_unless_newer(Bucket.BUNDLES, old[digest], before)
                removed += 1
            after = page[-1].key
        if removed:
            log.info("sweep.uploads", removed=removed)

    async def _predictions(self, before: datetime) -> None:
        request = result_pb2.ListPredictionsRequest(written_before=timestamp(before))
        removed = 0
        while True:
            page = await self._scorer.ListPredictions(request, timeout=_CALL_SECONDS)
            async with self._pool.acquire() as conn:
                used = await removal_store.predictions_in_use(conn, [one.digest for one in page.predictions])
            for stored in page.predictions:
                if stored.digest not in used:
                    await delete_predictions(self._scorer, stored, before)
                    removed += 1
            if not page.next_page_token:
                break
            request.page_token = page.next_page_token
        if removed:
            log.info("sweep.predictions", removed=removed)
