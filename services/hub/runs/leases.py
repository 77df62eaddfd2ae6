"""Handing out shards and taking them back. Every decision is made under the lock of the shard's pool."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from enum import StrEnum

import structlog

from benchgen.errors import LeaseLost, NotFound
from services.common.amounts import NOTHING
from services.common.bus import Bus
from services.hub import metrics
from services.hub.registry.store import Conn
from services.hub.runs import dealing, domain, events, lease_store, metering, store
from services.hub.runs.budgets import Word
from services.hub.runs.domain import (
    NOBODY,
    Following,
    LeaseKind,
    LeaseView,
    Pool,
    RunEvent,
    RunId,
    RunnerId,
    RunState,
    ShardId,
    ShardState,
    Verdict,
)
from services.hub.runs.lease_store import Expired, Situation, Told
from services.hub.runs.locks import PoolLocks
from services.hub.runs.metering import GrantTold
from services.hub.runs.wakes import Wakes

log = structlog.get_logger()

#: A runner that was heard of within this time is there.
SEEN = timedelta(seconds=15)
#: What is said of a grant that nobody heard of.
_NOTHING_SPENT = Word(sequence=1, spent=NOTHING, held=NOTHING)


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that was given; ``grant`` is None where nothing limits what may be spent."""

    shard: LeaseView
    attempt: int
    told: Told
    grant: GrantTold | None = None


@dataclass(frozen=True, slots=True)
class Renewal:
    """The answer to a renewal; ``seconds`` is how long the lease holds."""

    verdict: Verdict
    seconds: float
    told: Told
    grant: GrantTold | None = None


@dataclass(frozen=True, slots=True)
class Use:
    """What a runner says about its permits of a pool.

    ``calls`` is how many it has in flight, or may start without asking; ``version`` the latest number of permits that
    it had heard of, 0 where it does not say.
    """

    calls: int
    version: int = 0


class Return(StrEnum):
    """Why a shard comes back."""

    STOPPING = "stopping"
    FAULT = "fault"
    PERMANENT = "permanent"


class Leases:
    """What runners, and the hub itself, may do with shards.

    :param duration: how long a lease holds.
    """

    def __init__(self, locks: PoolLocks, bus: Bus, wakes: Wakes, duration: timedelta) -> None:
        self._locks = locks
        self._bus = bus
        self._wakes = wakes
        self.duration = duration

    async def lease(
        self, pool: Pool, shard: ShardId, runner: RunnerId, request_id: str, *, unbounded: str | None = None
    ) -> Lease:
        """Give a shard to a runner; the same request again gets the same lease.

        :param unbounded: why it is not known what a call of the run can cost, where it is not.
        :raises NotFound: there is no such shard.
        :raises LeaseLost: it cannot be had.
        """
        async with self._locks.hold(pool) as conn:
            now = await self._situation(conn, shard, runner)
            view, table = now.shard, now.table
            attempt: int | None = view.attempt
            kind = domain.lease(view, runner, request_id)
            match kind:
                case LeaseKind.NEW:
                    attempt = await lease_store.take_shard(conn, view, runner, request_id, self.duration)
                    table = replace(table, waiting=max(0, table.waiting - 1))
                case LeaseKind.AGAIN:
                    await lease_store.keep_shard(conn, view, self.duration)
            if attempt is None:
                raise LeaseLost
            started = await store.move_run(conn, shard.run, view.run_state, RunEvent.LEASED)
            settled = dealing.settle(table, runner, now.calls, in_use=None)
            told = await lease_store.save(conn, pool, runner, now, settled, self.duration)
            grant = await metering.begin(conn, shard, attempt) if now.metered else None
        if unbounded and grant is not None and grant.picousd is not None:
            await self._give_back(pool, shard, attempt, runner, unbounded)
        metrics.LEASES.labels(kind).inc()
        if started != view.run_state:
            self._wakes.run_changed(shard.run)
        # There is room in the window for another.
        self._wakes.dispatch.set()
        await self.ring(settled.ring)
        return Lease(view, attempt, told, grant)

    async def _give_back(
        self, pool: Pool, shard: ShardId, attempt: int, runner: RunnerId, reason: str
    ) -> None:
        """Pause a run whose API key has got a budget since it was created, and whose calls nothing bounds.

        :raises LeaseLost: always.
        """
        await self.release(pool, shard, attempt, runner, Return.PERMANENT, reason, _NOTHING_SPENT)
        raise LeaseLost(reason)

    async def renew(
        self,
        pool: Pool,
        shard: ShardId,
        attempt: int,
        runner: RunnerId,
        use: Use,
        word: Word | None = None,
    ) -> Renewal:
        """Let a lease go on. It does so even after its end, as long as nobody else has the shard.

        :param word: what became of its grant; None under a lease without one.
        :raises NotFound: there is no such shard.
        """
        async with self._locks.hold(pool) as conn:
            now = await self._situation(conn, shard, runner)
            verdict = domain.renew(now.shard, runner, attempt)
            seconds = max(0.0, now.shard.remaining)
            leases = now.leases
            if domain.extends(now.shard, verdict):
                await lease_store.keep_shard(conn, now.shard, self.duration)
                seconds = self.duration.total_seconds()
                leases = max(leases, 1)
            # Without a lease it has no business with calls in flight, but if it says so they are there.
            settled, told = await self._settle(conn, pool, runner, now, leases, use, left=use.calls)
            rung = set(settled.ring)
            grant, used_up = await metering.hear(conn, shard, attempt, verdict, word)
            if used_up is not None:
                verdict = Verdict.STOP
                rung |= set(await self._pause(conn, pool, now.shard, used_up))
        if used_up is not None:
            self.wake(shard.run, run_changed=True)
        if grant is not None and word is not None and grant.errors is not None and word.errors > grant.errors:
            self._wakes.audit.set()
        await self.ring(rung)
        return Renewal(verdict, seconds, told, grant)

    async def complete(
        self,
        pool: Pool,
        shard: ShardId,
        attempt: int,
        runner: RunnerId,
        use: Use,
        word: Word | None = None,
    ) -> Told:
        """Note that every trial of a shard is stored; returns how many calls the runner may still have in flight.

        :param word: the last one about its grant; None under a lease without one.
        :raises NotFound: there is no such shard.
        :raises LeaseLost: somebody else has it.
        """
        async with self._locks.hold(pool) as conn:
            now = await self._situation(conn, shard, runner)
            if not domain.complete(now.shard, runner, attempt):
                return await lease_store.told(conn, pool, runner)
            last = await self._end(conn, shard, attempt, ShardState.DONE, faults=now.shard.faults)
            if now.metered or word is not None:
                await metering.end(conn, shard, attempt, word)
            leases = now.leases - int(now.shard.state is ShardState.RUNNING)
            settled, told = await self._settle(conn, pool, runner, now, leases, use)
        metrics.LEASE_ENDS.labels("done").inc()
        self.wake(shard.run, run_changed=last)
        await self.ring(settled.ring)
        return told

    async def release(
        self,
        pool: Pool,
        shard: ShardId,
        attempt: int,
        runner: RunnerId,
        why: Return,
        message: str,
        word: Word | None = None,
    ) -> None:
        """Take a shard back. Taking it back twice is the same as once.

        What a provider refuses for good pauses the run also when the lease has just run out.

        :param word: the last one about its grant; None under a lease without one.
        :raises NotFound: there is no such shard.
        :raises LeaseLost: somebody else has it.
        """
        async with self._locks.hold(pool) as conn:
            now = await self._situation(conn, shard, runner)
            view = now.shard
            is_back = (
                view.attempt == attempt
                and view.state is not ShardState.RUNNING
                and view.runner in (NOBODY, runner)
            )
            if not is_back and not view.held_by(runner, attempt):
                raise LeaseLost
            rung = set(await self._pause(conn, pool, view, message) if why is Return.PERMANENT else ())
            if not is_back:
                faults = view.faults + int(why is Return.FAULT)
                await self.take_back(conn, view, attempt, view.run_state, faults=faults, reason=message)
                settled, _ = await self._settle(conn, pool, runner, now, now.leases - 1, None)
                rung |= set(settled.ring)
            if now.metered or word is not None:
                await metering.end(conn, shard, attempt, word)
        if not is_back:
            metrics.LEASE_ENDS.labels(why).inc()
        if not is_back or why is Return.PERMANENT:
            self.wake(shard.run, run_changed=True)
        await self.ring(rung)

    async def take_back(
        self,
        conn: Conn,
        shard: LeaseView | Expired,
        attempt: int,
        run_state: RunState,
        *,
        faults: int,
        reason: str,
        holder: RunnerId = NOBODY,
    ) -> None:
        """Let a shard whose lease ended wait again, whole or in parts, or give it up.

        :param holder: who may still take it up again, as long as nobody else does and it is not split.
        """
        match domain.after_lease(run_state, faults, shard.count):
            case Following.GIVE_UP:
                reason = "cancelled" if run_state is RunState.CANCELLING else reason
                metrics.SHARDS_ABANDONED.inc()
                log.info("shard.abandoned", shard=str(shard.id), attempt=attempt, reason=reason)
                state = ShardState.ABANDONED
                await self._end(conn, shard.id, attempt, state, faults=faults, reason=reason)
            case Following.SPLIT:
                parts = domain.split(shard.first, shard.count)
                log.info("shard.split", shard=str(shard.id), attempt=attempt, parts=len(parts), reason=reason)
                await lease_store.split_shard(conn, shard.id, attempt, parts, reason=reason)
            case Following.WAIT:
                await lease_store.return_shard(
                    conn, shard.id, attempt, holder=holder, faults=faults, reason=reason
                )

    async def _end(
        self, conn: Conn, shard: ShardId, attempt: int, state: ShardState, *, faults: int, reason: str = ""
    ) -> bool:
        """End a shard, and with the last one the work on its run; returns whether it was the last."""
        left = await lease_store.end_shard(conn, shard, attempt, state, faults=faults, reason=reason)
        if left is None or left.open > 0:
            return False
        await store.move_run(conn, shard.run, left.state, RunEvent.SHARDS_ENDED)
        return True

    def wake(self, run: RunId, *, run_changed: bool) -> None:
        """Wake whoever may have something to do now that a lease has ended."""
        self._wakes.dispatch.set()
        self._wakes.load.set()
        if run_changed:
            self._wakes.seal.set()
            self._wakes.run_changed(run)

    async def ring(self, runners: Iterable[RunnerId]) -> None:
        """Ask runners to renew at once."""
        for runner in runners:
            event = events.renew_leases(runner)
            await self._bus.ring(event.subject, event.payload)

    async def _situation(self, conn: Conn, shard: ShardId, runner: RunnerId) -> Situation:
        found = await lease_store.situation(
            conn, shard, runner, seen=SEEN, turn_seconds=self.duration.total_seconds()
        )
        if found is None:
            raise NotFound(f"no shard {shard}")
        return found

    async def _settle(
        self,
        conn: Conn,
        pool: Pool,
        runner: RunnerId,
        now: Situation,
        leases: int,
        use: Use | None,
        *,
        left: int = 0,
    ) -> tuple[dealing.Settlement, Told]:
        """Deal again for a runner that holds so many leases from now on.

        :param left: how many calls it has in flight even if it holds none.
        """
        if leases > 0:
            in_use = None if use is None else use.calls
            heard = use is None or use.version in (0, now.version)
            settled = dealing.settle(now.table, runner, now.calls, in_use=in_use, heard=heard)
        else:
            settled = dealing.leave(now.table, runner, in_use=left)
        return settled, await lease_store.save(conn, pool, runner, now, settled, self.duration)

    @staticmethod
    async def _pause(conn: Conn, pool: Pool, shard: LeaseView, message: str) -> list[RunnerId]:
        """Pause a run that cannot go on for now; returns who has to hear of it."""
        # What an older epoch met may be why the run was paused, and mended, before.
        if shard.run_state is not RunState.RUNNING or shard.epoch != shard.run_epoch:
            return []
        run = shard.id.run
        await store.move_run(conn, run, shard.run_state, RunEvent.PAUSED, message=message)
        await store.unqueue(conn, run)
        return await store.runners_of(conn, pool, run)
