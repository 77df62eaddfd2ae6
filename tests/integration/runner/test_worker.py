"""A whole runner, from the ring of a shard to the word that it is done: NATS, hub, scorer, endpoint."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import nats
import orjson
import pytest
import pytest_asyncio
from aiohttp import web
from nats.js.errors import NotFoundError
from pydantic import SecretStr

from benchgen.errors import (
    BenchgenError,
    FailedPrecondition,
    LeaseLost,
    NotFound,
    PermissionDenied,
    Unavailable,
)
from benchgen.eval.v1 import event_pb2, lease_pb2, model_pb2, run_pb2
from services.common import bus
from services.common.process import Process
from services.runner import app
from services.runner.config import RunnerSettings
from tests import conftest
from tests.integration.model_servers import http_server
from tests.integration.runner.bench import completion
from tests.integration.runner.support import Hub, Wire, serving, until, wire_to
from tests.integration.scorer.support import (
    Environment,
    Scorer,
    case_rows,
    claims_of,
    materialise,
    object_settings,
    stored,
)

# One loop and one scorer for all tests of the module: starting each takes longer than most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

Release = lease_pb2.ReleaseShardRequest
Answer = lease_pb2.RenewLeaseResponse


@dataclass
class World:
    """A runner and all that is around it."""

    hub: Hub
    scorer: Scorer
    environment: Environment
    rings: bus.Bus
    scorer_wire: Wire
    process: Process
    url: str
    gate: asyncio.Event
    asked: list[str]
    keys: set[str]

    def shards(self, count: int = 1, *, cases: int = 20, **fields: Any) -> run_pb2.RunSpec:
        """Give the hub the shards of a new run."""
        fields = {"name": "m", "base_url": self.url} | fields
        model = model_pb2.Model(model_id="m-1", **fields)
        spec = self.environment.spec(cases=cases * count, subject=run_pb2.Subject(model=model))
        for number in range(count):
            claims = claims_of(spec, first=number * cases, count=cases, attempt=0)
            claims.shard = f"{spec.run}-{number:06d}"
            self.hub.shards[claims.shard] = claims
        return spec

    async def ring(self, shard: str, *, sandboxed: bool = False) -> None:
        """Say that a shard is there to be leased."""
        payload = event_pb2.ShardQueued(shard=shard, sandboxed=sandboxed).SerializeToString()
        await self.rings.publish(bus.SHARDS_QUEUED, payload, message_id=secrets.token_hex(8))

    async def ring_all(self) -> None:
        """Say so of every shard."""
        for shard in self.hub.shards:
            await self.ring(shard)


@pytest_asyncio.fixture(loop_scope="module")
async def world(
    scorer: Scorer,
    environment: Environment,
    buckets: conftest.ObjectStore,
    nats_url: str,
) -> AsyncIterator[World]:
    """A runner that is ready. It is told to stop when the test has not done so."""
    gate, asked, keys = asyncio.Event(), list[str](), set[str]()
    gate.set()

    async def endpoint(request: web.Request) -> web.StreamResponse:
        key = request.headers.get("authorization", "")
        keys.add(key)
        if key == "Bearer bad":
            body = rb'{"error": {"message": "Incorrect API key \ud800\u0000"}}'
            return web.Response(body=body, status=401, content_type="application/json")
        asked.append(orjson.loads(await request.read())["messages"][-1]["content"])
        await gate.wait()
        return completion(str(2 * int(asked[-1].split()[0])))

    await purged(nats_url)
    hub = Hub(scorer.hub_key, seconds=30)
    async with (
        bus.connect(nats_url, "test") as rings,
        http_server(endpoint) as url,
        wire_to(scorer.port) as scorer_wire,
        serving(hub, scorer.tokens["runner"]) as port,
    ):
        settings = RunnerSettings(
            hub_address=f"127.0.0.1:{port}",
            scorer_address=f"127.0.0.1:{scorer_wire.port}",
            nats_url=SecretStr(nats_url),
            service_token=SecretStr(scorer.tokens["runner"]),
            simulator_token=SecretStr("for-the-simulator"),
            stop_seconds=0.5,
            runner_sandboxes=1,
            **dict(object_settings(buckets, "runner")),
        )
        async with working(settings) as process:
            yield World(hub, scorer, environment, rings, scorer_wire, process, url, gate, asked, keys)
            gate.set()
    await purged(nats_url)


@asynccontextmanager
async def working(settings: RunnerSettings) -> AsyncIterator[Process]:
    """A runner as its process runs it; it has stopped when the block ends."""
    async with asyncio.TaskGroup() as group:
        process = Process("runner", group)
        serve = group.create_task(app.serve(settings, process))
        try:
            await until(lambda: process.ready)
            yield process
        finally:
            process.stopping.set()
            async with asyncio.timeout(15):
                await serve


async def purged(url: str) -> None:
    """Rings of other tests are nobody's here."""
    client = await nats.connect(url)
    try:
        await client.jetstream().purge_stream(bus.SHARDS_STREAM)
    except NotFoundError:
        pass
    finally:
        await client.close()


async def rings_left(url: str) -> int:
    """How many rings have not been acknowledged."""
    client = await nats.connect(url)
    try:
        return int((await client.jetstream().stream_info(bus.SHARDS_STREAM)).state.messages)
    finally:
        await client.close()


async def test_shards_are_leased_worked_off_and_completed(world: World, nats_url: str) -> None:
    first = world.shards(3, cases=40, has_secret=True)
    second = world.shards(1, cases=20)
    world.hub.secret = "sk-1"
    await world.hub.until(lambda: len(world.hub.runners) == 1)
    # Rung twice, and for a shard that nobody knows: neither does any harm.
    await world.ring("r-nobody-knows-000000")
    await world.ring_all()
    await world.hub.until(lambda: len(world.hub.completed) == 4, 20)
    assert {request.shard for request in world.hub.completed} == set(world.hub.shards)
    assert {request.runner for request in world.hub.completed} == world.hub.runners
    assert {request.attempt for request in world.hub.completed} == {1}
    for spec, count in ((first, 120), (second, 20)):
        totals = await world.scorer.progress(spec.run)
        assert (totals.recorded, totals.passed) == (count, count)
    assert world.keys == {"Bearer sk-1", ""}
    assert world.hub.released == []
    await until(lambda: _none_left(nats_url))
    world.process.stopping.set()
    await world.hub.until(lambda: not world.hub.runners)


async def _none_left(url: str) -> bool:
    return await rings_left(url) == 0


async def test_a_provider_that_refuses_for_good_is_told_in_its_words(world: World) -> None:
    world.shards(has_secret=True)
    world.hub.secret = "bad"
    await world.ring_all()
    await world.hub.until(lambda: world.hub.released)
    (request,) = world.hub.released
    assert request.reason == Release.REASON_PERMANENT
    # Also when no text can hold them.
    assert request.message == "Incorrect API key \ufffd\ufffd"


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (FailedPrecondition("the secret of `m` was encrypted with another master key"), {}),
        (PermissionDenied("this lease was not signed by the hub"), {}),
        (NotFound("there is no model `m`"), {}),
        (None, {"base_url": "ftp://models/v1"}),
    ],
)
async def test_what_somebody_has_to_set_right_is_no_fault_of_a_shard(
    world: World, error: BenchgenError | None, fields: dict[str, Any]
) -> None:
    """Three faults, and the run would end as if there had been nothing to do."""
    world.shards(has_secret=True, **fields)
    world.hub.secret, world.hub.secret_error = "sk-1", error
    await world.ring_all()
    await world.hub.until(lambda: world.hub.released)
    (request,) = world.hub.released
    assert request.reason == Release.REASON_PERMANENT
    assert (error.message if error else "base_url: expected http://HOST") in request.message
    assert world.asked == []


async def test_a_lease_that_is_lost_before_the_first_call_is_no_refusal(world: World) -> None:
    world.shards(has_secret=True)
    world.hub.secret_error = LeaseLost("somebody else has it")
    await world.ring_all()
    await world.hub.until(lambda: world.hub.released)
    assert world.hub.released[0].reason == Release.REASON_FAULT


async def test_a_ring_that_nobody_can_read_is_put_away(world: World, nats_url: str) -> None:
    await world.rings.publish(bus.SHARDS_QUEUED, b"\xff\xff\xff", message_id=secrets.token_hex(8))
    await until(lambda: _none_left(nats_url))
    world.shards()
    await world.ring_all()
    await world.hub.until(lambda: world.hub.completed)


async def test_the_simulator_is_shown_a_token_of_its_own(world: World) -> None:
    """It is called by plain HTTP: what opens the hub must not go there."""
    world.shards(name="builtin/simulated")
    await world.ring_all()
    await world.hub.until(lambda: world.hub.completed)
    assert world.keys == {"Bearer for-the-simulator"}


async def test_a_runner_that_stops_hands_back_what_it_holds(world: World) -> None:
    spec = world.shards(2)
    world.gate.clear()
    await world.ring_all()
    await until(lambda: len(world.asked) >= 8)
    started = monotonic()
    world.process.stopping.set()
    await world.hub.until(lambda: not world.hub.runners)
    assert monotonic() - started < 5
    assert {request.reason for request in world.hub.released} == {Release.REASON_STOPPING}
    assert len(world.hub.released) == len({request.shard for request in world.hub.released}) >= 1
    assert (await world.scorer.progress(spec.run)).recorded == 0


async def test_a_runner_that_stops_while_results_cannot_be_stored(world: World) -> None:
    """The shard comes back at once, and not as a fault: nobody has to wait for the lease to run out."""
    world.shards()
    world.gate.clear()
    await world.ring_all()
    await until(lambda: len(world.asked) >= 8)
    await world.scorer_wire.close()
    world.gate.set()
    await asyncio.sleep(0.2)
    world.process.stopping.set()
    await world.hub.until(lambda: not world.hub.runners, 15)
    (request,) = world.hub.released
    assert request.reason == Release.REASON_STOPPING


async def test_a_run_that_is_cancelled_ends_at_once(world: World) -> None:
    world.shards()
    world.gate.clear()
    await world.ring_all()
    await until(lambda: len(world.asked) >= 8)
    world.hub.verdict = Answer.VERDICT_STOP
    started = monotonic()
    (name,) = world.hub.runners
    await world.rings.ring(f"{bus.RENEW}.{name}")
    await world.hub.until(lambda: world.hub.released)
    assert monotonic() - started < 2
    assert world.hub.released[0].reason == Release.REASON_STOPPING
    assert len(world.asked) == 8


async def test_a_run_that_is_cancelled_ends_soon_although_the_ring_is_lost(world: World) -> None:
    world.shards(2)
    world.gate.clear()
    await world.ring_all()
    await until(lambda: len(world.asked) >= 8)
    world.hub.verdict = Answer.VERDICT_STOP
    started = monotonic()
    await world.hub.until(lambda: len(world.hub.released) == len({r.shard for r in world.hub.renewals}) > 0)
    assert monotonic() - started < 2
    assert len(world.asked) == 8


async def test_a_lease_whose_answer_is_lost_is_asked_for_until_it_comes(world: World) -> None:
    """Else the shard would be nobody's until the lease has run out."""
    world.shards()
    world.hub.lost_leases = 4
    await world.ring_all()
    await world.hub.until(lambda: world.hub.completed)
    assert [request.attempt for request in world.hub.completed] == [1]
    assert len(world.hub.lease_requests) == 5
    assert len(set(world.hub.lease_requests)) == 1


async def test_a_shard_that_somebody_else_has_is_left_alone(world: World) -> None:
    world.shards()
    world.gate.clear()
    await world.ring_all()
    await until(lambda: len(world.asked) >= 8)
    world.hub.error = LeaseLost("it is somebody else's")
    (name,) = world.hub.runners
    await world.rings.ring(f"{bus.RENEW}.{name}")
    await until(lambda: len(world.hub.renewals) == 1)
    world.hub.error = None
    await asyncio.sleep(0.3)
    assert (world.hub.released, world.hub.completed) == ([], [])


async def test_a_hub_that_is_away_is_told_later(world: World) -> None:
    spec = world.shards()
    world.gate.clear()
    await world.ring_all()
    await until(lambda: len(world.asked) >= 8)
    world.hub.error = Unavailable("the hub is away")
    world.gate.set()

    async def recorded() -> bool:
        return (await world.scorer.progress(spec.run)).recorded == 20

    await until(recorded)
    await asyncio.sleep(0.2)
    assert world.hub.completed == []
    world.hub.error = None
    await world.hub.until(lambda: len(world.hub.completed) == 1)
    assert world.hub.released == []


async def test_a_run_that_is_cancelled_when_its_last_result_is_on_its_way(world: World) -> None:
    """Everything is stored although the run was stopped: the hub hears of it, and waits for no lease."""
    spec = world.shards(cases=8)
    world.gate.clear()
    await world.ring_all()
    await until(lambda: len(world.asked) == 8)
    await world.scorer_wire.close()
    world.gate.set()
    await asyncio.sleep(0.2)
    world.hub.verdict = Answer.VERDICT_STOP
    (name,) = world.hub.runners
    await world.rings.ring(f"{bus.RENEW}.{name}")
    await until(lambda: len(world.hub.renewals) == 1)
    await world.scorer_wire.open()
    await world.hub.until(lambda: world.hub.completed or world.hub.released)
    assert (await world.scorer.progress(spec.run)).recorded == 8


PROGRAM = """\
schema: 1
name: sleepers
version: 1.0.0
dataset: {file: data/test.jsonl, id: id, target: answer}
harness: {type: program, files: agent, command: [sleep, "60"], io: text, prompt: "{{ question }}"}
scoring: [{name: correct, type: exact_match}]
"""


async def test_programs_that_wait_for_a_box_keep_nobody_waiting(
    world: World, buckets: conftest.ObjectStore, tmp_path: Path
) -> None:
    made = materialise(tmp_path, case_rows(8), PROGRAM, {"agent/readme": "sleeps"})
    sleepers = await stored(made, buckets)
    model = model_pb2.Model(name="m", base_url=world.url, model_id="m-1")
    spec = sleepers.spec(cases=8, subject=run_pb2.Subject(model=model))
    for number in range(8):
        claims = claims_of(spec, first=number, count=1, attempt=0)
        claims.shard = f"{spec.run}-{number:06d}"
        world.hub.shards[claims.shard] = claims
        await world.ring(claims.shard, sandboxed=True)
    # One runs, two wait, and the others are left to other runners.
    await world.hub.until(lambda: len(world.hub.lease_requests) == 3, 30)
    chat = world.shards()
    for shard in world.hub.shards:
        if shard.startswith(chat.run):
            await world.ring(shard)
    await world.hub.until(lambda: len(world.hub.completed) == 1, 30)
    assert len(world.hub.lease_requests) == 4
    assert len(world.asked) == 20
    # A runner that stops hands all of them back.
    world.process.stopping.set()
    await world.hub.until(lambda: len(world.hub.released) == 3, 30)
    assert {release.reason for release in world.hub.released} == {Release.REASON_STOPPING}


async def test_a_run_of_programs_is_paused_where_there_are_no_boxes(
    world: World, buckets: conftest.ObjectStore, tmp_path: Path
) -> None:
    manifest = PROGRAM.replace("io: text", "io: text, runtime: nowhere")
    sleepers = await stored(materialise(tmp_path, case_rows(1), manifest, {"agent/readme": ""}), buckets)
    model = model_pb2.Model(name="m", base_url=world.url, model_id="m-1")
    spec = sleepers.spec(cases=1, subject=run_pb2.Subject(model=model))
    claims = claims_of(spec, count=1, attempt=0)
    world.hub.shards[claims.shard] = claims
    await world.ring(claims.shard, sandboxed=True)
    await world.hub.until(lambda: world.hub.released, 30)
    (release,) = world.hub.released
    assert release.reason == Release.REASON_PERMANENT
    assert "programs cannot be run by" in release.message
    assert "nowhere" in release.message
