"""Making, listing, limiting and revoking API keys, for gRPC and HTTP alike; all of it needs the scope `admin`."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime

import asyncpg
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.errors import FailedPrecondition, InvalidInput, NotFound
from benchgen.eval.v1 import key_pb2, run_pb2
from services.common.auth import Principal, Scope, hash_token
from services.gateway import store
from services.gateway.backends import Backends
from services.gateway.domain import KeyRow, new_key_id
from services.gateway.keys import Keys

_LONGEST_NAME = 100
_MOST = 2**60


class KeyAdmin:
    """What holders of the scope `admin` may do with keys."""

    def __init__(self, pool: asyncpg.Pool, keys: Keys, backends: Backends) -> None:
        self._pool = pool
        self._keys = keys
        self._backends = backends

    async def create(self, who: Principal, request: key_pb2.CreateKeyRequest) -> key_pb2.CreateKeyResponse:
        """Make a key; its secret is in the answer and nowhere else.

        :raises InvalidInput: it would be of no use; names everything that is wrong.
        """
        who.require(Scope.ADMIN)
        expires = request.expire_time.ToDatetime(UTC) if request.HasField("expire_time") else None
        problems = _budget_problems(request.daily_budget)
        if not 1 <= len(request.display_name) <= _LONGEST_NAME or not request.display_name.isprintable():
            problems.append(f"display_name: expected one line of 1 to {_LONGEST_NAME} printable characters")
        unknown = sorted(set(request.scopes) - set(Scope))
        if unknown or not request.scopes:
            known = ", ".join(sorted(Scope))
            problems.append(f"scopes: expected some of {known}, found {', '.join(unknown)[:200] or 'none'}")
        if expires is not None and expires <= datetime.now(UTC):
            problems.append("expire_time: expected a moment in the future")
        if problems:
            raise InvalidInput("; ".join(problems))
        key_id, secret = new_key_id(), f"bg_{secrets.token_urlsafe(32)}"
        scopes = sorted(set(request.scopes))
        await store.add_key(self._pool, key_id, request.display_name, hash_token(secret), scopes, expires)
        if request.HasField("daily_budget"):
            await store.set_key_budget(self._pool, key_id, *_limits(request.daily_budget))
        return key_pb2.CreateKeyResponse(key=_message(await self._row(key_id)), secret=secret)

    async def list(self, who: Principal) -> key_pb2.ListKeysResponse:
        """All keys, without their secrets."""
        who.require(Scope.ADMIN)
        return key_pb2.ListKeysResponse(keys=[_message(row) for row in await store.list_keys(self._pool)])

    async def revoke(self, who: Principal, request: key_pb2.RevokeKeyRequest) -> key_pb2.ApiKey:
        """Revoke a key.

        :raises NotFound: there is no such key.
        :raises FailedPrecondition: it is the caller's own: whoever revokes the last one locks everybody out.
        """
        who.require(Scope.ADMIN)
        if request.name == who.key_id:
            raise FailedPrecondition("this is the key that you call with; revoke it with another one")
        await store.revoke_key(self._pool, request.name)
        row = await self._row(request.name)
        self._keys.forget()
        return _message(row)

    async def set_budget(self, who: Principal, request: key_pb2.SetKeyBudgetRequest) -> key_pb2.ApiKey:
        """Replace what a key may spend a day, and tell the hub: it holds for runs that are under way.

        :raises InvalidInput: the budget makes no sense.
        :raises NotFound: there is no such key.
        """
        who.require(Scope.ADMIN)
        if problems := _budget_problems(request.daily_budget):
            raise InvalidInput("; ".join(problems))
        await store.set_key_budget(self._pool, request.name, *_limits(request.daily_budget))
        row = await self._row(request.name)
        self._keys.forget()
        # The hub knows the limits of a key from the principals that it sees: it is shown one.
        shown = Principal(row.key.id, frozenset({Scope.READ}), row.key.daily)
        await self._backends.call(self._backends.runs.ListRuns, run_pb2.ListRunsRequest(page_size=1), shown)
        return _message(row)

    async def _row(self, key_id: str) -> KeyRow:
        for row in await store.list_keys(self._pool):
            if row.key.id == key_id:
                return row
        raise NotFound(f"no API key {key_id[:80]!r}")


def _budget_problems(budget: key_pb2.KeyBudget) -> list[str]:
    found = []
    if not 0 <= budget.cost_picousd <= _MOST:
        found.append(f"daily_budget.cost_picousd: expected 0 to {_MOST:,}, found {budget.cost_picousd:,}")
    if budget.tokens > _MOST:
        found.append(f"daily_budget.tokens: expected 0 to {_MOST:,}, found {budget.tokens:,}")
    return found


def _limits(budget: key_pb2.KeyBudget) -> tuple[int | None, int | None]:
    return (
        budget.cost_picousd if budget.HasField("cost_picousd") else None,
        budget.tokens if budget.HasField("tokens") else None,
    )


def _message(row: KeyRow) -> key_pb2.ApiKey:
    key, daily = row.key, row.key.daily
    has_budget = daily.picousd is not None or daily.tokens is not None
    return key_pb2.ApiKey(
        name=key.id,
        display_name=key.name,
        scopes=sorted(key.scopes),
        daily_budget=key_pb2.KeyBudget(cost_picousd=daily.picousd, tokens=daily.tokens)
        if has_budget
        else None,
        create_time=_time(row.created_at),
        expire_time=_time(key.expires_at),
        revoke_time=_time(key.revoked_at),
        last_use_time=_time(row.last_used_at),
    )


def _time(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment)
    return message
