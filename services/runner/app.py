"""Builds a runner and runs it."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import structlog

from benchgen.eval.v1 import lease_pb2_grpc, result_pb2_grpc
from services.common import bus, rpc
from services.common.competition import PackStore, Steps
from services.common.models.client import ModelClient
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.common.process import Process
from services.common.sandbox import provider_of, watch
from services.common.sandbox.runtimes import read_runtimes
from services.runner.config import RunnerSettings
from services.runner.harness.competition import CompetitionTools
from services.runner.programs.boxes import Boxes
from services.runner.programs.shard import ProgramTools
from services.runner.programs.store import ProgramStore
from services.runner.worker import Worker

log = structlog.get_logger()


@asynccontextmanager
async def _packs(objects: ObjectStore, settings: RunnerSettings) -> AsyncIterator[PackStore]:
    """The programs and data of competitions."""
    with PackStore(objects, settings.cache_dir) as packs:
        yield packs


@asynccontextmanager
async def _programs(objects: ObjectStore, settings: RunnerSettings) -> AsyncIterator[ProgramStore]:
    with closing(ProgramStore(objects, settings.cache_dir)) as store:
        yield store


#: Also how a runner hears, within two seconds, that a run was stopped if the ring that said so was lost.
_KEEP_SECONDS = 1.0


async def serve(settings: RunnerSettings, process: Process) -> None:
    """Open everything, work until told to stop, hand back what is held, close everything."""
    name = f"{socket.gethostname()}-{secrets.token_hex(4)}"
    async with (
        bus.connect(settings.nats_url.get_secret_value(), name) as rings,
        rpc.channel(settings.hub_address, settings) as hub,
        rpc.channel(settings.scorer_address, settings) as scorer,
        ObjectStore(settings) as objects,
        ModelClient() as client,
        _programs(objects, settings) as programs,
        _packs(objects, settings) as packs,
    ):
        provider = provider_of(settings)
        boxes = Boxes(provider, settings.runner_sandboxes)
        worker = Worker(
            process,
            name,
            rings,
            lease_pb2_grpc.LeaseServiceStub(hub),
            result_pb2_grpc.RecordServiceStub(scorer),
            client,
            CaseReader(Bucket.INPUTS, objects, settings.cache_dir),
            objects,
            ProgramTools(boxes, programs),
            CompetitionTools(
                packs,
                Steps(provider, read_runtimes(settings.runtimes).keys()),
                boxes,
            ),
            simulator_token=settings.simulator_token.get_secret_value(),
            shards=settings.runner_shards,
            calls=settings.runner_calls,
            stop_seconds=settings.stop_seconds,
        )
        await rings.listen(f"{bus.RENEW}.{name}", worker.hear_renew)
        process.measure(worker.measure)
        process.loop("keep", worker.keep_known, every=_KEEP_SECONDS)
        pulling = process.loop("pull", worker.pull, every=0.0)
        watch(process, provider)
        process.ready = True
        log.info("runner.ready", runner=name)
        await process.stopping.wait()
        pulling.cancel()
        await worker.stop()
        await process.settled()
