"""Runs on real servers: paused, resumed and removed, at any time, by anybody, twice."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from random import Random
from typing import Any

import grpc
import pytest
from nats.aio.msg import Msg

from benchgen.errors import FailedPrecondition, LeaseLost, NotFound, Unavailable
from benchgen.eval.v1 import event_pb2, lease_pb2, result_pb2, run_pb2
from benchgen.statuses import error_of
from services.common import bus
from tests.conftest import Database
from tests.integration.hub.runs_support import (
    Held,
    Hub,
    World,
    cancel,
    ended,
    eventually,
    finish,
    refused,
    register_model,
    shard,
    world,
)

DIGEST = "a" * 64
Run = run_pb2.Run
Release = lease_pb2.ReleaseShardRequest


@pytest.fixture
async def here(database: Callable[..., Database], nats_url: str) -> AsyncIterator[World]:
    async with world(database().dsn("hub"), nats_url) as made:
        yield made


@pytest.fixture
def hub(here: World) -> Hub:
    return here.hub


async def pause(hub: Hub, run: Run) -> Run:
    return await hub.runs.PauseRun(run_pb2.PauseRunRequest(name=run.name), metadata=hub.as_())


async def resume(hub: Hub, run: Run, epoch: int = 0) -> Run:
    request = run_pb2.ResumeRunRequest(name=run.name, epoch=epoch)
    return await hub.runs.ResumeRun(request, metadata=hub.as_())


async def remove(hub: Hub, run: Run) -> None:
    await hub.runs.DeleteRun(run_pb2.DeleteRunRequest(name=run.name), metadata=hub.as_())


async def end(here: World, run: Run) -> Run:
    """Do what is to do of a run, and end it."""
    for row in await here.hub.shards(run.name):
        if row["state"] in ("PENDING", "QUEUED"):
            await here.hub.complete(await here.hub.lease(shard(run, row["number"])))
    await here.hub.sealer.step()
    return await here.hub.get(run.name)


# Pausing


async def test_a_paused_run_stands_until_it_is_resumed(here: World) -> None:
    hub = here.hub
    run = await hub.create(100)
    held = [await hub.lease(shard(run, number), "ab"[number]) for number in range(2)]
    heard: set[str] = set()

    async def hear(message: Msg) -> None:
        heard.add(event_pb2.RenewLeases.FromString(message.data).runner)

    await hub.bus.listen(f"{bus.RENEW}.*", hear)
    await hub.keep("a")
    await hub.dispatcher.step()
    first, again = await pause(hub, run), await pause(hub, run)
    await eventually(lambda: heard == {"a", "b"})
    assert first.state == again.state == Run.STATE_PAUSED
    assert first.epoch == again.epoch == 1
    assert first.state_message == "paused by hand with the API key key-1"
    # What is in flight may be stored to the last; everything else waits.
    await hub.complete(held[0])
    assert (await hub.renew(held[1])).verdict == lease_pb2.RenewLeaseResponse.VERDICT_STOP
    await hub.release(held[1], Release.REASON_STOPPING)
    with refused(LeaseLost):
        await hub.lease(shard(run, 2))
    await hub.dispatcher.step()
    shards = await hub.shards(run.name)
    assert [row["state"] for row in shards] == ["DONE"] + ["PENDING"] * (len(shards) - 1)
    assert {row["faults"] for row in shards} == {0}
    resumed = await resume(hub, run)
    assert (resumed.state, resumed.epoch, resumed.state_message) == (Run.STATE_RUNNING, 2, "")
    assert (await end(here, run)).state == Run.STATE_SUCCEEDED
    assert [row["attempt"] for row in await hub.shards(run.name)] == [1, 2] + [1] * (len(shards) - 2)


@pytest.mark.parametrize("how", ["paused", "resumed at once"])
async def test_a_holder_whose_ring_was_lost_is_rung_again(hub: Hub, how: str) -> None:
    run, other = await hub.create(100), await hub.create(10)
    held = await hub.lease(shard(run), "a")
    await hub.lease(shard(other), "b")
    await pause(hub, run)
    if how == "resumed at once":
        await resume(hub, run)
    heard: list[str] = []

    async def hear(message: Msg) -> None:
        heard.append(event_pb2.RenewLeases.FromString(message.data).runner)

    await hub.bus.listen(f"{bus.RENEW}.*", hear)
    await hub.reaper.step()
    await eventually(lambda: heard == ["a"])
    await hub.release(held, Release.REASON_STOPPING)
    heard.clear()
    await hub.reaper.step()
    await asyncio.sleep(0.2)
    assert "a" not in heard


async def test_a_run_that_nobody_began_is_queued_again(hub: Hub) -> None:
    run = await hub.create(10)
    assert (await pause(hub, run)).state == Run.STATE_PAUSED
    resumed = await resume(hub, run)
    assert (resumed.state, resumed.epoch, resumed.HasField("start_time")) == (Run.STATE_QUEUED, 2, False)
    await hub.keep("a")
    await hub.dispatcher.step()
    assert [row["state"] for row in await hub.shards(run.name)] == ["QUEUED"]


async def test_the_time_in_which_a_run_stands_is_not_counted(here: World) -> None:
    hub = here.hub
    run = await hub.create(10)
    held = await hub.lease(shard(run))
    await hub.db.execute("UPDATE runs SET working_since = working_since - interval '100 s'")
    await pause(hub, run)
    await hub.release(held, Release.REASON_STOPPING)
    await hub.db.execute("UPDATE runs SET created_at = created_at - interval '1 day'")
    await resume(hub, run)
    await hub.db.execute("UPDATE runs SET working_since = working_since - interval '10 s'")
    assert (await end(here, run)).state == Run.STATE_SUCCEEDED
    assert 110 <= here.scorer.sealed[-1].seconds < 120
    here.scorer.missing[run.name] = 1
    await hub.db.execute(
        "UPDATE runs SET working_since = working_since - interval '1 h',"
        " worked_until = worked_until - interval '1 h'"
    )
    await resume(hub, run)
    await hub.db.execute("UPDATE runs SET working_since = working_since - interval '5 s'")
    await end(here, run)
    assert 115 <= here.scorer.sealed[-1].seconds < 125


async def test_a_lease_that_runs_out_while_its_run_stands_is_no_fault(hub: Hub) -> None:
    run = await hub.create(10)
    await hub.lease(shard(run))
    await pause(hub, run)
    await hub.db.execute("UPDATE shards SET expires_at = now() - interval '1 s'")
    await hub.reaper.step()
    assert [(row["state"], row["faults"]) for row in await hub.shards(run.name)] == [("PENDING", 0)]


async def test_a_run_whose_shards_ended_while_it_stood_is_reported(here: World) -> None:
    run = await here.hub.create(10)
    held = await here.hub.lease(shard(run))
    await pause(here.hub, run)
    await here.hub.complete(held)
    await here.hub.sealer.step()
    assert (await here.hub.get(run.name)).state == Run.STATE_SUCCEEDED


async def test_what_ends_or_has_ended_cannot_be_paused(here: World) -> None:
    run = await here.hub.create(10)
    await finish(here.hub, run)
    with refused(FailedPrecondition) as caught:
        await pause(here.hub, run)
    assert "its trials have all ended" in caught[0].message
    await here.hub.sealer.step()
    with refused(FailedPrecondition):
        await pause(here.hub, run)
    with refused(NotFound):
        await pause(here.hub, Run(name="r00000000000"))


async def test_a_provider_that_refuses_for_good_pauses_its_own_epoch_only(hub: Hub) -> None:
    run = await hub.create(100)
    held = [await hub.lease(shard(run, number)) for number in range(2)]
    await hub.release(held[0], Release.REASON_PERMANENT, "insufficient_quota: pay first")
    paused = await hub.get(run.name)
    assert (paused.state, paused.state_message) == (Run.STATE_PAUSED, "insufficient_quota: pay first")
    # The account was filled up while another runner was still about to say the same.
    await resume(hub, run)
    await hub.release(held[1], Release.REASON_PERMANENT, "insufficient_quota: pay first")
    now = await hub.get(run.name)
    assert (now.state, now.state_message) == (Run.STATE_RUNNING, "")
    assert {row["state"] for row in await hub.shards(run.name)} == {"PENDING"}


# Resuming


async def test_an_ended_run_runs_what_is_missing_and_nothing_else(here: World) -> None:
    hub = here.hub
    run = await hub.create(100)
    assert (await end(here, run)).state == Run.STATE_SUCCEEDED
    here.scorer.missing[run.name] = 2
    before = await hub.shards(run.name)
    resumed = await resume(hub, run)
    assert (resumed.state, resumed.epoch) == (Run.STATE_RUNNING, 2)
    assert not resumed.HasField("end_time")
    assert resumed.progress.shards_done == len(before) - 2
    shards = await hub.shards(run.name)
    assert [row["state"] for row in shards] == ["PENDING"] * 2 + ["DONE"] * (len(before) - 2)
    ranges = here.scorer.asked[-1].ranges
    assert [(r.first_position, r.last_position, r.count) for r in ranges] == [
        (row["first"], row["first"] + row["count"] - 1, row["count"]) for row in before
    ]
    claims = [(await hub.lease(shard(run, number))).claims for number in range(2)]
    assert {(claim.epoch, claim.attempt) for claim in claims} == {(2, 2)}
    for number in range(2):
        await hub.complete(_held(claims[number]))
    await hub.sealer.step()
    assert (await hub.get(run.name)).state == Run.STATE_SUCCEEDED
    assert [sealed.epoch for sealed in here.scorer.sealed] == [1, 2]


def _held(claims: lease_pb2.LeaseClaims) -> Held:
    return Held(lease_pb2.SignedLease(), claims, 0, 0)


async def test_a_complete_run_is_left_as_it_is(here: World) -> None:
    run = await here.hub.create(100)
    complete = await end(here, run)
    assert await resume(here.hub, run) == complete
    assert await here.hub.db.fetchval("SELECT count(*) FROM shards WHERE state <> 'DONE'") == 0


async def test_a_cancelled_run_can_be_resumed(here: World) -> None:
    hub = here.hub
    run = await hub.create(100)
    await hub.complete(await hub.lease(shard(run)))
    held = await hub.lease(shard(run, 1))
    await cancel(hub, run)
    with refused(FailedPrecondition) as caught:
        await resume(hub, run)
    assert "wait until it is cancelled, then resume it" in caught[0].message
    await hub.release(held, Release.REASON_STOPPING)
    await hub.sealer.step()
    here.scorer.missing[run.name] = 100
    resumed = await resume(hub, run)
    assert (resumed.state, resumed.epoch) == (Run.STATE_RUNNING, 3)
    # Who worked for the epoch before has nothing to say any more.
    with refused(LeaseLost):
        await hub.complete(held)
    assert (await end(here, run)).state == Run.STATE_SUCCEEDED


async def test_a_run_that_failed_can_be_resumed(here: World) -> None:
    hub = here.hub
    here.scorer.load_error = (grpc.StatusCode.NOT_FOUND, "no such predictions")
    hub.start()
    run = await hub.create(100, predictions=run_pb2.Predictions(digest=DIGEST))
    assert (await ended(hub, run)).state == Run.STATE_FAILED
    here.scorer.load_error = None
    here.scorer.missing[run.name] = 100
    await resume(hub, run)
    assert (await ended(hub, run)).state == Run.STATE_SUCCEEDED


async def test_a_given_up_shard_gets_all_its_chances_again(here: World) -> None:
    hub = here.hub
    run = await hub.create(10, selection=run_pb2.Selection(limit=1))
    for _ in range(3):
        await hub.release(await hub.lease(shard(run)), Release.REASON_FAULT, "it broke")
    await hub.sealer.step()
    assert (await hub.shards(run.name))[0]["state"] == "ABANDONED"
    here.scorer.missing[run.name] = 1
    await resume(hub, run)
    row = (await hub.shards(run.name))[0]
    assert (row["state"], row["faults"], row["reason"], row["attempt"]) == ("PENDING", 0, "", 3)


async def test_a_repeated_request_to_resume_does_it_once(here: World) -> None:
    run = await here.hub.create(100)
    seen = await end(here, run)
    here.scorer.missing[run.name] = 1
    await resume(here.hub, run, seen.epoch)
    again = await end(here, run)
    # Some trials fail for ever: they are still missing. The answer to the first request had been lost.
    assert await resume(here.hub, run, seen.epoch) == again


async def test_ranges_of_samples_and_repeats(here: World) -> None:
    selection = run_pb2.Selection(sample=30)
    run = await here.hub.create(1000, selection=selection, trials=3, seed=7)
    await end(here, run)
    await resume(here.hub, run)
    positions = await here.hub.db.fetchval("SELECT selection FROM runs WHERE id = $1", run.name)
    held = [(position, trial) for position in positions for trial in range(3)]
    ranges = here.scorer.asked[-1].ranges
    expected = []
    for row in await here.hub.shards(run.name):
        trials = held[row["first"] : row["first"] + row["count"]]
        expected.append((*trials[0], *trials[-1], len(trials)))
    assert [
        (r.first_position, r.first_trial, r.last_position, r.last_trial, r.count) for r in ranges
    ] == expected


async def test_resuming_needs_the_scorer(here: World) -> None:
    run = await here.hub.create(10)
    await here.hub.complete(await here.hub.lease(shard(run)))
    await here.hub.sealer.step()
    here.scorer.away = True
    with refused(Unavailable):
        await resume(here.hub, run)
    assert (await here.hub.get(run.name)).state == Run.STATE_SUCCEEDED


async def test_the_model_must_be_what_it_was(here: World) -> None:
    hub = here.hub
    run = await hub.create(10)
    await hub.release(await hub.lease(shard(run)), Release.REASON_PERMANENT, "bad key")
    # To give it a new key, it is removed and added again; meanwhile there is nothing to resume with.
    await hub.db.execute("DELETE FROM models WHERE name = 'gpt'")
    with refused(FailedPrecondition) as caught:
        await resume(hub, run)
    assert "was removed; add it again" in caught[0].message
    await register_model(hub.db)
    await hub.db.execute("UPDATE models SET base_url = 'http://elsewhere/v1'")
    with refused(FailedPrecondition) as caught:
        await resume(hub, run)
    assert "is another one now" in caught[0].message
    await hub.db.execute("UPDATE models SET base_url = 'http://127.0.0.1:9/v1'")
    assert (await resume(hub, run)).state == Run.STATE_RUNNING


async def test_an_old_seal_does_not_end_what_was_resumed(here: World) -> None:
    """A hub stands still between the scorer's answer and its own commit, until the run is SCORING once more."""
    hub = here.hub
    run = await hub.create(10)
    await finish(hub, run)
    scoring = asyncio.Event()
    frozen = asyncio.Event()

    class Slow:
        async def SealRun(self, request: Any, timeout: float) -> Any:  # noqa: N802
            frozen.set()
            await scoring.wait()
            return result_pb2.SealRunResponse(state=result_pb2.SealRunResponse.STATE_REPORTED)

    sealer = type(hub.sealer)(hub.db, hub.locks, Slow(), hub.wakes)  # type: ignore[arg-type]
    late = asyncio.create_task(sealer.step())
    await frozen.wait()
    await hub.sealer.step()
    here.scorer.missing[run.name] = 1
    await resume(hub, run)
    await finish(hub, run)
    scoring.set()
    await late
    assert (await hub.get(run.name)).state == Run.STATE_SCORING
    await hub.sealer.step()
    assert (await hub.get(run.name)).state == Run.STATE_SUCCEEDED


@pytest.mark.parametrize("seed", range(3))
async def test_everybody_does_everything_at_once(here: World, seed: int) -> None:
    """Callers of two hubs pause, resume and cancel while runners work: no state is lost or stuck, no shard counted
    twice."""
    luck = Random(seed)
    async with here.another_hub() as second:
        hubs = (here.hub, second)
        for hub in hubs:
            hub.start()
        run = await here.hub.create(100)
        here.scorer.missing[run.name] = 2

        async def meddle(hub: Hub) -> None:
            for _ in range(12):
                act = luck.choice([pause, pause, resume, resume, resume, cancel])
                try:
                    await act(hub, run)
                except grpc.RpcError as failure:
                    if not isinstance(error_of(failure), FailedPrecondition | Unavailable):
                        raise
                await asyncio.sleep(luck.random() * 0.05)

        async def work(runner: str, hub: Hub) -> None:
            while True:
                await hub.keep(runner)
                for message in await hub.bus.pull_rings(2, wait=0.1):
                    name = event_pb2.ShardQueued.FromString(message.data).shard
                    await message.ack()
                    try:
                        held = await hub.lease(name, runner, str(uuid.uuid4()))
                        await asyncio.sleep(luck.random() * 0.02)
                        if (await hub.renew(held)).verdict == lease_pb2.RenewLeaseResponse.VERDICT_GO_ON:
                            await hub.complete(held)
                        else:
                            await hub.release(held, Release.REASON_STOPPING)
                    except grpc.RpcError as failure:
                        # On a busy machine PostgreSQL may not answer in time: what was meant is then done later.
                        if not isinstance(error_of(failure), LeaseLost | Unavailable):
                            raise

        workers = [asyncio.create_task(work(f"r{n}", hubs[n % 2])) for n in range(3)]
        await asyncio.gather(*(meddle(hub) for hub in (*hubs, *hubs)))
        async with asyncio.timeout(20):
            while (now := await here.hub.get(run.name)).state == Run.STATE_CANCELLING:
                await asyncio.sleep(0.05)
            await resume(second, run)
            assert (await ended(here.hub, run)).state in (Run.STATE_SUCCEEDED, Run.STATE_CANCELLED)
        for worker in workers:
            worker.cancel()
        for outcome in await asyncio.gather(*workers, return_exceptions=True):
            assert isinstance(outcome, asyncio.CancelledError), outcome
    assert now.epoch >= 1
    row = await here.hub.db.fetchrow("SELECT * FROM runs WHERE id = $1", run.name)
    assert row is not None
    assert row["shards_open"] == 0
    assert {shard["state"] for shard in await here.hub.shards(run.name)} <= {"DONE", "ABANDONED"}
    assert await here.hub.db.fetchval("SELECT count(*) FROM permits") == 0


# Removing


async def test_an_ended_run_is_removed_here_and_at_the_scorer(here: World) -> None:
    hub = here.hub
    run, other = await hub.create(100), await hub.create(10)
    with refused(FailedPrecondition) as caught:
        await remove(hub, run)
    assert "a run that is QUEUED cannot be removed: cancel it first" in caught[0].message
    await end(here, run)
    await remove(hub, run)
    assert here.scorer.removed == [run.name] * 2
    for call in (hub.get(run.name), remove(hub, run), pause(hub, run), resume(hub, run), cancel(hub, run)):
        with refused(NotFound):
            await call
    assert await hub.db.fetchval("SELECT count(DISTINCT run_id) FROM shards") == 1
    assert await hub.db.fetchval("SELECT count(*) FROM removed_runs") == 0
    with refused(NotFound):
        await hub.lease(shard(run))
    assert (await hub.get(other.name)).state == Run.STATE_QUEUED


async def test_what_the_scorer_could_not_remove_is_removed_later(here: World) -> None:
    hub = here.hub
    run = await hub.create(10)
    await end(here, run)
    here.scorer.away = True
    await remove(hub, run)
    await hub.removals.step()
    assert await hub.db.fetchval("SELECT run_id FROM removed_runs") == run.name
    here.scorer.away = False
    # By any hub, after any crash.
    async with here.another_hub() as second:
        await second.removals.step()
    assert here.scorer.removed == [run.name] * 2
    assert await hub.db.fetchval("SELECT count(*) FROM removed_runs") == 0


async def test_recorded_answers_go_with_their_last_run(here: World) -> None:
    hub = here.hub
    hub.start()
    here.scorer.predictions = {("d" * 64, DIGEST)}
    runs = [await hub.create(10, predictions=run_pb2.Predictions(digest=DIGEST)) for _ in range(2)]
    for run in runs:
        await ended(hub, run)
    await remove(hub, runs[0])
    assert here.scorer.predictions
    await remove(hub, runs[1])
    assert not here.scorer.predictions


async def test_runs_are_removed_when_they_have_been_kept_long_enough(here: World) -> None:
    hub = here.hub
    runs = [await hub.create(10) for _ in range(25)]
    for run in runs[1:]:
        await end(here, run)
    await hub.db.execute(
        "UPDATE runs SET ended_at = ended_at - interval '8 days' WHERE id <> $1", runs[1].name
    )
    await hub.removals.expire(timedelta(days=7))
    left = {row["id"] for row in await hub.db.fetch("SELECT id FROM runs")}
    assert left == {runs[0].name, runs[1].name}
    assert set(here.scorer.removed) == {run.name for run in runs[2:]}


async def test_who_follows_a_removed_run_is_told(here: World) -> None:
    run = await here.hub.create(10)
    watch = here.hub.runs.WatchRun(run_pb2.WatchRunRequest(name=run.name), metadata=here.hub.as_())
    await watch.read()
    await here.hub.db.execute("DELETE FROM runs")
    with refused(NotFound):
        async with asyncio.timeout(5):
            _ = [now async for now in watch]
