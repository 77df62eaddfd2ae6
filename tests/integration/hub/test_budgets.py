"""Budgets on a real PostgreSQL: reserved for leases, settled, used up, replaced; over two hubs, models and keys."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from benchgen.errors import FailedPrecondition, InvalidInput, LeaseLost, Unavailable
from benchgen.eval.v1 import lease_pb2, run_pb2
from services.common.auth import DailyLimits
from services.hub.runs.budget_messages import duration
from tests.conftest import Database
from tests.integration.hub.runs_support import (
    Held,
    Hub,
    World,
    finish,
    publish,
    refused,
    register_model,
    run_request,
    shard,
    world,
)

Answer = lease_pb2.RenewLeaseResponse
STOPPING = lease_pb2.ReleaseShardRequest.REASON_STOPPING
DAY = "budget of the API key"


@pytest.fixture
async def here(database: Callable[..., Database], nats_url: str) -> AsyncIterator[World]:
    async with world(database().dsn("hub"), nats_url) as made:
        await register_model(made.hub.db, "priced", price="1")
        await register_model(made.hub.db, "other", price="1")
        yield made


@pytest.fixture
def hub(here: World) -> Hub:
    return here.hub


def says(
    sequence: int,
    *,
    spent: int = 0,
    held: int | None = None,
    needs: int = 0,
    wants: int | None = None,
    errors: int = 0,
) -> lease_pb2.Spending:
    """What a runner says: the same number of tokens as of money."""
    held = spent if held is None else held
    wants = needs if wants is None else wants
    return lease_pb2.Spending(
        sequence=sequence,
        spent_picousd=spent,
        spent_tokens=spent,
        held_picousd=held,
        held_tokens=held,
        next_picousd=needs,
        next_tokens=needs,
        wanted_picousd=wants,
        wanted_tokens=wants,
        errors=errors,
    )


async def budgeted(hub: Hub, cases: int = 100, *, model: str = "priced", **budget: Any) -> run_pb2.Run:
    return await hub.create(cases, model=model, budget=run_pb2.Budget(**budget))


async def resume(hub: Hub, run: run_pb2.Run, **budget: Any) -> run_pb2.Run:
    request = run_pb2.ResumeRunRequest(name=run.name, budget=run_pb2.Budget(**budget) if budget else None)
    return await hub.runs.ResumeRun(request, metadata=hub.as_())


async def sums(hub: Hub, run: run_pb2.Run) -> tuple[int, int]:
    """What is held and spent of a run's cost budget, after comparing every sum with the grants behind it."""
    row = await hub.db.fetchrow(
        "SELECT s.held_picousd AS held, s.spent_picousd AS spent, g.held AS held_by_grants, g.spent AS spent_by_grants,"
        " (SELECT sum(held_picousd) FROM key_spend) AS of_keys, (SELECT sum(held_picousd) FROM run_spend) AS of_runs"
        " FROM run_spend s, LATERAL (SELECT coalesce(sum(spent_picousd), 0) AS spent, coalesce(sum(CASE state"
        "   WHEN 'CLOSED' THEN spent_picousd ELSE greatest(granted_picousd, spent_picousd) END), 0) AS held"
        "   FROM grants WHERE run_id = $1) AS g WHERE s.run_id = $1",
        run.name,
    )
    assert row is not None
    assert (row["held"], row["spent"]) == (row["held_by_grants"], row["spent_by_grants"])
    assert row["of_keys"] == row["of_runs"]
    return row["held"], row["spent"]


async def test_a_run_without_a_budget_is_not_metered(hub: Hub) -> None:
    run = await hub.create(100)
    held = await hub.lease(shard(run))
    assert held.grant is None
    assert not (await hub.renew(held)).HasField("grant")
    assert not run.HasField("budget")
    assert await hub.db.fetchval("SELECT count(*) FROM grants") == 0


async def test_a_lease_gets_what_its_calls_can_cost_and_gives_back_the_rest(hub: Hub) -> None:
    run = await budgeted(hub, cost_picousd=1000)
    held = await hub.lease(shard(run))
    assert held.grant is not None
    assert (held.grant.cost_picousd, held.grant.HasField("tokens")) == (0, False)
    answer = await hub.renew(held, says=says(1, needs=10, wants=300))
    assert answer.grant.cost_picousd == 300
    assert await sums(hub, run) == (300, 0)
    answer = await hub.renew(held, says=says(2, spent=40, held=60, needs=10, wants=100))
    assert answer.grant.cost_picousd == 160
    shown = (await hub.get(run.name)).budget
    assert (shown.cost_picousd, shown.used.cost_picousd, shown.used.reserved_picousd) == (1000, 40, 120)
    await hub.complete(held, says=says(3, spent=90))
    assert await sums(hub, run) == (90, 90)
    assert (await hub.get(run.name)).budget.used.reserved_picousd == 0


async def test_what_all_leases_may_spend_never_passes_the_budget(here: World, hub: Hub) -> None:
    """Many leases of two hubs at once, whose words overtake each other."""
    run = await budgeted(hub, 1000, cost_picousd=1000, tokens=900)
    chance = random.Random(7)
    async with here.another_hub() as second:
        hubs = (hub, second)
        leases = [
            await chance.choice(hubs).lease(shard(run, number), f"r{number % 5}") for number in range(16)
        ]

        async def work(held: Held) -> int:
            spent = 0
            for sequence in range(1, 9):
                answer = await chance.choice(hubs).renew(
                    held, says=says(sequence, spent=spent, needs=20, wants=200)
                )
                if answer.verdict != Answer.VERDICT_GO_ON:
                    break
                spent += chance.randint(0, min(answer.grant.tokens, answer.grant.cost_picousd) - spent)
            await hub.release(held, STOPPING, says=says(99, spent=spent))
            return spent

        spent = sum(await asyncio.gather(*map(work, leases)))
    assert spent <= 900
    assert await sums(hub, run) == (spent, spent)


async def test_a_used_up_budget_pauses_the_run_with_the_reason_and_more_lets_it_go_on(hub: Hub) -> None:
    run = await budgeted(hub, cost_picousd=100)
    first, second = await hub.lease(shard(run)), await hub.lease(shard(run, 1), "b")
    assert (await hub.renew(first, says=says(1, needs=40))).grant.cost_picousd == 40
    assert (await hub.renew(second, says=says(1, needs=40))).grant.cost_picousd == 40
    # The second one has a call in flight that may cost less.
    answer = await hub.renew(first, says=says(2, spent=40, needs=40))
    assert (answer.verdict, answer.grant.cost_picousd) == (Answer.VERDICT_GO_ON, 40)
    answer = await hub.renew(second, says=says(2, spent=30, needs=40))
    assert answer.verdict == Answer.VERDICT_STOP
    paused = await hub.get(run.name)
    assert paused.state == run_pb2.Run.STATE_PAUSED
    assert paused.state_message == (
        "budget: $0.00000000007 of $0.0000000001 spent, the next call may cost $0.00000000004"
    )
    assert (await hub.renew(first, says=says(3, spent=40))).verdict == Answer.VERDICT_STOP
    await hub.release(first, STOPPING, says=says(4, spent=40))
    await hub.release(second, STOPPING, says=says(3, spent=30))
    with refused(LeaseLost):
        await hub.lease(shard(run))
    resumed = await resume(hub, run, cost_picousd=200)
    assert (resumed.state, resumed.state_message) == (run_pb2.Run.STATE_RUNNING, "")
    assert (resumed.budget.cost_picousd, resumed.budget.used.cost_picousd) == (200, 70)
    again = await hub.lease(shard(run))
    assert (await hub.renew(again, says=says(1, needs=40, wants=1000))).grant.cost_picousd == 65


async def test_a_run_that_is_under_way_keeps_its_budget_and_says_so(hub: Hub) -> None:
    limited, free = await budgeted(hub, tokens=50), await hub.create(100)
    for run in (limited, free):
        with refused(FailedPrecondition) as caught:
            await resume(hub, run, tokens=100)
        assert "keeps its budget while it is under way; pause it" in caught[0].message
    assert (await resume(hub, limited, tokens=50)).budget.tokens == 50
    assert not (await resume(hub, free)).HasField("budget")
    # A repeated request that knows of the time before is the one that was answered already.
    request = run_pb2.PauseRunRequest(name=limited.name)
    paused = await hub.runs.PauseRun(request, metadata=hub.as_())
    again = run_pb2.ResumeRunRequest(name=limited.name, epoch=paused.epoch, budget=run_pb2.Budget(tokens=100))
    for _ in range(2):
        assert (await hub.runs.ResumeRun(again, metadata=hub.as_())).budget.tokens == 100


async def test_resuming_without_more_pauses_again_at_the_next_call(hub: Hub) -> None:
    run = await budgeted(hub, tokens=50)
    held = await hub.lease(shard(run))
    assert (await hub.renew(held, says=says(1, needs=60))).verdict == Answer.VERDICT_STOP
    await hub.release(held, STOPPING, says=says(2))
    resumed = await resume(hub, run)
    assert resumed.budget.tokens == 50
    held = await hub.lease(shard(run))
    assert (await hub.renew(held, says=says(1, needs=60))).verdict == Answer.VERDICT_STOP
    assert (await hub.get(run.name)).state_message == (
        "budget: 0 of 50 tokens used, the next call may use 60"
    )


async def test_a_lost_lease_is_settled_by_what_was_recorded(here: World, hub: Hub) -> None:
    run = await budgeted(hub, cost_picousd=1000)
    held = await hub.lease(shard(run))
    await hub.renew(held, says=says(1, spent=0, needs=10, wants=500))
    await hub.db.execute("UPDATE shards SET expires_at = now() - interval '1 s' WHERE state = 'RUNNING'")
    here.scorer.away = True
    await hub.reaper.step()
    with pytest.raises(Unavailable):
        await hub.auditor.step()
    assert await sums(hub, run) == (500, 0), "until it is known, all of it may have been spent"
    # Another one takes it up meanwhile, and finds less.
    other = await hub.lease(shard(run), "b")
    assert (await hub.renew(other, says=says(1, needs=10, wants=900))).grant.cost_picousd == 250
    here.scorer.away = False
    here.scorer.charges[shard(run), held.claims.attempt] = (70, 70)
    await hub.auditor.step()
    await hub.auditor.step()
    assert await sums(hub, run) == (70 + 250, 70)
    # The first one was only slow: what it had spent and not stored is counted when it says so, once.
    for sequence in (2, 3):
        late = await hub.renew(held, says=says(sequence, spent=90))
        assert late.verdict == Answer.VERDICT_LOST
    assert await sums(hub, run) == (90 + 250, 90)
    await hub.complete(other, says=says(2, spent=10))
    assert await sums(hub, run) == (100, 100)


async def test_a_lease_that_is_renewed_late_goes_on_with_its_grant(here: World, hub: Hub) -> None:
    run = await budgeted(hub, cost_picousd=1000)
    held = await hub.lease(shard(run))
    await hub.renew(held, says=says(1, needs=10, wants=500))
    await hub.db.execute("UPDATE shards SET expires_at = now() - interval '1 s' WHERE state = 'RUNNING'")
    await hub.reaper.step()
    here.scorer.charges[shard(run), held.claims.attempt] = (30, 30)
    await hub.auditor.step()
    assert await sums(hub, run) == (30, 30)
    answer = await hub.renew(held, says=says(2, spent=40, held=60, needs=10, wants=100))
    assert (answer.verdict, answer.grant.cost_picousd) == (Answer.VERDICT_GO_ON, 160)
    assert await sums(hub, run) == (160, 40)
    await hub.complete(held, says=says(3, spent=120))
    assert await sums(hub, run) == (120, 120)


async def test_a_repeated_request_for_a_lease_reserves_nothing_twice(hub: Hub) -> None:
    run = await budgeted(hub, cost_picousd=1000)
    held = await hub.lease(shard(run), request_id="once")
    again = await hub.lease(shard(run), request_id="once")
    assert again.claims.attempt == held.claims.attempt
    assert (await hub.renew(again, says=says(1, needs=10, wants=500))).grant.cost_picousd == 500
    await hub.complete(again, says=says(2, spent=5))
    await hub.complete(again, says=says(3, spent=5))
    assert await sums(hub, run) == (5, 5)


async def test_working_time_pauses_a_run_and_does_not_pass_while_it_is_paused(hub: Hub) -> None:
    run = await hub.create(100, budget=run_pb2.Budget(time=duration(60)))
    held = await hub.lease(shard(run))
    assert held.grant is not None
    assert 55 < held.grant.time.ToTimedelta().total_seconds() <= 60
    assert not held.grant.HasField("cost_picousd")
    await hub.auditor.step()
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_RUNNING
    await hub.db.execute("UPDATE runs SET working_since = working_since - interval '61 s'")
    assert (await hub.renew(held, says=says(1))).grant.time.ToTimedelta().total_seconds() == 0
    await hub.auditor.step()
    paused = await hub.get(run.name)
    assert paused.state == run_pb2.Run.STATE_PAUSED
    assert paused.state_message == "budget: its working time of 60 s is over"
    assert paused.budget.used.time.ToTimedelta().total_seconds() > 60
    assert (await hub.renew(held, says=says(2))).verdict == Answer.VERDICT_STOP
    await resume(hub, run)
    await hub.auditor.step()
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_PAUSED
    request = run_pb2.ResumeRunRequest(name=run.name, budget=run_pb2.Budget(time=duration(120)))
    resumed = await hub.runs.ResumeRun(request, metadata=hub.as_())
    await hub.auditor.step()
    assert (await hub.get(run.name)).state == resumed.state == run_pb2.Run.STATE_RUNNING


async def test_errors_pause_a_run_and_are_counted_from_its_resumption(here: World, hub: Hub) -> None:
    run = await budgeted(hub, errors=2)
    held = await hub.lease(shard(run))
    assert held.grant is not None
    assert held.grant.errors == 2
    here.scorer.progress[run.name] = run_pb2.RunProgress(recorded=9, faults=2)
    await hub.auditor.step()
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_RUNNING
    here.scorer.progress[run.name].faults = 3
    await hub.renew(held, says=says(1, errors=3))
    assert hub.wakes.audit.is_set()
    await hub.auditor.step()
    paused = await hub.get(run.name)
    assert paused.state_message == "budget: 3 results stand at a fault, and 2 are allowed"
    await resume(hub, run)
    await hub.auditor.step()
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_RUNNING
    here.scorer.progress[run.name].faults = 6
    await hub.auditor.step()
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_PAUSED


async def test_a_budget_that_cannot_be_kept_is_refused_with_the_reason(hub: Hub) -> None:
    with refused(InvalidInput) as caught:
        await budgeted(hub, model="gpt", cost_picousd=100)
    assert "the price of prompts and replies of `gpt` is not known" in caught[0].message
    await publish(hub.db, 11, max_tokens=None)
    with refused(InvalidInput) as caught:
        await budgeted(hub, 11, cost_picousd=100, tokens=5)
    assert "budget.cost: nothing bounds what a reply can cost" in caught[0].message
    assert "budget.tokens: nothing bounds how long a reply can get" in caught[0].message
    with refused(InvalidInput) as caught:
        await hub.create(10, budget=run_pb2.Budget(cost_picousd=-1, time=duration(0)))
    assert "budget.cost_picousd" in caught[0].message
    assert "budget.time" in caught[0].message
    # What calls nothing costs nothing, and what is free needs no bound of its cost.
    for model in ("builtin/constant", "builtin/simulated", "builtin/oracle"):
        await budgeted(hub, 11, model=model, cost_picousd=0)
    run = await hub.create(10, model="gpt")
    held = await hub.lease(shard(run))
    paused = await hub.runs.PauseRun(run_pb2.PauseRunRequest(name=run.name), metadata=hub.as_())
    await hub.release(held, STOPPING)
    with refused(InvalidInput):
        await resume(hub, run, cost_picousd=10)
    assert (await hub.get(run.name)).epoch == paused.epoch


async def test_a_budget_that_is_given_later_counts_what_was_recorded_before(here: World, hub: Hub) -> None:
    run = await hub.create(100, model="priced")
    held = await hub.lease(shard(run))
    await hub.runs.PauseRun(run_pb2.PauseRunRequest(name=run.name), metadata=hub.as_())
    await hub.release(held, STOPPING)
    here.scorer.progress[run.name] = run_pb2.RunProgress(cost_picousd=80, input_tokens=5, output_tokens=3)
    resumed = await resume(hub, run, cost_picousd=100)
    assert (resumed.budget.used.cost_picousd, resumed.budget.used.tokens) == (80, 8)
    held = await hub.lease(shard(run))
    assert (await hub.renew(held, says=says(1, needs=21))).verdict == Answer.VERDICT_STOP


async def test_a_key_may_spend_so_much_a_day_over_all_its_runs_and_models(here: World, hub: Hub) -> None:
    limits = DailyLimits(picousd=100, tokens=None, version=1)

    async def create(model: str, key: str) -> run_pb2.Run:
        daily = limits if key == "k1" else DailyLimits()
        return await hub.runs.CreateRun(run_request(100, model=model), metadata=hub.as_(key=key, daily=daily))

    first, second = await create("priced", "k1"), await create("other", "k1")
    free = await create("other", "k2")
    assert (await hub.lease(shard(free))).grant is None
    one, two = await hub.lease(shard(first)), await hub.lease(shard(second))
    assert (await hub.renew(one, says=says(1, needs=60))).grant.cost_picousd == 60
    waiting = await hub.renew(two, says=says(1, needs=60))
    assert (waiting.verdict, waiting.grant.cost_picousd) == (Answer.VERDICT_GO_ON, 0)
    await hub.complete(one, says=says(2, spent=55))
    assert (await hub.renew(two, says=says(2, needs=60))).verdict == Answer.VERDICT_STOP
    message = (await hub.get(second.name)).state_message
    assert message.startswith(f"{DAY} k1 for 2")
    assert "$0.000000000055 of $0.0000000001 spent" in message
    # More for the key, said with any call of it; what was said before arrives late and changes nothing.
    for daily in (DailyLimits(200, None, 2), limits):
        await hub.runs.GetRun(run_pb2.GetRunRequest(name=first.name), metadata=hub.as_(key="k1", daily=daily))
    await hub.release(two, STOPPING, says=says(3))
    await resume(hub, second)
    two = await hub.lease(shard(second))
    assert (await hub.renew(two, says=says(1, needs=60))).grant.cost_picousd == 60
    # A new day.
    await hub.complete(two, says=says(2, spent=60))
    await hub.db.execute("UPDATE key_spend SET day = day - 1")
    await hub.db.execute("UPDATE grants SET day = day - 1")
    three = await hub.lease(shard(second, 1))
    assert (await hub.renew(three, says=says(1, needs=190))).grant.cost_picousd == 190


async def test_a_key_with_a_daily_budget_makes_no_run_of_unknown_price(hub: Hub) -> None:
    running = await hub.create(100, model="gpt")
    daily = hub.as_(daily=DailyLimits(100, None, 1))
    with refused(InvalidInput) as caught:
        await hub.runs.CreateRun(run_request(100, model="gpt"), metadata=daily)
    assert "(this API key has a daily budget)" in caught[0].message
    # One that was there before is paused.
    with refused(LeaseLost):
        await hub.lease(shard(running))
    # Nobody has worked on it: it waits for a key without limits, or a price.
    shown = await hub.get(running.name)
    assert shown.state == run_pb2.Run.STATE_PAUSED
    assert "is not known" in shown.state_message


async def test_a_removed_run_gives_back_what_its_key_had_reserved(here: World, hub: Hub) -> None:
    run = await budgeted(hub, cost_picousd=1000)
    held = await hub.lease(shard(run))
    await hub.renew(held, says=says(1, spent=30, held=40, needs=10, wants=400))
    await hub.db.execute("UPDATE shards SET expires_at = now() - interval '1 s' WHERE state = 'RUNNING'")
    await hub.runs.CancelRun(run_pb2.CancelRunRequest(name=run.name), metadata=hub.as_())
    await hub.reaper.step()
    await hub.sealer.step()
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_CANCELLED
    await hub.runs.DeleteRun(run_pb2.DeleteRunRequest(name=run.name), metadata=hub.as_())
    row = await hub.db.fetchrow("SELECT held_picousd, spent_picousd FROM key_spend")
    assert row is not None
    assert tuple(row) == (30, 30)
    await hub.auditor.step()


async def test_the_report_is_told_what_was_spent_of_what(here: World, hub: Hub) -> None:
    run = await budgeted(hub, 10, cost_picousd=1000)
    held = await hub.lease(shard(run))
    await hub.complete(held, says=says(1, spent=120))
    await hub.sealer.step()
    sealed = here.scorer.sealed[-1].budget
    assert (sealed.cost_picousd, sealed.used.cost_picousd) == (1000, 120)
    plain = await hub.create(10)
    await finish(hub, plain)
    await hub.sealer.step()
    assert not here.scorer.sealed[-1].HasField("budget")


async def test_an_audit_that_comes_too_late_changes_nothing(here: World, hub: Hub) -> None:
    run = await hub.create(100, budget=run_pb2.Budget(time=duration(60)))
    await hub.lease(shard(run))
    await hub.db.execute("UPDATE runs SET working_since = working_since - interval '61 s'")
    await hub.runs.CancelRun(run_pb2.CancelRunRequest(name=run.name), metadata=hub.as_())
    await hub.auditor.step()
    assert (await hub.get(run.name)).state == run_pb2.Run.STATE_CANCELLING
    with refused(FailedPrecondition):
        await resume(hub, run)


async def estimated(hub: Hub, cases: int = 10, **fields: Any) -> run_pb2.RunEstimate:
    request = run_pb2.EstimateRunRequest(run=run_request(cases, request_id="", **fields))
    return await hub.runs.EstimateRun(request, metadata=hub.as_())


async def test_an_estimate_says_the_most_and_makes_nothing(hub: Hub) -> None:
    found = await estimated(hub, model="priced", trials=2)
    assert (found.environment, found.planned, found.calls) == ("cases-10@1.0.0", 20, 20)
    # Case n asks with n letters; a reply has at most 64 tokens.
    assert found.input_tokens == -(-2 * sum(range(10)) // 4)
    assert found.most_output_tokens == 20 * 64
    assert found.most_input_tokens > 2 * sum(range(10))
    assert found.most_cost_picousd == (found.most_input_tokens + found.most_output_tokens) * 10**6
    assert not found.unknown
    sample = await estimated(hub, model="priced", selection=run_pb2.Selection(sample=3), seed=1)
    assert (sample.planned, sample.calls) == (3, 3)
    assert await hub.db.fetchval("SELECT count(*) FROM runs") == 0


async def test_an_estimate_says_what_is_not_known_and_why(hub: Hub) -> None:
    await publish(hub.db, 11, max_tokens=None)
    found = await estimated(hub, 11)
    assert not found.HasField("most_cost_picousd")
    assert not found.HasField("most_output_tokens")
    assert "the price of prompts and replies of `gpt` is not known" in found.unknown[0]
    assert "nothing bounds how long a reply can get" in found.unknown[1]
    free = await estimated(hub, model="builtin/constant")
    assert (free.calls, free.most_cost_picousd, list(free.unknown)) == (0, 0, [])
    with refused(InvalidInput):
        await estimated(hub, model="priced", trials=10_000)
