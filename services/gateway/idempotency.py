"""``Idempotency-Key``: a request that is made again gets the answer that it got before.

Two nets, because a process can die between any two steps. The first is a row: whoever inserts it executes, and the
answer is stored in it. The second is the request id that the services behind get, made from the same key: should a
gateway die after a service acted and before the answer was stored, the next execution is the same one to them.

Only answers of requests that did something are stored. One that was refused had no effect, and may be made again.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta

import asyncpg
import structlog

from benchgen.errors import AlreadyExists, InvalidInput
from services.common import db
from services.gateway import store
from services.gateway.domain import Answer, KnownRequest

log = structlog.get_logger()

#: A claim whose holder died is over after this time.
_CLAIM = timedelta(seconds=15)
_KEPT_EVERY_SECONDS = 5.0

#: How long answers can be had again.
_REMEMBERED = timedelta(hours=24)


class KeyReused(InvalidInput):
    """This Idempotency-Key was used for a different request."""

    reason = "IDEMPOTENCY_KEY_REUSED"


class InProgress(AlreadyExists):
    """A request with this Idempotency-Key is being executed; ask again in a moment."""

    reason = "IDEMPOTENT_REQUEST_IN_PROGRESS"


class Claim:
    """The right to execute one request."""

    def __init__(self, pool: asyncpg.Pool, key_id: str, idempotency_key: str) -> None:
        self._pool = pool
        self._names = (key_id, idempotency_key)
        self._mine = uuid.uuid4()
        self._answered = False

    async def take(self, method: str, path: str) -> bool:
        """Try to take it; says whether it was free."""
        return await store.claim(self._pool, *self._names, method, path, self._mine, _CLAIM)

    async def answer(self, request_hash: str, answer: Answer) -> None:
        """Store the answer. A database that is away costs a second execution, which changes nothing."""
        with _noted("idempotency.not_stored"):
            await store.answer_claim(self._pool, *self._names, self._mine, request_hash, answer)
            self._answered = True

    @asynccontextmanager
    async def kept(self) -> AsyncIterator[None]:
        """Hold it during the block, and give it back at the end unless there is an answer."""
        keeper = asyncio.create_task(self._keep())
        try:
            yield
        finally:
            keeper.cancel()
            if not self._answered:
                with _noted("idempotency.not_released"):
                    await store.release_claim(self._pool, *self._names, self._mine)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_KEPT_EVERY_SECONDS)
            with _noted("idempotency.not_kept"):
                await store.keep_claim(self._pool, *self._names, self._mine, _CLAIM)


@contextmanager
def _noted(event: str) -> Iterator[None]:
    """Swallow passing faults of the database, and log them."""
    try:
        yield
    except (*db.TRANSIENT, TimeoutError) as error:
        log.warning(event, error=str(error) or type(error).__name__)


async def begin(
    pool: asyncpg.Pool, key_id: str, idempotency_key: str, method: str, path: str
) -> Claim | KnownRequest:
    """Claim a request, or find that it was answered before.

    :returns: a claim that is taken, or a known request that has an answer.
    :raises KeyReused: the key belongs to a request to somewhere else.
    :raises InProgress: somebody executes the request at this moment.
    """
    while True:
        claim = Claim(pool, key_id, idempotency_key)
        if await claim.take(method, path):
            return claim
        known = await store.known_request(pool, key_id, idempotency_key)
        if known is None:
            continue  # given back between the two statements
        if (known.method, known.path) != (method, path):
            raise KeyReused(f"this Idempotency-Key was used for {known.method} {known.path}")
        if known.answer is None:
            raise InProgress
        return known


async def forget(pool: asyncpg.Pool) -> None:
    """Remove answers of yesterday."""
    await store.forget_answers(pool, _REMEMBERED)
