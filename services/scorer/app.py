"""Builds a scorer and runs it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import structlog

from benchgen.eval.v1 import result_pb2_grpc
from services.common import clock, db, rpc
from services.common.clock import SharedClock
from services.common.competition import PackStore, Steps
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.common.process import Process
from services.common.sandbox import provider_of, watch
from services.common.sandbox.runtimes import read_runtimes
from services.common.signing import Verifier
from services.scorer import metrics
from services.scorer.caching import ResponseCache
from services.scorer.calls import CallBook
from services.scorer.competition.judging import CompetitionJudge
from services.scorer.competition.serving import TaskReader
from services.scorer.competition.solutions import SolutionRunner
from services.scorer.config import ScorerSettings
from services.scorer.judging import BoxJudge, ByKind
from services.scorer.loading import Loader
from services.scorer.pending import SlowScorer
from services.scorer.predictions import PredictionStore
from services.scorer.record_service import RecordService
from services.scorer.recorder import Recorder
from services.scorer.removal import Remover
from services.scorer.reporting import Reporter
from services.scorer.results_service import ResultService
from services.scorer.verification import VersionVerifier

log = structlog.get_logger()

MIGRATIONS = Path(__file__).with_name("migrations")

_RECORDS = "benchgen.eval.v1.RecordService"
_RESULTS = "benchgen.eval.v1.ResultService"

#: Runners record, the hub asks for the rest, outside callers come through the gateway.
CALLERS = {
    _RECORDS: frozenset({"hub"}),
    f"/{_RECORDS}/RecordResults": frozenset({"runner"}),
    f"/{_RECORDS}/RecordCall": frozenset({"runner"}),
    f"/{_RECORDS}/ReplayCalls": frozenset({"runner"}),
    f"/{_RECORDS}/LoadCached": frozenset({"runner"}),
    _RESULTS: frozenset({"gateway"}),
}


async def serve(settings: ScorerSettings, process: Process) -> None:
    """Serve until told to stop."""
    async with listening(settings, process) as port:
        process.ready = True
        log.info("scorer.ready", port=port)
        await process.stopping.wait()
        await process.settled()


@asynccontextmanager
async def listening(settings: ScorerSettings, process: Process | None = None) -> AsyncIterator[int]:
    """A scorer that answers; yields its port. Closes everything in the opposite order of opening it."""
    async with (
        ObjectStore(settings) as objects,
        db.pool(
            settings.postgres_dsn.get_secret_value(), MIGRATIONS, size=settings.postgres_connections
        ) as pool,
    ):
        shared = SharedClock(pool)
        await shared.first_look()
        access = rpc.Access(
            settings,
            CALLERS,
            public=[_RESULTS],
            principals=Verifier(settings.principal_public_key),
            now=shared.now,
        )
        remover = Remover(pool, objects, shared)
        provider = provider_of(settings)
        if process is not None:
            process.loop("clock", shared.step, every=clock.EVERY_SECONDS)
            process.measure(metrics.Measures(pool))
            watch(process, provider)
            age = timedelta(seconds=settings.orphan_seconds)
            process.loop("sweep", lambda: remover.sweep(age), every=settings.sweep_seconds)
        inputs, targets, solutions = (
            CaseReader(bucket, objects, settings.cache_dir)
            for bucket in (Bucket.INPUTS, Bucket.TARGETS, Bucket.SOLUTIONS)
        )
        # One thread: scoring is Python, so more would only contend for the interpreter.
        with (
            ThreadPoolExecutor(1, thread_name_prefix="scoring") as threads,
            PackStore(objects, settings.cache_dir) as packs,
        ):
            recorder, book = Recorder(pool), CallBook(pool)
            predictions = PredictionStore(objects, targets)
            max_age = timedelta(days=settings.cache_days)
            cache = ResponseCache(pool, recorder, inputs, objects, threads, max_age)
            if process is not None:
                process.loop("expire", cache.expire, every=settings.sweep_seconds)
            steps = Steps(provider, read_runtimes(settings.runtimes).keys())
            columns = CompetitionJudge(
                pool,
                objects,
                targets,
                packs,
                provider,
                steps,
                sees_reference=settings.ingestion_sees_reference,
            )
            slow = ByKind(columns, BoxJudge(provider, objects, settings.sandboxes))
            if process is not None:
                scorer = SlowScorer(pool, targets, objects, slow, process.stopping)
                for _ in range(settings.sandboxes):
                    process.loop("scores", scorer.step, every=settings.scores_seconds, wake=recorder.pending)
            records = RecordService(
                pool=pool,
                recorder=recorder,
                book=book,
                targets=targets,
                objects=objects,
                loader=Loader(recorder, solutions, predictions, threads, objects),
                cache=cache,
                reporter=Reporter(pool),
                remover=remover,
                verifier=VersionVerifier(targets, solutions, threads, slow),
                solutions=SolutionRunner(inputs, targets, solutions, packs, provider, steps, columns),
                hub=Verifier(settings.lease_public_key),
                scoring_threads=threads,
            )
            results = ResultService(pool, inputs, targets, predictions, book, TaskReader(pool, objects))

            def register(server: grpc.aio.Server) -> None:
                result_pb2_grpc.add_RecordServiceServicer_to_server(records, server)
                result_pb2_grpc.add_ResultServiceServicer_to_server(results, server)

            async with rpc.server(settings.grpc_listen, settings, access, register) as port:
                yield port
