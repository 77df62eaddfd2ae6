"""Builds a hub and runs it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import asyncpg
import grpc
import structlog

from benchgen.eval.v1 import (
    environment_pb2_grpc,
    lease_pb2_grpc,
    model_pb2_grpc,
    result_pb2_grpc,
    run_pb2_grpc,
)
from services.common import bus, clock, db, rpc
from services.common.clock import SharedClock
from services.common.models.client import ModelClient
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.common.process import Process
from services.common.signing import Signer, Verifier
from services.hub.config import HubSettings
from services.hub.measures import Measures
from services.hub.publishing.jobs import Publisher
from services.hub.publishing.sandbox import Limits
from services.hub.publishing.scratch import scratch_folder
from services.hub.publishing.service import EnvironmentService
from services.hub.registry import store as registry_store
from services.hub.registry.secrets import Vault
from services.hub.registry.service import ModelService
from services.hub.runs import store as runs_store
from services.hub.runs.auditor import Auditor
from services.hub.runs.creation import Creator
from services.hub.runs.dispatcher import Dispatcher
from services.hub.runs.estimates import Estimator
from services.hub.runs.lease_service import LeaseService
from services.hub.runs.leases import Leases
from services.hub.runs.loader import Loader
from services.hub.runs.locks import PoolLocks
from services.hub.runs.outbox import Outbox
from services.hub.runs.plans import Plans
from services.hub.runs.reaper import Reaper
from services.hub.runs.removal import Removals
from services.hub.runs.resuming import Resumes
from services.hub.runs.sealer import Sealer
from services.hub.runs.service import RunService
from services.hub.runs.stops import Stops
from services.hub.runs.wakes import Wakes
from services.hub.sweeping import Sweeper

log = structlog.get_logger()

MIGRATIONS = Path(__file__).with_name("migrations")

_PUBLIC = tuple(f"benchgen.eval.v1.{name}Service" for name in ("Environment", "Model", "Run"))

#: Runners lease, outside callers come through the gateway.
CALLERS = {
    "benchgen.eval.v1.LeaseService": frozenset({"runner"}),
    **{service: frozenset({"gateway"}) for service in _PUBLIC},
}

#: Every loop also looks by itself this often, seconds, whatever became of what should have woken it.
_SWEEP_SECONDS = 1.0
_REAP_SECONDS = 0.5
#: Of the prompts that estimates read, so much is kept in memory.
_ESTIMATE_BYTES = 16 * 1024 * 1024
#: How long after the end of a lease it is asked what was recorded under it, seconds: its holder, if it lives, ends its
#: calls within half the time of a lease.
_AUDIT_SECONDS = 15.0
#: Every lease and every end of a shard makes room in the window; at full load there are dozens a second.
_DISPATCH_REST_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Neighbours:
    """What a hub talks to, open."""

    pool: asyncpg.Pool
    rings: bus.Bus
    objects: ObjectStore
    scorer: grpc.aio.Channel
    models: ModelClient
    scratch: Path


async def serve(settings: HubSettings, process: Process) -> None:
    """Open everything, serve until told to stop, close everything in the opposite order."""
    async with (
        ObjectStore(settings) as objects,
        ModelClient() as models,
        rpc.channel(settings.scorer_address, settings) as scorer,
        db.pool(
            settings.postgres_dsn.get_secret_value(), MIGRATIONS, size=settings.postgres_connections
        ) as pool,
        bus.connect(settings.nats_url.get_secret_value(), "hub") as rings,
    ):
        with scratch_folder(settings.cache_dir) as scratch:
            await _serve(settings, process, Neighbours(pool, rings, objects, scorer, models, scratch))


async def _serve(settings: HubSettings, process: Process, near: Neighbours) -> None:
    wakes = Wakes()
    shared = SharedClock(near.pool)
    await shared.first_look()
    signer = Signer(settings.lease_signing_key.get_secret_value())
    vault = Vault(settings.master_key, settings.master_key_old)
    records = result_pb2_grpc.RecordServiceStub(near.scorer)
    locks = PoolLocks(near.pool)
    leases = Leases(locks, near.rings, wakes, timedelta(seconds=settings.lease_seconds))
    plans = Plans(near.pool)
    stops = Stops(locks, leases)
    resumes = Resumes(near.pool, locks, leases, records)
    removals = Removals(near.pool, locks, records, wakes)
    publisher = Publisher(
        near.pool,
        near.objects,
        records,
        near.scratch,
        Limits(settings.materialise_seconds, settings.materialise_bytes),
        process.stopping,
    )

    async def read_secret(model: str) -> str:
        async with near.pool.acquire() as connection:
            sealed = await registry_store.secret_of(connection, model)
        return vault.decrypt(model, sealed) if sealed else ""

    dispatcher = Dispatcher(near.pool, locks, near.rings, plans, ring_seconds=settings.ring_seconds)
    reaper = Reaper(near.pool, locks, leases, grace=settings.lease_seconds / 3)
    sealer = Sealer(near.pool, locks, records, wakes)
    loader = Loader(near.pool, leases, plans, signer, records, stops)
    auditor = Auditor(
        near.pool, locks, stops, records, timedelta(seconds=min(_AUDIT_SECONDS, settings.lease_seconds / 2))
    )
    uploaded = asyncio.Event()
    process.loop("clock", shared.step, every=clock.EVERY_SECONDS)
    process.loop(
        "dispatch", dispatcher.step, every=_SWEEP_SECONDS, wake=wakes.dispatch, rest=_DISPATCH_REST_SECONDS
    )
    process.loop("reap", reaper.step, every=_REAP_SECONDS)
    process.loop("seal", sealer.step, every=_SWEEP_SECONDS, wake=wakes.seal)
    process.loop("load", loader.step, every=_SWEEP_SECONDS, wake=wakes.load)
    process.loop("outbox", Outbox(near.pool, near.rings).step, every=_SWEEP_SECONDS, wake=wakes.outbox)
    process.loop("audit", auditor.step, every=_SWEEP_SECONDS, wake=wakes.audit)
    process.loop("publish", publisher.step, every=_SWEEP_SECONDS, wake=uploaded)
    process.loop("remove", removals.step, every=_SWEEP_SECONDS)
    if settings.retention_days:
        keep = timedelta(days=settings.retention_days)
        process.loop("expire", lambda: removals.expire(keep), every=settings.sweep_seconds)
    sweeper = Sweeper(near.pool, near.objects, records, shared, timedelta(seconds=settings.orphan_seconds))
    process.loop("sweep", sweeper.step, every=settings.sweep_seconds)
    process.measure(Measures(near.pool))
    await near.rings.listen(f"{bus.RUNS_CHANGED}.*", wakes.heard_run_changed)
    environments = EnvironmentService(
        near.pool, near.objects, near.scratch, uploaded, most_upload_bytes=settings.upload_bytes
    )
    registry = ModelService(near.pool, vault, near.models, runs_store.has_active_runs, settings.simulator_url)
    creator = Creator(near.pool, settings.simulator_url)
    estimator = Estimator(CaseReader(Bucket.INPUTS, near.objects, None, memory_bytes=_ESTIMATE_BYTES))
    runs = RunService(
        near.pool, creator, estimator, stops, resumes, removals, plans, records, wakes, process.stopping
    )
    lessor = LeaseService(near.pool, leases, plans, signer, wakes, read_secret)

    def register(server: grpc.aio.Server) -> None:
        environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(environments, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(registry, server)
        run_pb2_grpc.add_RunServiceServicer_to_server(runs, server)
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(lessor, server)

    access = rpc.Access(
        settings,
        CALLERS,
        public=_PUBLIC,
        principals=Verifier(settings.principal_public_key),
        now=shared.now,
    )
    async with rpc.server(settings.grpc_listen, settings, access, register) as port:
        process.ready = True
        log.info("hub.ready", port=port)
        await process.stopping.wait()
        await process.settled()
