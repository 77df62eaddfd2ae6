"""LeaseService: what runners ask for, and the signed leases that they get."""

# ruff: noqa: N802 - gRPC names the methods and passes a context

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import asyncpg
import grpc
from google.protobuf.duration_pb2 import Duration

from benchgen.errors import InvalidInput, LeaseLost, PermissionDenied
from benchgen.eval.v1 import lease_pb2, lease_pb2_grpc, run_pb2
from services.common.signing import Signer, Verifier
from services.hub import metrics
from services.hub.runs import budget_messages, store
from services.hub.runs.budgets import Limits, Word
from services.hub.runs.domain import RunnerId, ShardId, Verdict
from services.hub.runs.leases import Lease, Leases, Return, Use
from services.hub.runs.planning import positions
from services.hub.runs.plans import Plan, Plans
from services.hub.runs.specs import LOADED_POOL
from services.hub.runs.wakes import Wakes

Context = grpc.aio.ServicerContext[Any, Any]

#: A runner says that it is there at least this often; it is taken for gone after three times as long.
KEEP_INTERVAL = timedelta(seconds=5)

_LONGEST_ID = 100
_LONGEST_MESSAGE = 2_000

_VERDICTS = {
    Verdict.GO_ON: lease_pb2.RenewLeaseResponse.VERDICT_GO_ON,
    Verdict.STOP: lease_pb2.RenewLeaseResponse.VERDICT_STOP,
    Verdict.LOST: lease_pb2.RenewLeaseResponse.VERDICT_LOST,
}
_RETURNS = {
    lease_pb2.ReleaseShardRequest.REASON_STOPPING: Return.STOPPING,
    lease_pb2.ReleaseShardRequest.REASON_FAULT: Return.FAULT,
    lease_pb2.ReleaseShardRequest.REASON_PERMANENT: Return.PERMANENT,
}


def sign_lease(
    signer: Signer, spec: run_pb2.RunSpec, lease: Lease, runner: RunnerId
) -> lease_pb2.SignedLease:
    """A lease as it travels."""
    shard = lease.shard
    claims = lease_pb2.LeaseClaims(
        shard=str(shard.id),
        run=shard.id.run,
        attempt=lease.attempt,
        epoch=shard.run_epoch,
        runner=runner,
        first=shard.first,
        count=shard.count,
        positions=shard.selected or positions(shard.first, shard.count, shard.trials),
        spec=spec,
    ).SerializeToString()
    return lease_pb2.SignedLease(claims=claims, signature=signer.sign(claims))


class LeaseService(lease_pb2_grpc.LeaseServiceServicer):
    """Serves runners.

    :param read_secret: the secret of a registered model by its name; empty when it has none.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        leases: Leases,
        plans: Plans,
        signer: Signer,
        wakes: Wakes,
        read_secret: Callable[[str], Awaitable[str]],
    ) -> None:
        self._pool = pool
        self._leases = leases
        self._plans = plans
        self._signer = signer
        self._verifier = Verifier(signer.public_key)
        self._wakes = wakes
        self._read_secret = read_secret

    async def LeaseShard(
        self, request: lease_pb2.LeaseShardRequest, context: Context
    ) -> lease_pb2.LeaseShardResponse:
        shard, runner = ShardId.parse(request.shard), _runner(request.runner)
        if not 0 < len(request.request_id) <= _LONGEST_ID:
            raise InvalidInput("request_id: expected a UUID made by the runner")
        plan = await self._plans.get(shard.run)
        if plan.pool == LOADED_POOL:
            raise LeaseLost("the scorer loads this shard; no runner works on it")
        try:
            lease = await self._leases.lease(
                plan.pool, shard, runner, request.request_id, unbounded=_unbounded(plan)
            )
        except LeaseLost:
            metrics.LEASES.labels("refused").inc()
            raise
        return lease_pb2.LeaseShardResponse(
            lease=sign_lease(self._signer, plan.spec, lease, runner),
            duration=_duration(self._leases.duration.total_seconds()),
            permits=lease.told.permits,
            permits_version=lease.told.version,
            grant=budget_messages.grant_message(lease.grant),
        )

    async def RenewLease(
        self, request: lease_pb2.RenewLeaseRequest, context: Context
    ) -> lease_pb2.RenewLeaseResponse:
        shard, runner = ShardId.parse(request.shard), _runner(request.runner)
        plan = await self._plans.get(shard.run)
        use = Use(request.permits_in_use, request.permits_version)
        renewal = await self._leases.renew(plan.pool, shard, request.attempt, runner, use, _word(request))
        return lease_pb2.RenewLeaseResponse(
            verdict=_VERDICTS[renewal.verdict],
            duration=_duration(renewal.seconds),
            permits=renewal.told.permits,
            permits_version=renewal.told.version,
            grant=budget_messages.grant_message(renewal.grant),
        )

    async def CompleteShard(
        self, request: lease_pb2.CompleteShardRequest, context: Context
    ) -> lease_pb2.CompleteShardResponse:
        shard, runner = ShardId.parse(request.shard), _runner(request.runner)
        plan = await self._plans.get(shard.run)
        use = Use(request.permits_in_use, request.permits_version)
        told = await self._leases.complete(plan.pool, shard, request.attempt, runner, use, _word(request))
        return lease_pb2.CompleteShardResponse(permits=told.permits, permits_version=told.version)

    async def ReleaseShard(
        self, request: lease_pb2.ReleaseShardRequest, context: Context
    ) -> lease_pb2.ReleaseShardResponse:
        shard, runner = ShardId.parse(request.shard), _runner(request.runner)
        why = _RETURNS.get(request.reason)
        if why is None:
            raise InvalidInput("reason: expected why the shard comes back")
        message = request.message.replace("\0", "")[:_LONGEST_MESSAGE]
        plan = await self._plans.get(shard.run)
        await self._leases.release(plan.pool, shard, request.attempt, runner, why, message, _word(request))
        return lease_pb2.ReleaseShardResponse()

    async def GetModelSecret(
        self, request: lease_pb2.GetModelSecretRequest, context: Context
    ) -> lease_pb2.GetModelSecretResponse:
        self._verifier.verify(request.lease.claims, request.lease.signature, what="lease")
        claims = lease_pb2.LeaseClaims.FromString(request.lease.claims)
        shard = ShardId.parse(claims.shard)
        async with self._pool.acquire() as conn:
            if not await store.is_held(conn, shard, claims.attempt, RunnerId(claims.runner)):
                raise LeaseLost
        # From the run itself: what the claims say of it was true when they were signed.
        spec = (await self._plans.get(shard.run)).spec
        if not spec.subject.HasField("model"):
            raise PermissionDenied("the run calls no model")
        secret = await self._read_secret(spec.subject.model.name) if spec.subject.model.has_secret else ""
        return lease_pb2.GetModelSecretResponse(secret=secret)

    async def KeepRunner(
        self, request: lease_pb2.KeepRunnerRequest, context: Context
    ) -> lease_pb2.KeepRunnerResponse:
        runner = _runner(request.runner)
        if not 0 < request.shards <= 10_000 or request.calls > 1_000_000:
            raise InvalidInput(
                "expected 1 to 10,000 shards and at most 1,000,000 calls,"
                f" found {request.shards:,} and {request.calls:,}"
            )
        async with self._pool.acquire() as conn:
            kept = await store.keep_runner(conn, runner, request.shards, request.calls)
        if kept.new:
            self._wakes.dispatch.set()
        interval = Duration()
        interval.FromTimedelta(KEEP_INTERVAL)
        return lease_pb2.KeepRunnerResponse(interval=interval, stopped_shards=map(str, kept.stopped))

    async def RemoveRunner(
        self, request: lease_pb2.RemoveRunnerRequest, context: Context
    ) -> lease_pb2.RemoveRunnerResponse:
        async with self._pool.acquire() as conn:
            await store.remove_runner(conn, _runner(request.runner))
        return lease_pb2.RemoveRunnerResponse()


def _unbounded(plan: Plan) -> str | None:
    """Why nobody can tell what a call of a run costs, where that is so."""
    return "; ".join(budget_messages.unbounded(Limits(picousd=0), plan.spec)) or None


def _word(
    request: lease_pb2.RenewLeaseRequest | lease_pb2.CompleteShardRequest | lease_pb2.ReleaseShardRequest,
) -> Word | None:
    return budget_messages.read_word(request.spending) if request.HasField("spending") else None


def _runner(text: str) -> RunnerId:
    # It becomes a part of a NATS subject.
    if not 0 < len(text) <= _LONGEST_ID or not all(char.isalnum() or char in "-_" for char in text):
        raise InvalidInput(f"runner: expected letters, digits, dashes and underscores, found {text[:80]!r}")
    return RunnerId(text)


def _duration(seconds: float) -> Duration:
    whole, part = divmod(seconds, 1)
    return Duration(seconds=int(whole), nanos=int(part * 1e9))
