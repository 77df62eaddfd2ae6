"""Who holds an API key, remembered for a moment."""

from __future__ import annotations

import time

import asyncpg

from benchgen.errors import Unauthenticated, Unavailable
from services.common import db
from services.common.auth import Principal, Scope, hash_token
from services.common.clock import SharedClock
from services.gateway import store
from services.gateway.domain import BEARER_HINT, ApiKey, bearer_token, new_key_id

#: How long a look at the table is believed: a revoked key works for no longer than this, seconds.
REMEMBERED_SECONDS = 2.0

#: How many hashes are remembered; guesses of keys must not fill the memory.
_MOST_REMEMBERED = 10_000

_FIRST_KEY_NAME = "first key"


class Keys:
    """Looks keys up.

    :param remembered_seconds: how long a look at the table is believed.
    """

    def __init__(
        self, pool: asyncpg.Pool, clock: SharedClock, *, remembered_seconds: float = REMEMBERED_SECONDS
    ) -> None:
        self._pool = pool
        self._clock = clock
        self._remembered_seconds = remembered_seconds
        self._seen: dict[str, tuple[float, ApiKey | None]] = {}

    async def principal_of(self, authorization: str | None) -> Principal:
        """Whom an ``Authorization`` header speaks for.

        :raises Unauthenticated: it carries no key, or one that is not good; the message says how to pass one.
        :raises Unavailable: the table cannot be read now.
        """
        key = await self._find(hash_token(bearer_token(authorization)))
        if key is None:
            raise Unauthenticated(f"this API key is not known here; {BEARER_HINT}")
        return key.principal(self._clock.moment())

    def forget(self) -> None:
        """Look at the table again: a key was changed. Other gateways do so by themselves, soon."""
        self._seen.clear()

    async def _find(self, key_hash: str) -> ApiKey | None:
        now = time.monotonic()
        looked_at, key = self._seen.get(key_hash, (None, None))
        if looked_at is not None and now - looked_at < self._remembered_seconds:
            return key
        try:
            key = await store.find_key(self._pool, key_hash)
        except (*db.TRANSIENT, TimeoutError):
            raise Unavailable("the gateway's database cannot be reached; try again") from None
        if len(self._seen) >= _MOST_REMEMBERED:
            self._seen.clear()
        self._seen[key_hash] = (now, key)
        return key


async def ensure_first_key(pool: asyncpg.Pool, key_hash: str) -> None:
    """Make the first key, with every scope. One that is there stays as it is, revoked or not."""
    if key_hash:
        await store.add_key(pool, new_key_id(), _FIRST_KEY_NAME, key_hash, sorted(Scope))
