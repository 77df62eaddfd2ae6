"""Runs on a whole stack of their own: paused, resumed over restarts of everything, resumed for what failed, removed."""

from __future__ import annotations

import asyncio
import collections
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiohttp import web
from pydantic import SecretStr

from benchgen.client import Client
from benchgen.errors import FailedPrecondition, NotFound
from benchgen.eval.v1 import model_pb2, run_pb2
from services.common.config import ObjectSettings
from services.common.objects import Bucket, ObjectStore
from services.local.servers.seaweed import access_key
from services.local.state import DataDir
from tests.conftest import LocalStack, local

CASES = 120
CAP = 8
_FAILING = {7, 30, 77}
_LONG = 5

MANIFEST = """\
schema: 1
name: counting
version: 1.0.0
title: Counting
description: The next number.
category: reasoning
license: MIT
dataset: {file: data/test.jsonl, id: id, target: answer}
harness: {type: chat, prompt: "{{ question }}", generation: {temperature: 0, max_tokens: 16}}
oracle: "{{ answer }}"
scoring:
  - {name: correct, type: exact_match, primary: true}
"""

Run = run_pb2.Run
Table = list[tuple[str, int, str, bool]]


@dataclass(slots=True)
class Model:
    """A model server that counts, and does what a test wants."""

    url: str = ""
    seconds: float = 0.0
    failing: set[int] = field(default_factory=set)
    no_quota: bool = False
    asked: collections.Counter[int] = field(default_factory=collections.Counter)
    in_flight: int = 0
    last_call: float = 0.0

    async def chat(self, request: web.Request) -> web.Response:
        """Answer with the next number."""
        number = int((await request.json())["messages"][-1]["content"].split()[-1])
        self.last_call = time.monotonic()
        self.asked[number] += 1
        self.in_flight += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.in_flight -= 1
        if self.no_quota:
            error = {"message": "You exceeded your quota.", "code": "insufficient_quota"}
            return web.json_response({"error": error}, status=429)
        if number in self.failing:
            return web.json_response({"error": {"message": f"not {number}, please"}}, status=400)
        said = str(number + 1) + (" " * 70_000 if number == _LONG else "")
        choice = {"message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        return web.json_response(
            {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 1}}
        )


@contextmanager
def served() -> Iterator[Model]:
    model, started, stop = Model(), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        app = web.Application(handler_args={"handler_cancellation": True})
        app.router.add_post("/v1/chat/completions", model.chat)
        runner = web.AppRunner(app, handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        model.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        started.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield model
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def up(data_dir: Path) -> LocalStack:
    started = local("up", "--detach", "--runners", "2", data_dir=data_dir)
    if started.returncode != 0:
        pytest.fail(f"the stack did not start:\n{started.stdout}\n{started.stderr}")
    return LocalStack(data_dir, json.loads((data_dir / "stack.json").read_text()))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("lifecycle")
    up(folder)
    yield folder
    local("down", data_dir=folder)


@pytest.fixture(scope="module")
def model(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    """A registered model, and an environment to ask it."""
    source = tmp_path_factory.mktemp("counting")
    (source / "data").mkdir()
    rows = [{"id": f"c{n}", "question": f"After {n}", "answer": str(n + 1)} for n in range(CASES)]
    (source / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (source / "environment.yaml").write_text(MANIFEST)
    with served() as server, connected(data_dir) as client:
        client.push(source)
        client.create_model(
            model_pb2.Model(
                name="counter",
                base_url=server.url,
                model_id="m",
                max_concurrency=CAP,
                price=model_pb2.Price(input_usd_per_mtok="1", output_usd_per_mtok="1"),
            )
        )
        yield server


@pytest.fixture(autouse=True)
def _calm(model: Model) -> None:
    model.seconds, model.failing, model.no_quota = 0.0, set(), False
    model.asked.clear()


def connected(data_dir: Path) -> Client:
    stack = LocalStack(data_dir, json.loads((data_dir / "stack.json").read_text()))
    return Client(stack.grpc, stack.api_key)


def watch(client: Client, run: str, *until: Run.State.ValueType, recorded: int = CASES * 2) -> Run:
    """Follow a run until it has ended, is in a state, or has so many results."""
    for latest in client.watch(run):
        if latest.state in until or latest.progress.recorded >= recorded:
            break
    return latest


def table_of(client: Client, run: str) -> Table:
    return [
        (result.case_id, result.trial, result.response, result.scores[0].passed)
        for result in client.results(run)
    ]


@pytest.mark.timeout(180)
def test_a_paused_run_survives_a_restart_of_everything(data_dir: Path, model: Model) -> None:
    with connected(data_dir) as client:
        clean = client.run("counting", model="counter")
        assert watch(client, clean.name).state == Run.STATE_SUCCEEDED
        expected = table_of(client, clean.name)
        assert len(expected) == CASES
        assert all(passed for *_, passed in expected)
        model.asked.clear()
        model.seconds = 0.5
        run = client.run("counting", model="counter").name
        watch(client, run, recorded=CASES // 4)
        paused_at = time.monotonic()
        paused = client.pause(run)
        assert paused.state == Run.STATE_PAUSED
        while model.in_flight:
            assert time.monotonic() - paused_at < 2
            time.sleep(0.01)
        time.sleep(1.5)
        assert model.last_call - paused_at < 2
        assert model.in_flight == 0
        assert client.pause(run).epoch == paused.epoch
        before = sum(model.asked.values())
        recorded = client.get_run(run).progress.recorded
        # Stored is what came back; what was dropped is at most what may be in flight.
        assert CASES // 4 <= recorded < CASES
        assert before - recorded <= CAP
    assert local("down", data_dir=data_dir).returncode == 0
    up(data_dir)
    model.seconds = 0.05
    with connected(data_dir) as client:
        still = client.get_run(run)
        assert still.state == Run.STATE_PAUSED
        assert still.state_message.startswith("paused by hand")
        assert sum(model.asked.values()) == before
        assert client.resume(run).state == Run.STATE_RUNNING
        ended = watch(client, run)
        assert ended.state == Run.STATE_SUCCEEDED
        assert table_of(client, run) == expected
        report = client.report(run)
    assert sum(model.asked.values()) - CASES == before - recorded
    assert max(model.asked.values()) <= 2
    assert (report.number, report.coverage.recorded, report.calls) == (1, CASES, CASES)
    # The time in which it stood is not in there.
    assert report.seconds < 60


@pytest.mark.timeout(120)
def test_what_failed_is_asked_again_and_nothing_else(data_dir: Path, model: Model) -> None:
    model.failing = set(_FAILING)
    with connected(data_dir) as client:
        run = client.run("counting", model="counter").name
        assert watch(client, run).state == Run.STATE_SUCCEEDED
        first = client.report(run)
        assert (first.number, first.coverage.scored) == (1, CASES - len(_FAILING))
        assert first.outcomes["provider_error"] == len(_FAILING)
        # Still broken: nothing is lost by trying.
        model.asked.clear()
        client.resume(run)
        assert watch(client, run).state == Run.STATE_SUCCEEDED
        assert set(model.asked) == _FAILING
        model.failing = set()
        model.asked.clear()
        assert client.resume(run).state == Run.STATE_RUNNING
        assert watch(client, run).state == Run.STATE_SUCCEEDED
        assert model.asked == dict.fromkeys(_FAILING, 1)
        last = client.report(run)
        assert (last.number, last.coverage.scored, dict(last.outcomes)) == (3, CASES, {"ok": CASES})
        assert last.calls == CASES + 2 * len(_FAILING)
        assert last.metrics["correct"].mean == 1.0
        # Nothing is missing: nothing happens.
        complete = client.get_run(run)
        assert client.resume(run) == complete
        assert client.report(run).number == 3


@pytest.mark.timeout(120)
def test_an_empty_account_pauses_with_the_provider_s_words(data_dir: Path, model: Model) -> None:
    model.no_quota = True
    with connected(data_dir) as client:
        run = client.run("counting", model="counter").name
        paused = watch(client, run, Run.STATE_PAUSED)
        assert paused.state == Run.STATE_PAUSED
        assert "You exceeded your quota." in paused.state_message
        with pytest.raises(FailedPrecondition, match="cancel it first"):
            client.delete_run(run)
        model.no_quota = False
        client.resume(run)
        ended = watch(client, run)
        assert (ended.state, ended.state_message) == (Run.STATE_SUCCEEDED, "")
        assert client.report(run).coverage.scored == CASES


@pytest.mark.timeout(120)
def test_nothing_is_left_of_a_removed_run(data_dir: Path, model: Model) -> None:
    with connected(data_dir) as client:
        for other in list(client.list_runs()):
            client.delete_run(other.name)
        run = client.run("counting", model="counter").name
        assert watch(client, run).state == Run.STATE_SUCCEEDED
        assert counts(data_dir)["scorer.results"] == CASES
        assert len(payloads(data_dir)) == 1
        client.delete_run(run)
        for ask in (
            client.get_run,
            client.report,
            client.delete_run,
            lambda name: list(client.results(name)),
        ):
            with pytest.raises(NotFound):
                ask(run)
        assert set(counts(data_dir).values()) == {0}
        assert payloads(data_dir) == []


def counts(data_dir: Path) -> dict[str, int]:
    """How many rows there are about runs."""
    postgres = DataDir(data_dir).settings().postgres()
    tables = {
        "hub": ("runs", "shards", "removed_runs"),
        "scorer": ("run_progress", "results", "attempts", "scores", "scorings", "reports"),
    }

    async def count() -> dict[str, int]:
        found: dict[str, int] = {}
        for role, names in tables.items():
            connection = await asyncpg.connect(postgres.dsn(role))
            try:
                for name in names:
                    found[f"{role}.{name}"] = await connection.fetchval(f"SELECT count(*) FROM {name}")
            finally:
                await connection.close()
        return found

    return asyncio.run(count())


def payloads(data_dir: Path) -> list[Any]:
    """Stored answers that did not fit into their results."""
    settings = DataDir(data_dir).settings()
    seaweed = settings.seaweed()

    async def listed() -> list[Any]:
        async with ObjectStore(
            ObjectSettings(
                s3_endpoint=seaweed.endpoint,
                s3_access_key=access_key("scorer"),
                s3_secret_key=SecretStr(seaweed.secret_key("scorer")),
            )
        ) as objects:
            return await objects.page(Bucket.PAYLOADS, "responses/")

    return asyncio.run(listed())
