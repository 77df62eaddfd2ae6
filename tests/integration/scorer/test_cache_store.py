"""The table of the response cache: how long it holds what, and who waits for whom."""

from __future__ import annotations

import asyncio
import hashlib
import random
import secrets
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import asyncpg
import orjson
import pytest

from services.common import db
from services.common.clock import SharedClock
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.scorer import app, cache_store, store
from services.scorer.cache_store import CachedAnswer
from services.scorer.caching import ResponseCache
from services.scorer.domain import CacheKey, ScoredRecord
from services.scorer.payloads import payload_key
from services.scorer.recorder import Recorder
from services.scorer.removal import Remover
from tests import conftest
from tests.integration.scorer.support import Environment, claims_of, object_settings
from tests.integration.scorer.test_store import item, new_run

DAY = timedelta(days=1)
OLD = "UPDATE cached_responses SET kept_at = now() - interval '2 days' WHERE model = $1"


@pytest.fixture
async def pool(scorer_dsn: str) -> AsyncIterator[asyncpg.Pool]:
    async with db.pool(scorer_dsn, app.MIGRATIONS, size=8) as connections:
        yield connections


@pytest.fixture
async def objects(buckets: conftest.ObjectStore) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(object_settings(buckets, "scorer")) as opened:
        yield opened


def new_model() -> bytes:
    return secrets.token_bytes(32)


def request(number: int) -> bytes:
    return number.to_bytes(32)


def kept(model: bytes, position: int, **fields: object) -> ScoredRecord:
    """A result that is kept for others."""
    return item(position, keep_as=CacheKey(model, request(position)), **fields)  # type: ignore[arg-type]


def hit(position: int, **fields: object) -> ScoredRecord:
    """A result that was taken from the cache."""
    made = item(position, calls=0, cost_picousd=0, saved={"input_tokens": 10}, **fields)  # type: ignore[arg-type]
    made.record.input_tokens = made.record.output_tokens = None
    return made


async def put(pool: asyncpg.Pool, run: str, *items: ScoredRecord) -> None:
    async with pool.acquire() as connection:
        await store.store_batch(connection, run, items)


async def found(
    pool: asyncpg.Pool, model: bytes, *numbers: int, age: timedelta = DAY
) -> dict[bytes, CachedAnswer]:
    async with pool.acquire() as connection:
        return await cache_store.find(connection, model, [request(n) for n in numbers], age)


async def recorded(pool: asyncpg.Pool, run: str) -> int:
    async with pool.acquire() as connection:
        return (await store.progress(connection, [run]))[run].recorded


async def test_the_first_answer_is_kept_in_the_transaction_that_stores_it(pool: asyncpg.Pool) -> None:
    model = new_model()
    first, second = await new_run(pool), await new_run(pool)
    await put(pool, first, kept(model, 1), item(2))
    await put(pool, second, kept(model, 1, attempt=3), kept(model, 4))
    answers = await found(pool, model, 1, 2, 4)
    assert answers.keys() == {request(1), request(4)}
    assert answers[request(1)].response == "attempt 1 at 1"
    assert answers[request(1)].saved == {"input_tokens": 10, "output_tokens": 20}
    async with pool.acquire() as connection:
        await store.seal(
            connection, store.RunFacts(first, b"", "", "[]"), epoch=0, final_state="s", seconds=1
        )
    with pytest.raises(Exception, match="sealed"):
        await put(pool, first, kept(model, 5))
    assert await found(pool, model, 5) == {}


async def test_old_answers_are_not_given_and_then_gone(pool: asyncpg.Pool) -> None:
    model, other = new_model(), new_model()
    run = await new_run(pool)
    await put(pool, run, kept(model, 1), kept(other, 2))
    async with pool.acquire() as connection:
        await connection.execute(OLD, model)
    assert await found(pool, model, 1) == {}
    assert len(await found(pool, model, 1, age=3 * DAY)) == 1
    async with pool.acquire() as connection:
        assert await cache_store.expire(connection, DAY) >= 1
    assert await found(pool, model, 1, age=3 * DAY) == {}
    assert len(await found(pool, other, 2)) == 1


async def test_no_days_turn_it_off_and_empty_it(
    pool: asyncpg.Pool, objects: ObjectStore, environment: Environment
) -> None:
    model = new_model()
    await put(pool, await new_run(pool), kept(model, 1))
    claims = claims_of(environment.spec(cases=3, use_cache=True))

    def cache(days: float) -> ResponseCache:
        inputs = CaseReader(Bucket.INPUTS, objects, None)
        return ResponseCache(pool, Recorder(pool), inputs, objects, threads, timedelta(days=days))

    with ThreadPoolExecutor(1) as threads:
        assert len(await cache(1).requests(claims)) == 3
        assert await cache(0).requests(claims) == {}
        await cache(1).expire()
        assert len(await found(pool, model, 1)) == 1
        await cache(0).expire()
    assert await found(pool, model, 1) == {}


async def test_an_object_stays_as_long_as_cache_or_results_name_it(
    pool: asyncpg.Pool, objects: ObjectStore
) -> None:
    model, run, taker = new_model(), await new_run(pool), await new_run(pool)
    data = orjson.dumps({"response": f"long, of {run}", "reasoning": ""})
    digest = hashlib.sha256(data).hexdigest()
    key = payload_key(digest)
    await objects.put(Bucket.PAYLOADS, key, data)
    long = {"payload_digest": digest, "payload_bytes": len(data)}
    await put(pool, run, kept(model, 1, **long))
    remover = Remover(pool, objects, SharedClock(pool))

    async def removed(name: str) -> None:
        ended = await pool.fetchval("SELECT now() + interval '1 minute'")
        while not await remover.remove(name, ended):
            pass

    await removed(run)
    assert await objects.exists(Bucket.PAYLOADS, key)
    await put(pool, taker, hit(1, **long))
    async with pool.acquire() as connection:
        assert await cache_store.clear(connection, model) == 1
    # Everything counts as old here.
    await remover.sweep(timedelta(seconds=-60))
    assert await objects.exists(Bucket.PAYLOADS, key)
    await removed(taker)
    assert not await objects.exists(Bucket.PAYLOADS, key)
    # What was found before the cache let go of it is not stored any more: nobody would keep its object.
    late = await new_run(pool)
    await put(pool, late, hit(1, **long), hit(2))
    assert await recorded(pool, late) == 1


async def test_whoever_stores_a_hit_is_not_waited_for_and_keeps_its_object(pool: asyncpg.Pool) -> None:
    model, run = new_model(), await new_run(pool)
    digest = hashlib.sha256(model).hexdigest()
    await put(pool, run, kept(model, 1, payload_digest=digest, payload_bytes=9), kept(model, 2))
    async with pool.acquire() as storing, pool.acquire() as removing:
        await removing.execute(OLD, model)
        transaction = storing.transaction()
        await transaction.start()
        await cache_store.settle(storing, [hit(1, payload_digest=digest, payload_bytes=9)])
        await cache_store.expire(removing, DAY)
        left = await removing.fetch("SELECT payload_digest FROM cached_responses WHERE model = $1", model)
        assert [row["payload_digest"] for row in left] == [digest]
        clearing = asyncio.create_task(cache_store.clear(removing, model))
        await asyncio.sleep(0.1)
        assert not clearing.done()
        await transaction.commit()
        assert await clearing == 1


async def test_many_that_keep_the_same_and_one_that_clears_never_wait_for_each_other(
    pool: asyncpg.Pool,
) -> None:
    """In every order, from six runs at once; a deadlock would fail one of them."""
    model = new_model()
    runs = [await new_run(pool) for _ in range(6)]

    async def storing(run: str, seed: int) -> None:
        numbers = list(range(120))
        random.Random(seed).shuffle(numbers)
        for start in range(0, 120, 30):
            await put(pool, run, *(kept(model, n) for n in numbers[start : start + 30]))

    async def clearing() -> None:
        async with pool.acquire() as connection:
            for _ in range(10):
                await cache_store.clear(connection, model)
                await asyncio.sleep(0.01)

    async with asyncio.timeout(30):
        await asyncio.gather(*(storing(run, seed) for seed, run in enumerate(runs)), clearing())
    assert [await recorded(pool, run) for run in runs] == [120] * 6


async def test_lookups_go_through_indexes(scorer_dsn: str, pool: asyncpg.Pool) -> None:
    model = new_model()
    async with pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute(
            "INSERT INTO cached_responses (model, request, response, payload_digest)"
            " SELECT $1, int8send(n), 'x', CASE WHEN n % 50 = 0 THEN n::text END FROM generate_series(1, 20000) n",
            model,
        )
        in_use = f"EXPLAIN {store.SQL['payloads_in_use']}"
        queries = {
            "find": (f"EXPLAIN {cache_store.SQL['find_cached']}", (model, [request(1)] * 32, DAY)),
            "in use": (in_use, (["1", "2"],)),
            "hold": (f"EXPLAIN {cache_store.SQL['hold_payloads']}", (["1", "2"],)),
        }
        for name, (query, arguments) in queries.items():
            plan = "\n".join(row[0] for row in await connection.fetch(query, *arguments))
            assert "Seq Scan on cached_responses" not in plan, f"{name}: {plan}"
        await transaction.rollback()
