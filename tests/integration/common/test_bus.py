"""Rings over NATS: heard once, again when nobody answers, and after the server has lost everything."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator

import nats
import pytest
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from benchgen.errors import Unavailable
from services.common import bus
from services.common.bus import Bus


@pytest.fixture
async def rings(nats_url: str) -> AsyncIterator[Bus]:
    """A connection; no ring is left over from other tests."""
    await delete_streams(nats_url)
    async with bus.connect(nats_url, "test") as connected:
        yield connected


async def delete_streams(url: str) -> None:
    """What a server without its disk has left."""
    client = await nats.connect(url)
    try:
        for stream in (bus.SHARDS_STREAM, bus.RUNS_STREAM):
            try:
                await client.jetstream().delete_stream(stream)
            except NotFoundError:
                continue
    finally:
        await client.close()


async def ring(rings: Bus, name: str, message_id: str | None = None) -> None:
    await rings.publish(bus.SHARDS_QUEUED, name.encode(), message_id=message_id or secrets.token_hex(8))


async def heard(rings: Bus, count: int = 10, wait: float = 0.3) -> list[Msg]:
    return await rings.pull_rings(count, wait=wait)


async def test_a_ring_is_heard_by_one(rings: Bus, nats_url: str) -> None:
    await ring(rings, "a", "s1:1:1")
    # The same ring again is dropped, another for the same shard is not.
    await ring(rings, "a", "s1:1:1")
    await ring(rings, "a", "s1:1:2")
    async with bus.connect(nats_url, "another") as other:
        first = await heard(rings, 1)
        second = await heard(other, 5)
        assert [message.data for message in (*first, *second)] == [b"a", b"a"]
        for message in (*first, *second):
            await rings.acknowledge(message)
        assert await heard(other) == []


async def test_nothing_to_hear_is_no_error(rings: Bus) -> None:
    assert await heard(rings, wait=0.1) == []
    await ring(rings, "b")
    assert [message.data for message in await heard(rings)] == [b"b"]


async def test_a_server_that_lost_everything(rings: Bus, nats_url: str) -> None:
    """Both ends notice, make what is missing again, and go on; what was rung before is rung again by the hub."""
    await ring(rings, "a")
    assert len(await heard(rings)) == 1
    await delete_streams(nats_url)
    with pytest.raises(Unavailable):
        await ring(rings, "b")
    await ring(rings, "b")
    for _ in range(20):
        try:
            found = await heard(rings)
        except Unavailable:
            continue
        if found:
            break
    assert [message.data for message in found] == [b"b"]


async def test_who_listens_hears_and_nobody_minds_when_nobody_does(rings: Bus) -> None:
    subject = f"{bus.RENEW}.{secrets.token_hex(4)}"
    await rings.ring(subject, b"to nobody")
    came = asyncio.Queue[bytes]()

    async def hear(message: Msg) -> None:
        came.put_nowait(message.data)

    await rings.listen(subject, hear)
    await rings.ring(subject, b"to somebody")
    async with asyncio.timeout(5):
        assert await came.get() == b"to somebody"
    assert came.empty()
