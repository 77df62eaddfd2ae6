"""Rings that come twice, late, in another order, or mean nothing."""

from __future__ import annotations

import asyncio
import random
import time
import uuid

import nats

from benchgen.eval.v1 import event_pb2
from services.common import bus
from tests.resilience.cluster import Cluster
from tests.resilience.conftest import Clean
from tests.resilience.tables import Observed, check_left, check_same, final

CASES, TRIALS = 200, 3
SEED = 3


async def _ring(url: str, rings: list[bytes]) -> None:
    client = await nats.connect(url)
    try:
        for ring in rings:
            headers = {"Nats-Msg-Id": str(uuid.uuid4())}
            await client.jetstream().publish(bus.SHARDS_QUEUED, ring, headers=headers)
    finally:
        await client.close()


def _rings(cluster: Cluster, run: str, chance: random.Random) -> list[bytes]:
    """One for every shard, in any order, some twice, and some that name nothing."""
    shards = [
        f"{run}-{row['number']:06d}"
        for row in cluster.query("SELECT number FROM hub.shards WHERE run_id = $1", run)
    ]
    names = [*shards, *chance.choices(shards, k=5), f"{run}-999999", "nothing"]
    rings = [event_pb2.ShardQueued(shard=name).SerializeToString() for name in names] + [b"\xff\xff\xff"]
    chance.shuffle(rings)
    return rings


def test_rings_can_be_repeated_late_and_wrong(cluster: Cluster, clean: Clean) -> None:
    expected = clean(CASES, TRIALS)
    cluster.model.latency = 0.1
    chance = random.Random(SEED)
    observed = Observed(cluster, CASES, trials=TRIALS)
    for share in (0.0, 0.2, 0.5, 0.8):
        observed.until(share)
        asyncio.run(_ring(cluster.nats_url, _rings(cluster, observed.run, chance)))
    observed.finish(expected)
    # They may come when everything is over.
    asked = sum(cluster.model.counts.asked.values())
    asyncio.run(_ring(cluster.nats_url, _rings(cluster, observed.run, chance)))
    time.sleep(2)
    assert sum(cluster.model.counts.asked.values()) == asked
    check_same(final(cluster, observed.run), expected)
    check_left(cluster, observed.run)
    assert all(node.runs for node in cluster.nodes.values())
