"""NATS rings, Postgres decides: publishing and hearing names, never state."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

import nats
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as NatsError
from nats.js.api import AckPolicy, ConsumerConfig, DiscardPolicy, RetentionPolicy, StorageType, StreamConfig
from nats.js.client import JetStreamContext
from nats.js.errors import BadRequestError, NotFoundError

from benchgen.errors import Unavailable
from services.common import tracing

log = structlog.get_logger()

SHARDS_STREAM = "BENCHGEN_SHARDS"
SHARDS_QUEUED = "benchgen.shards.queued"
RUNS_STREAM = "BENCHGEN_RUNS"
RUNS_CHANGED = "benchgen.runs.changed"
RENEW = "benchgen.runners.renew"
_CONSUMER = "runners"

_STREAMS = [
    StreamConfig(
        name=SHARDS_STREAM,
        subjects=[SHARDS_QUEUED],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        # The dispatcher rings again for shards that nobody took, so old rings are worth nothing.
        max_age=600,
        duplicate_window=120,
    ),
    StreamConfig(
        name=RUNS_STREAM,
        subjects=[f"{RUNS_CHANGED}.*"],
        retention=RetentionPolicy.LIMITS,
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=24 * 3600,
        max_msgs_per_subject=1,
        duplicate_window=120,
    ),
]


class Bus:
    """A connection to NATS that heals by itself."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._streams: JetStreamContext = client.jetstream(timeout=5)
        self._rings: JetStreamContext.PullSubscription | None = None

    @property
    def connected(self) -> bool:
        """Whether anything can be heard at this moment."""
        return bool(self._client.is_connected)

    async def publish(self, subject: str, payload: bytes, *, message_id: str) -> None:
        """Publish to JetStream; the same message id within two minutes is dropped there.

        :raises Unavailable: NATS did not take it; whoever publishes does so again later.
        """
        try:
            headers = {"Nats-Msg-Id": message_id, **dict(tracing.carried())}
            await self._streams.publish(subject, payload, headers=headers)
        except (NatsError, TimeoutError, OSError) as error:
            # After NATS lost its data the streams are gone with it.
            with suppress(NatsError, TimeoutError, OSError):
                await self.ensure_streams()
            raise Unavailable(f"NATS: {error or type(error).__name__}") from None

    async def ring(self, subject: str, payload: bytes = b"") -> None:
        """Publish to whoever listens right now. Losing it only costs time, so it never fails."""
        with suppress(NatsError, TimeoutError, OSError):
            await self._client.publish(subject, payload)

    async def listen(self, subject: str, heard: Callable[[Msg], Awaitable[None]]) -> None:
        """Call ``heard`` for every ring on a core subject."""
        await self._client.subscribe(subject, cb=heard)

    async def ensure_streams(self) -> None:
        """Create what is missing; all replicas may do so at once."""
        for config in _STREAMS:
            try:
                await self._streams.add_stream(config)
            except BadRequestError:
                await self._streams.update_stream(config)
        await self._streams.add_consumer(
            SHARDS_STREAM,
            ConsumerConfig(
                durable_name=_CONSUMER,
                ack_policy=AckPolicy.EXPLICIT,
                ack_wait=30,
                max_ack_pending=-1,
            ),
        )

    async def pull_rings(self, count: int, *, wait: float) -> list[Msg]:
        """Up to so many rings for shards, as soon as there is one; none after ``wait`` seconds.

        :raises Unavailable: NATS cannot be reached.
        """
        try:
            if self._rings is None:
                self._rings = await self._streams.pull_subscribe_bind(_CONSUMER, SHARDS_STREAM)
            return await self._rings.fetch(count, timeout=wait)
        except TimeoutError:
            return []
        except NotFoundError:
            self._rings = None
            with suppress(NatsError, TimeoutError, OSError):
                await self.ensure_streams()
            raise Unavailable("NATS had lost its streams; they were made again") from None
        except (NatsError, OSError) as error:
            self._rings = None
            raise Unavailable(f"NATS: {error or type(error).__name__}") from None

    async def acknowledge(self, ring: Msg) -> None:
        """Say that a ring was answered. Should that be lost, the ring comes again and finds nothing to do."""
        with suppress(NatsError, TimeoutError, OSError):
            await ring.ack()

    async def leave(self, ring: Msg, *, seconds: float) -> None:
        """Leave a ring to somebody else, or to oneself later. Should that be lost, it comes again all the same."""
        with suppress(NatsError, TimeoutError, OSError):
            await ring.nak(delay=seconds)


@asynccontextmanager
async def connect(url: str, name: str) -> AsyncIterator[Bus]:
    """Connect and make sure that the streams are there. Waits as long as it takes for the server."""
    await _port_open(url)

    async def on_error(error: Exception) -> None:
        log.warning("nats.error", error=str(error) or type(error).__name__)

    client = await nats.connect(
        url,
        name=name,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.2,
        connect_timeout=5,
        ping_interval=10,
        error_cb=on_error,
    )
    try:
        bus = Bus(client)
        while True:
            try:
                await bus.ensure_streams()
                break
            except (NatsError, TimeoutError, OSError) as error:
                log.info("nats.waiting", error=str(error) or type(error).__name__)
                await asyncio.sleep(0.2)
        yield bus
    finally:
        await client.close()


async def _port_open(url: str) -> None:
    """Wait for the port: after one refused attempt the client would wait for two seconds."""
    parts = urlsplit(url)
    while True:
        try:
            _, writer = await asyncio.open_connection(parts.hostname, parts.port or 4222)
        except OSError:
            await asyncio.sleep(0.05)
            continue
        writer.close()
        return
