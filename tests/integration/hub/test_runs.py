"""Runs on real servers: made once, and shown as they are."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import orjson
import pytest

from benchgen.errors import (
    AlreadyExists,
    InvalidInput,
    NotFound,
    PermissionDenied,
)
from benchgen.eval.v1 import environment_pb2, run_pb2
from services.common.auth import Scope
from services.hub.runs import store
from tests.conftest import Database
from tests.integration.hub.runs_support import (
    Hub,
    World,
    cancel,
    publish,
    refused,
    run_request,
    shard,
    world,
)

DIGEST = "a" * 64
Run = run_pb2.Run


@pytest.fixture
async def here(database: Callable[..., Database], nats_url: str) -> AsyncIterator[World]:
    async with world(database().dsn("hub"), nats_url) as made:
        yield made


@pytest.fixture
def hub(here: World) -> Hub:
    return here.hub


# Creating


async def test_a_run_is_made_with_all_its_shards(hub: Hub) -> None:
    run = await hub.create(1000, trials=3, seed=7, priority=4)
    assert run.state == Run.STATE_QUEUED
    assert (run.spec.cases, run.spec.trials, run.spec.planned) == (1000, 3, 3000)
    assert (run.epoch, run.priority, run.spec.seed) == (1, 4, 7)
    assert run.spec.environment == "cases-1000@1.0.0"
    assert run.spec.run == run.name
    assert run.spec.primary_rule == "correct"
    assert not run.spec.simulated
    rows = await hub.shards(run.name)
    trials = [trial for row in rows for trial in range(row["first"], row["first"] + row["count"])]
    assert trials == list(range(3000))
    assert (run.progress.planned, run.progress.shards) == (3000, len(rows))


async def test_the_settings_of_the_run_win_over_the_harness_and_those_over_the_model(hub: Hub) -> None:
    own = environment_pb2.Generation(max_tokens=9, extra_json='{"n": 2, "logprobs": true}')
    run = await hub.create(10, generation=own)
    merged = run.spec.generation
    assert (merged.temperature, merged.top_p, merged.max_tokens) == (0.5, 0.9, 9)
    assert list(merged.stop) == ["END"]
    assert merged.extra_json == '{"logprobs":true,"n":2,"top_k":5}'


async def test_the_same_request_makes_one_run(here: World) -> None:
    request = run_request(100)
    async with here.another_hub() as second:
        runs = await asyncio.gather(
            *(hub.runs.CreateRun(request, metadata=hub.as_()) for hub in [here.hub, second] * 4)
        )
    assert len({run.name for run in runs}) == 1
    assert await here.hub.db.fetchval("SELECT count(*) FROM runs") == 1
    assert await here.hub.db.fetchval("SELECT count(*) FROM shards") == 7
    assert await here.hub.db.fetchval("SELECT count(*) FROM outbox") == 1


async def test_the_same_id_for_another_request_is_refused(hub: Hub) -> None:
    request = run_request(100)
    run = await hub.runs.CreateRun(request, metadata=hub.as_())
    request.trials = 2
    with refused(AlreadyExists) as errors:
        await hub.runs.CreateRun(request, metadata=hub.as_())
    assert run.name in errors[0].message


async def test_a_request_is_answered_again_when_it_could_not_be_made_again(hub: Hub) -> None:
    request = run_request(10)
    run = await hub.runs.CreateRun(request, metadata=hub.as_())
    await hub.db.execute("UPDATE versions SET yanked_at = now()")
    await hub.db.execute("UPDATE environments SET latest_version = NULL")
    assert (await hub.runs.CreateRun(request, metadata=hub.as_())).name == run.name


async def test_everything_that_is_wrong_is_said_at_once(hub: Hub) -> None:
    request = run_request(
        10,
        model="nobody",
        trials=5_000,
        priority=101,
        selection=run_pb2.Selection(limit=3, sample=11),
        generation=environment_pb2.Generation(temperature=-1, extra_json="["),
    )
    with refused(InvalidInput) as errors:
        await hub.runs.CreateRun(request, metadata=hub.as_())
    for part in (
        "no model `nobody`",
        "trials: expected 1 to 1,000, found 5,000",
        "priority: expected -100 to 100, found 101",
        "selection: expected limit or sample, found both (3 and 11)",
        "selection.sample: expected at most the 10 cases of cases-10@1.0.0, found 11",
        "generation.extra_json",
    ):
        assert part in errors[0].message
    assert await hub.db.fetchval("SELECT count(*) FROM runs") == 0


@pytest.mark.parametrize(
    ("fields", "kind", "text"),
    [
        ({"environment": "casse-10"}, NotFound, "casse-10"),
        ({"environment": ""}, InvalidInput, "environment: expected"),
        ({"model": "gtp"}, NotFound, "gpt"),
        ({"model": "builtin/nothing"}, InvalidInput, "builtin/oracle"),
        ({"predictions": run_pb2.Predictions(digest="x")}, InvalidInput, "predictions.digest"),
        ({"request_id": "one"}, InvalidInput, "request_id"),
        ({"environment": "cases-big", "trials": 1000}, InvalidInput, "10,001 cases x 1,000 = 10,001,000"),
    ],
)
async def test_what_cannot_be_run_is_refused(
    hub: Hub, fields: dict[str, Any], kind: type[InvalidInput], text: str
) -> None:
    if fields.get("environment") == "cases-big":
        await publish(hub.db, 10_001)
        fields = {**fields, "environment": "cases-10001"}
    with refused(kind) as errors:
        await hub.create(10, **fields)
    assert text in errors[0].message


@pytest.mark.parametrize(
    "fields",
    [
        {"model": "builtin/simulated?accuracy=0.5"},
        {"model": "builtin/constant"},
        {"model": "builtin/oracle"},
        {"predictions": run_pb2.Predictions(digest=DIGEST, label="mine.jsonl")},
    ],
    ids=str,
)
async def test_only_calls_of_an_endpoint_are_cached(hub: Hub, fields: dict[str, Any]) -> None:
    assert (await hub.create(10, use_cache=True)).spec.use_cache
    assert not (await hub.create(10)).spec.use_cache
    with refused(InvalidInput) as errors:
        await hub.create(10, use_cache=True, **fields)
    found = fields.get("model", "mine.jsonl")
    assert errors[0].message == (
        f"use_cache: expected a registered model, found {found}, whose answers are never cached"
    )


async def test_a_limit_above_all_cases_means_all(hub: Hub) -> None:
    assert (await hub.create(100, selection=run_pb2.Selection(limit=7))).spec.cases == 7
    assert (await hub.create(100, selection=run_pb2.Selection(limit=700))).spec.cases == 100


async def test_a_sample_is_the_same_for_the_same_seed(hub: Hub) -> None:
    runs = [await hub.create(1000, selection=run_pb2.Selection(sample=20), seed=seed) for seed in (3, 3, 4)]
    drawn = [await hub.db.fetchval("SELECT selection FROM runs WHERE id = $1", run.name) for run in runs]
    assert drawn[0] == drawn[1] != drawn[2]


async def test_what_answers_from_solutions_needs_them(hub: Hub) -> None:
    await publish(hub.db, 10, oracle=False)
    for model in ("builtin/oracle", "builtin/simulated?accuracy=0.5"):
        with refused(InvalidInput) as errors:
            await hub.create(10, environment="plain-10", model=model)
        assert "has none (no oracle)" in errors[0].message
    await hub.create(10, environment="plain-10", model="builtin/empty")


async def test_a_shard_of_a_program_is_one_start_of_it(hub: Hub) -> None:
    await publish(hub.db, 10, oracle=False, harness='{"type": "program", "batch": 4}')
    run = await hub.create(10, environment="plain-10", trials=2)
    assert orjson.loads(run.spec.harness_json)["batch"] == 4
    assert [row["count"] for row in await hub.shards(run.name)] == [4] * 5
    # Whose answers are there already starts nothing.
    loaded = await hub.create(10, environment="plain-10", model="builtin/empty")
    assert [row["count"] for row in await hub.shards(loaded.name)] == [10]


async def test_a_program_is_not_started_a_million_times(hub: Hub) -> None:
    await publish(hub.db, 2_000, oracle=False, harness='{"type": "program", "batch": 1}')
    with refused(InvalidInput) as errors:
        await hub.create(10, environment="plain-2000", trials=100)
    assert (
        "at most 100,000 starts of the program of plain-2000@1.0.0, found 200,000 trials" in errors[0].message
    )


async def test_a_simulated_run_says_so(hub: Hub) -> None:
    run = await hub.create(10, model="builtin/simulated?accuracy=0.5")
    assert run.spec.simulated
    assert run.spec.subject.model.model_id == "simulated?accuracy=0.5"
    assert run.spec.subject.model.base_url == "http://127.0.0.1:9/v1"


async def test_scopes_are_asked_for(hub: Hub) -> None:
    run = await hub.create(10)
    with refused(PermissionDenied):
        await hub.runs.CreateRun(run_request(10), metadata=hub.as_(Scope.READ))
    with refused(PermissionDenied):
        await hub.runs.CancelRun(run_pb2.CancelRunRequest(name=run.name), metadata=hub.as_(Scope.READ))
    with refused(PermissionDenied):
        await hub.runs.GetRun(run_pb2.GetRunRequest(name=run.name), metadata=hub.as_(Scope.RUN))
    with refused(PermissionDenied):
        await hub.runs.ListRuns(run_pb2.ListRunsRequest(), metadata=hub.as_(Scope.RUN))
    with refused(PermissionDenied):
        async for _ in hub.runs.WatchRun(run_pb2.WatchRunRequest(name=run.name), metadata=hub.as_(Scope.RUN)):
            pass


async def test_models_in_use_are_known(hub: Hub) -> None:
    run = await hub.create(10)
    async with hub.db.acquire() as conn:
        assert await store.has_active_runs(conn, "gpt")
        assert not await store.has_active_runs(conn, "other")
        await cancel(hub, run)
        await hub.sealer.step()
        assert not await store.has_active_runs(conn, "gpt")


# Showing


async def listed(hub: Hub, **fields: Any) -> run_pb2.ListRunsResponse:
    return await hub.runs.ListRuns(run_pb2.ListRunsRequest(**fields), metadata=hub.as_())


async def test_runs_are_listed_newest_first_by_pages(here: World) -> None:
    hub = here.hub
    runs = [await hub.create(10) for _ in range(5)]
    here.scorer.progress[runs[4].name] = run_pb2.RunProgress(recorded=4, passed=3)
    names, token = [], ""
    while True:
        page = await listed(hub, page_size=2, page_token=token)
        names += [run.name for run in page.runs]
        if page.runs[0].name == runs[4].name:
            assert (page.runs[0].progress.recorded, page.runs[0].progress.planned) == (4, 10)
        token = page.next_page_token
        if not token:
            break
    assert names == [run.name for run in reversed(runs)]


async def test_runs_are_listed_by_what_they_are(hub: Hub) -> None:
    await hub.create(10)
    other = await hub.create(100, model="builtin/echo")
    await hub.lease(shard(other))
    for fields, count in (
        ({"environment": "cases-10"}, 1),
        ({"environment": "cases-10@1.0.0"}, 1),
        ({"environment": "cases-10@2.0.0"}, 0),
        ({"model": "builtin/echo"}, 1),
        ({"state": Run.STATE_RUNNING}, 1),
        ({"state": Run.STATE_QUEUED, "model": "builtin/echo"}, 0),
        ({}, 2),
    ):
        assert len((await listed(hub, **fields)).runs) == count, fields
    for wrong in ({"page_token": "x"}, {"page_size": -1}, {"page_token": "WyJ4IiwgInkiXQ"}, {"state": 99}):
        with refused(InvalidInput):
            await listed(hub, **wrong)
    with refused(NotFound):
        await hub.get("r00000000000")


async def test_a_run_is_shown_without_a_scorer(database: Callable[..., Database], nats_url: str) -> None:
    async with world(database().dsn("hub"), nats_url) as made:
        run = await made.hub.create(10)
        await made.scorer_away()
        shown = await made.hub.get(run.name)
        assert (shown.progress.planned, shown.progress.shards) == (10, 1)
