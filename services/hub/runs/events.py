"""What the hub says on NATS about runs: names, never state."""

from __future__ import annotations

from typing import NamedTuple

from benchgen.eval.v1 import event_pb2
from services.common import bus
from services.hub.runs.domain import RunId, RunnerId, ShardId


class Event(NamedTuple):
    """A message and where it goes."""

    subject: str
    payload: bytes


def run_changed(run: RunId) -> Event:
    """A run changed its state."""
    return Event(f"{bus.RUNS_CHANGED}.{run}", event_pb2.RunChanged(run=run).SerializeToString())


def shard_queued(shard: ShardId, *, sandboxed: bool) -> Event:
    """A shard may be leased, by whoever has a sandbox free if it takes one."""
    message = event_pb2.ShardQueued(shard=str(shard), sandboxed=sandboxed)
    return Event(bus.SHARDS_QUEUED, message.SerializeToString())


def renew_leases(runner: RunnerId) -> Event:
    """A runner should renew its leases at once."""
    return Event(f"{bus.RENEW}.{runner}", event_pb2.RenewLeases(runner=runner).SerializeToString())
