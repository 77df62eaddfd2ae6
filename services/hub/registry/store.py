"""Models in PostgreSQL. Secrets are in a table of their own and come out sealed."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from uuid import UUID

import asyncpg
import orjson
from asyncpg.pool import PoolConnectionProxy

from benchgen.errors import NotFound
from services.common.queries import load_queries
from services.hub.registry.domain import Generation, ModelRow, Price

Conn: TypeAlias = asyncpg.Connection | PoolConnectionProxy
#: What a single statement can be run on.
Queryable: TypeAlias = Conn | asyncpg.Pool

_SQL = load_queries(Path(__file__).with_name("queries.sql"))


class SealedSecret(NamedTuple):
    """The secret of a model, as it is stored."""

    model: str
    sealed: bytes


async def find_model(conn: Conn, name: str) -> ModelRow | None:
    """The model with this name, if there is one."""
    row = await conn.fetchrow(_SQL["model"], name)
    return None if row is None else _read(row)


async def keep_model(conn: Conn, name: str) -> ModelRow:
    """The model with this name, which cannot be removed before the transaction ends.

    :raises NotFound: there is none; names one that is spelled alike.
    """
    row = await conn.fetchrow(_SQL["model_kept"], name)
    if row is None:
        raise await missing(conn, name)
    return _read(row)


async def model_of_request(conn: Conn, request_id: UUID) -> ModelRow | None:
    """The model that a request made, if it did."""
    row = await conn.fetchrow(_SQL["model_of_request"], request_id)
    return None if row is None else _read(row)


async def missing(conn: Conn, name: str) -> NotFound:
    """The error of a name that no model has."""
    names = [row["name"] for row in await conn.fetch(_SQL["names"])]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return NotFound(f"no model `{name[:120]}`{hint}")


async def list_models(conn: Conn, after: str | None, limit: int) -> list[ModelRow]:
    """Models by name, after a name."""
    return [_read(row) for row in await conn.fetch(_SQL["list"], after, limit)]


async def add_model(conn: Conn, request_id: UUID, row: ModelRow, sealed: bytes | None) -> bool:
    """Enter a model with its secret; False when the name or the request id is taken."""
    async with conn.transaction():
        made = await conn.fetchval(
            _SQL["insert"],
            row.name,
            request_id,
            row.base_url,
            row.model_id,
            row.price.input,
            row.price.output,
            row.price.cached,
            row.max_concurrency,
            orjson.dumps(row.generation).decode(),
            row.description,
        )
        if made and sealed is not None:
            await conn.execute(_SQL["insert_secret"], row.name, sealed)
    return made is not None


async def lock_model(conn: Conn, name: str) -> bool:
    """Keep others from using or removing a model until the transaction ends; False when there is none."""
    return await conn.fetchrow(_SQL["lock"], name) is not None


async def delete_model(conn: Conn, name: str) -> None:
    """Remove a model and its secret."""
    await conn.execute(_SQL["delete"], name)


async def secret_of(conn: Conn, model_name: str) -> bytes | None:
    """The sealed secret of a model, which ``Vault.decrypt`` opens; None when it has none."""
    sealed: bytes | None = await conn.fetchval(_SQL["secret"], model_name)
    return sealed


async def secrets_after(conn: Conn, model_name: str, limit: int) -> list[SealedSecret]:
    """Sealed secrets by the name of their model, after a name."""
    rows = await conn.fetch(_SQL["secrets_after"], model_name, limit)
    return [SealedSecret(row["model"], row["sealed"]) for row in rows]


async def replace_secret(conn: Conn, old: SealedSecret, sealed: bytes) -> bool:
    """Seal a model's secret anew; False when it is another one, or gone, by now."""
    return await conn.fetchval(_SQL["replace_secret"], old.model, old.sealed, sealed) is not None


def read_generation(stored: str) -> Generation:
    """Generation defaults as they are stored, in models and in versions."""
    fields: dict[str, Any] = orjson.loads(stored)
    return Generation(**{**fields, "stop": tuple(fields["stop"])})


def _read(row: asyncpg.Record) -> ModelRow:
    return ModelRow(
        name=row["name"],
        base_url=row["base_url"],
        model_id=row["model_id"],
        price=Price(row["input_usd_per_mtok"], row["output_usd_per_mtok"], row["cached_usd_per_mtok"]),
        max_concurrency=row["max_concurrency"],
        generation=read_generation(row["generation"]),
        description=row["description"],
        has_secret=row["has_secret"],
        created_at=row["created_at"],
    )
