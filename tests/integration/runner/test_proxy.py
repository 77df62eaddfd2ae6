"""The model proxy: a real endpoint behind it, a real scorer beside it, and clients that do as they like."""

from __future__ import annotations

import asyncio
import io
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import orjson
import pytest
import pytest_asyncio
from aiohttp import web

from benchgen.errors import BenchgenError
from benchgen.eval.v1 import lease_pb2, model_pb2, result_pb2, run_pb2
from services.common.models.client import ModelClient
from services.common.models.types import Fault
from services.runner.harness.chat import Trial
from services.runner.lanes import CallLimit
from services.runner.proxy.calls import CallSettings, TrialCalls
from services.runner.proxy.server import ModelProxy, serving
from services.runner.proxy.store import CallStore
from services.runner.subjects import subject_of
from tests.integration.model_servers import http_server
from tests.integration.runner.support import until
from tests.integration.scorer.support import PRICE, Environment, Scorer, answer, claims_of

pytestmark = pytest.mark.asyncio(loop_scope="module")

ASK = {"model": "whatever", "messages": [{"role": "user", "content": "How many?"}]}


@dataclass
class Endpoint:
    """A model that numbers its answers."""

    bodies: list[dict[str, Any]] = field(default_factory=list)
    gate: asyncio.Event | None = None
    bend: Callable[[int], web.Response | None] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(orjson.loads(await request.read()))
        number = len(self.bodies)
        if self.gate is not None:
            await self.gate.wait()
        if self.bend is not None and (bent := self.bend(number)) is not None:
            return bent
        return reply({"role": "assistant", "content": f"answer {number}"})


def reply(message: dict[str, Any], **fields: Any) -> web.Response:
    return web.json_response(
        {
            "model": "m-1",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"} | fields],
            "usage": {"prompt_tokens": 10, "completion_tokens": 5},
        }
    )


@dataclass
class Desk:
    """One proxy for one trial, and a client of it."""

    calls: TrialCalls
    url: str
    http: aiohttp.ClientSession
    failures: list[Fault | BenchgenError]

    async def ask(
        self, body: Any = None, path: str = "/v1/chat/completions", token: str | None = None, **options: Any
    ) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.calls.token if token is None else token}"}
        options.setdefault("data", orjson.dumps(ASK if body is None else body))
        async with self.http.post(self.url + path, headers=headers, **options) as response:
            data = await response.read()
            return response.status, orjson.loads(data) if "json" in response.content_type else data


@dataclass
class Bench:
    endpoint: Endpoint
    url: str
    scorer: Scorer
    environment: Environment
    client: ModelClient
    limit: CallLimit = field(default_factory=lambda: CallLimit(8))

    def spec(self, **fields: Any) -> run_pb2.RunSpec:
        model = model_pb2.Model(name="m", base_url=self.url, model_id="m-1", price=PRICE)
        fields.setdefault("subject", run_pb2.Subject(model=model))
        spec = self.environment.spec(harness_json='{"type":"program"}', **fields)
        spec.max_tries = fields.get("max_tries", 1)
        return spec

    @asynccontextmanager
    async def desk(
        self, claims: lease_pb2.LeaseClaims, *, most_calls: int = 50, defaults: dict[str, Any] | None = None
    ) -> AsyncIterator[Desk]:
        spec = claims.spec
        store = CallStore(self.scorer.records("runner"), self.scorer.sign(claims), lambda: True)
        failures: list[Fault | BenchgenError] = []
        model = spec.subject.model.model_id or spec.subject.model.name
        calls = TrialCalls(
            Trial(0, 0, "sum-0", [], ""),
            CallSettings(model, most_calls, defaults or {}, spec.seed),
            subject_of(spec, "", self.client, self.limit),
            self.limit,
            store.record,
            await store.answers(0, 0),
            failures.append,
        )
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        async with serving(listener, ModelProxy([calls], model)), aiohttp.ClientSession() as http:
            try:
                yield Desk(calls, f"http://127.0.0.1:{port}", http, failures)
            finally:
                await calls.close()

    async def transcript(self, run: str) -> list[result_pb2.ModelCall]:
        """The calls of the case, once it has a result."""
        request = result_pb2.ListCallsRequest(run=run, case_id="sum-0", page_size=1000)
        page = await self.scorer.results.ListCalls(request, metadata=self.scorer.as_())
        return list(page.calls)


@pytest_asyncio.fixture(loop_scope="module")
async def bench(scorer: Scorer, environment: Environment) -> AsyncIterator[Bench]:
    endpoint = Endpoint()
    async with ModelClient() as client, http_server(endpoint.answer) as url:
        yield Bench(endpoint, url, scorer, environment, client)


async def test_the_model_is_the_runs_and_defaults_fill_in(bench: Bench) -> None:
    claims = claims_of(bench.spec(seed=7))
    async with bench.desk(claims, defaults={"temperature": 0.5, "max_tokens": 64}) as desk:
        status, said = await desk.ask()
        assert status == 200
        await desk.ask(ASK | {"temperature": 0, "max_completion_tokens": 9, "seed": 3, "top_k": 5})
    assert said["object"] == "chat.completion"
    assert said["choices"][0]["message"]["content"] == "answer 1"
    assert said["usage"] == {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
    first, second = bench.endpoint.bodies
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("m-1", 0.5, 64)
    assert first["messages"] == ASK["messages"]
    assert type(first["seed"]) is int
    assert (second["temperature"], second["seed"], second["top_k"]) == (0, 3, 5)
    assert second["max_completion_tokens"] == 9
    assert "max_tokens" not in second
    assert "stream" not in second


async def test_every_call_is_stored_before_it_is_answered(bench: Bench) -> None:
    claims = claims_of(bench.spec())
    async with bench.desk(claims) as desk:
        for number in range(1, 4):
            await desk.ask({"messages": [{"role": "user", "content": f"{number}?"}]})
            assert (await bench.scorer.progress(claims.run)).calls == number
    await bench.scorer.record(claims, answer(0, program=result_pb2.ProgramRun(ended="exited", exit_code=0)))
    calls = await bench.transcript(claims.run)
    assert [call.number for call in calls] == [1, 2, 3]
    asked = orjson.loads(calls[2].request_json)
    assert asked["messages"][0]["content"] == "3?"
    assert orjson.loads(calls[2].answer_json)["choices"][0]["message"]["content"] == "answer 3"
    assert (calls[2].cost_picousd, calls[2].usage.input_tokens) == (20_000_000, 10)
    assert calls[2].latency_ms > 0


async def test_a_trial_that_is_run_again_gets_the_stored_answers_in_order(bench: Bench) -> None:
    spec = bench.spec()
    async with bench.desk(claims_of(spec)) as desk:
        for _ in range(3):
            await desk.ask()
        await desk.ask({"messages": [{"role": "user", "content": "Other?"}]})
    async with bench.desk(claims_of(spec, attempt=2)) as desk:
        said = [(await desk.ask(ASK | {"stream": False}))[1] for _ in range(4)]
    assert [one["choices"][0]["message"]["content"] for one in said] == [
        f"answer {number}" for number in (1, 2, 3, 5)
    ]
    assert len(bench.endpoint.bodies) == 5
    # The same question again is not the same draw.
    assert len({body["seed"] for body in bench.endpoint.bodies}) == 4
    assert (await bench.scorer.progress(spec.run)).calls == 5


async def test_two_attempts_at_once_get_the_same_answers(bench: Bench) -> None:
    spec = bench.spec()
    bench.endpoint.gate = asyncio.Event()
    async with bench.desk(claims_of(spec)) as zombie, bench.desk(claims_of(spec, attempt=2)) as heir:
        asking = asyncio.gather(zombie.ask(), heir.ask(), heir.ask())
        await until(lambda: len(bench.endpoint.bodies) == 3)
        bench.endpoint.gate.set()
        (_, old), (_, first), (_, second) = await asking
        assert old == (await zombie.ask())[1] or old["id"] in (first["id"], second["id"])
    said = {one["choices"][0]["message"]["content"] for one in (first, second)}
    assert len(said) == 2
    assert old["choices"][0]["message"]["content"] in said


async def test_a_stream_is_made_of_the_stored_answer(bench: Bench) -> None:
    long = "word " * 100
    call = {"id": "t1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    bench.endpoint.bend = lambda _: reply(
        {"role": "assistant", "content": long, "tool_calls": [call]}, finish_reason="tool_calls"
    )
    async with bench.desk(claims_of(bench.spec())) as desk:
        _, data = await desk.ask(ASK | {"stream": True, "stream_options": {"include_usage": True}})
        _, whole = await desk.ask({**ASK, "temperature": 1})
    events = [line.removeprefix(b"data: ") for line in data.split(b"\n\n") if line]
    assert events[-1] == b"[DONE]"
    chunks = [orjson.loads(event) for event in events[:-1]]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    assert deltas[0]["role"] == "assistant"
    assert "".join(delta.get("content") or "" for delta in deltas) == long
    assert [one for delta in deltas for one in delta.get("tool_calls", [])] == [{"index": 0, **call}]
    assert chunks[-2]["choices"][0]["finish_reason"] == "tool_calls"
    assert chunks[-1]["usage"]["total_tokens"] == 15
    assert whole["choices"][0]["message"]["tool_calls"] == [call]


async def test_completions_are_asked_as_chats(bench: Bench) -> None:
    async with bench.desk(claims_of(bench.spec())) as desk:
        _, said = await desk.ask({"model": "x", "prompt": "Say it"}, "/v1/completions")
        _, data = await desk.ask({"prompt": ["Say it"], "stream": True}, "/v1/completions")
    assert (said["object"], said["choices"][0]["text"]) == ("text_completion", "answer 1")
    assert bench.endpoint.bodies[0]["messages"] == [{"role": "user", "content": "Say it"}]
    assert "prompt" not in bench.endpoint.bodies[0]
    assert b'"text":"answer 2"' in data
    assert data.endswith(b"data: [DONE]\n\n")


async def test_what_is_not_served_is_said_in_openais_shape(bench: Bench) -> None:
    async with bench.desk(claims_of(bench.spec())) as desk:
        wanted: list[tuple[tuple[Any, ...], int, str]] = [
            (({}, "/v1/embeddings"), 404, "unknown_url"),
            (({"messages": []},), 400, "invalid_value"),
            ((ASK | {"n": 2},), 400, "unsupported_value"),
            ((ASK | {"logprobs": True},), 400, "unsupported_parameter"),
            (({"prompt": [1, 2]}, "/v1/completions"), 400, "invalid_value"),
        ]
        for asked, status, code in wanted:
            found, body = await desk.ask(*asked)
            assert (found, body["error"]["code"]) == (status, code)
            assert set(body["error"]) == {"message", "type", "param", "code"}
        assert (await desk.ask(data=b"{nope"))[0] == 400
        assert (await desk.ask(data=io.BytesIO(b"x" * (4 * 1024 * 1024 + 1))))[0] == 413
        # What a packed body would unpack to has no bound.
        assert (await desk.ask(compress="gzip"))[0] == 415
        headers = {"Authorization": f"Bearer {desk.calls.token}"}
        async with desk.http.get(desk.url + "/v1/chat/completions", headers=headers) as response:
            assert response.status == 405
        async with desk.http.get(desk.url + "/v1/models", headers=headers) as response:
            assert [model["id"] for model in (await response.json())["data"]] == ["m-1"]
        async with desk.http.get(desk.url + "/v1/models/gpt-9", headers=headers) as response:
            assert response.status == 404
    assert bench.endpoint.bodies == []


async def test_a_key_is_good_for_its_trial_and_for_its_time(bench: Bench) -> None:
    spec = bench.spec()
    async with bench.desk(claims_of(spec)) as desk, bench.desk(claims_of(spec)) as other:
        assert (await desk.ask(token=other.calls.token))[0] == 401
        assert (await desk.ask(token=""))[0] == 401
        await desk.calls.close()
        status, body = await desk.ask()
        assert (status, body["error"]["code"]) == (401, "invalid_api_key")
    assert bench.endpoint.bodies == []


async def test_calls_are_counted_those_with_stored_answers_too(bench: Bench) -> None:
    spec = bench.spec()
    for attempt in (1, 2):
        async with bench.desk(claims_of(spec, attempt=attempt), most_calls=2) as desk:
            statuses = [(await desk.ask())[0] for _ in range(3)]
            assert statuses == [200, 200, 429]
            assert desk.calls.limit_reached
    assert len(bench.endpoint.bodies) == 2


async def test_an_endpoint_that_fails_is_not_the_programs_doing(bench: Bench) -> None:
    spec = bench.spec()
    bench.endpoint.bend = lambda number: web.Response(status=500, text="down") if number == 1 else None
    async with bench.desk(claims_of(spec)) as desk:
        status, body = await desk.ask()
        assert (status, body["error"]["code"]) == (502, "provider_error")
        assert "down" in desk.calls.fault
        # The same request, answered, mends it.
        assert (await desk.ask())[0] == 200
        assert desk.calls.fault == ""
    # Nothing failed is replayed.
    async with bench.desk(claims_of(spec, attempt=2)) as desk:
        assert (await desk.ask())[1]["choices"][0]["message"]["content"] == "answer 2"
    assert (await bench.scorer.progress(spec.run)).calls == 2


async def test_a_refused_request_is_passed_on_and_a_bad_key_ends_the_work(bench: Bench) -> None:
    spec = bench.spec()
    answers = {
        1: web.json_response({"error": {"message": "temperature: at most 2"}}, status=400),
        2: web.json_response({"error": {"message": "no such key"}}, status=401),
    }
    bench.endpoint.bend = answers.get
    async with bench.desk(claims_of(spec)) as desk:
        status, body = await desk.ask()
        assert (status, body["error"]["message"]) == (400, "temperature: at most 2")
        assert desk.calls.fault == ""
        assert desk.failures == []
        assert (await desk.ask())[0] == 503
        (fault,) = desk.failures
        assert isinstance(fault, Fault)
        assert fault.permanent_for_run


async def test_a_program_that_hangs_up_does_not_lose_what_was_paid_for(bench: Bench) -> None:
    spec = bench.spec()
    bench.endpoint.gate = asyncio.Event()
    async with bench.desk(claims_of(spec)) as desk:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(desk.ask(), 0.3)
        bench.endpoint.gate.set()

        async def counted() -> bool:
            return (await bench.scorer.progress(spec.run)).calls == 1

        await until(counted)
        assert (await desk.ask())[0] == 200
    async with bench.desk(claims_of(spec, attempt=2)) as desk:
        assert (await desk.ask())[1]["choices"][0]["message"]["content"] == "answer 1"


async def test_a_call_without_a_lease_is_made_again_when_there_is_one(bench: Bench) -> None:
    bench.endpoint.gate = asyncio.Event()
    async with bench.desk(claims_of(bench.spec())) as desk:
        asking = asyncio.create_task(desk.ask())
        await until(lambda: len(bench.endpoint.bodies) == 1)
        bench.limit.hold_until(0)
        assert bench.limit.call_off() == 1
        await until(lambda: bench.limit.in_flight == 0)
        bench.endpoint.gate.set()
        bench.limit.hold_until(float("inf"))
        assert (await asking)[0] == 200
    assert len(bench.endpoint.bodies) == 2


async def test_more_connections_than_a_program_needs_are_hung_up_on(bench: Bench) -> None:
    async with bench.desk(claims_of(bench.spec())) as desk:
        port = int(desk.url.rpartition(":")[2])
        opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(80)]
        ended = await asyncio.gather(
            *(asyncio.wait_for(reader.read(1), 5) for reader, _ in opened[70:]), return_exceptions=True
        )
        assert all(one in (b"",) or isinstance(one, ConnectionError) for one in ended)
        for _, writer in opened:
            writer.close()


async def test_a_built_in_model_answers_without_a_call(bench: Bench) -> None:
    subject = run_pb2.Subject(model=model_pb2.Model(name="builtin/constant?text=8"))
    spec = bench.spec(subject=subject)
    async with bench.desk(claims_of(spec)) as desk:
        status, said = await desk.ask()
    assert (status, said["choices"][0]["message"]["content"]) == (200, "8")
    await bench.scorer.record(
        claims_of(spec), answer(0, program=result_pb2.ProgramRun(ended="exited", exit_code=0))
    )
    (call,) = await bench.transcript(spec.run)
    assert (call.calls, call.cost_picousd) == (0, 0)
    assert (await bench.scorer.progress(spec.run)).calls == 0


async def test_a_call_that_nobody_waits_for_any_more_has_an_unknown_cost(bench: Bench) -> None:
    spec = bench.spec()
    bench.endpoint.gate = asyncio.Event()
    async with bench.desk(claims_of(spec)) as desk:
        asking = asyncio.create_task(desk.ask())
        await until(lambda: len(bench.endpoint.bodies) == 1)
        await desk.calls.close()
        assert (await asking)[0] == 503
    totals = await bench.scorer.progress(spec.run)
    assert (totals.calls, totals.calls_of_unknown_cost) == (1, 1)
    # It is made again.
    bench.endpoint.gate.set()
    async with bench.desk(claims_of(spec, attempt=2)) as desk:
        assert (await desk.ask())[0] == 200
    assert (await bench.scorer.progress(spec.run)).calls == 2
