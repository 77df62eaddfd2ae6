"""Programs in real boxes, with a real endpoint behind their proxy and a real scorer for what they answer."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import orjson
import psutil
import pytest
import pytest_asyncio
from aiohttp import web

from benchgen.eval.v1 import lease_pb2, model_pb2, result_pb2, result_pb2_grpc, run_pb2
from services.common.models.client import ModelClient
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.common.sandbox import Provider, SandboxFailed, SandboxSettings, provider_of
from services.runner.keeper import HeldLease
from services.runner.lanes import Lane
from services.runner.programs.boxes import Boxes
from services.runner.programs.shard import ProgramShard, ProgramTools
from services.runner.programs.store import ProgramStore
from services.runner.shard import PermanentFault
from tests import conftest
from tests.integration.model_servers import http_server
from tests.integration.runner.support import until
from tests.integration.scorer.support import (
    PRICE,
    Environment,
    Scorer,
    case_rows,
    claims_of,
    materialise,
    object_settings,
    stored,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

MANIFEST = """\
schema: 1
name: agents
version: 1.0.0
dataset: {file: data/test.jsonl, id: id, target: answer}
harness: HARNESS
scoring:
  - name: correct
    type: exact_match
"""

#: The least that speaks the protocol, in Python. What it does with a case a test says by `MODE`.
AGENT = """\
import json, os, sys, urllib.request

def ask(case, text):
    model = case["model"]
    body = {"messages": [{"role": "user", "content": text}]}
    request = urllib.request.Request(
        model["base_url"] + "/chat/completions", json.dumps(body).encode(),
        {"Authorization": "Bearer " + model["api_key"], "Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"]

def answer(case):
    asked = case["fields"]["question"]
    MODE

with open(os.environ["BENCHGEN_RESULTS"], "a") as results:
    for line in sys.stdin:
        case = json.loads(line)
        said = answer(case)
        if said is not None:
            results.write(json.dumps({"case_id": case["case_id"], "trial": case["trial"]} | said) + "\\n")
"""

#: A script that knows nothing of us.
SCRIPT = """\
import sys
from openai import OpenAI

client = OpenAI()
question = sys.stdin.read()
assert [model.id for model in client.models.list()] == ["m-1"]
messages = [{"role": "system", "content": "You add."}, {"role": "user", "content": question}]
first = client.chat.completions.create(model="gpt-5", messages=messages)
said = ""
for chunk in client.chat.completions.create(
    model="gpt-5", messages=messages + [{"role": "assistant", "content": first.choices[0].message.content}],
    stream=True, stream_options={"include_usage": True},
):
    if chunk.choices:
        said += chunk.choices[0].delta.content or ""
    else:
        assert chunk.usage.total_tokens == 15
assert client.completions.create(model="gpt-5", prompt=question).choices[0].text == said
print(said)
"""


@dataclass
class Endpoint:
    """A model that adds, after a word."""

    asked: list[str] = field(default_factory=list)
    gate: asyncio.Event | None = None
    bend: Callable[[int], web.Response | None] | None = None

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = orjson.loads(await request.read())
        question = next(m["content"] for m in reversed(body["messages"]) if m["role"] == "user")
        self.asked.append(question)
        if self.gate is not None:
            await self.gate.wait()
        if self.bend is not None and (bent := self.bend(len(self.asked))) is not None:
            return bent
        message = {"role": "assistant", "content": str(2 * int(question.split()[0]))}
        return web.json_response(
            {
                "model": "m-1",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5},
            }
        )


@dataclass
class Bench:
    """All that a program's shard needs."""

    url: str
    endpoint: Endpoint
    scorer: Scorer
    client: ModelClient
    objects: ObjectStore
    store: conftest.ObjectStore
    folder: Path
    tools: ProgramTools
    lane: Lane = field(default_factory=lambda: Lane("m"))
    stopping: asyncio.Event = field(default_factory=asyncio.Event)

    async def environment(self, harness: dict[str, Any], files: dict[str, str]) -> Environment:
        manifest = MANIFEST.replace("HARNESS", orjson.dumps({"type": "program"} | harness).decode())
        made = materialise(self.folder / secrets.token_hex(4), case_rows(8), manifest, files)
        return await stored(made, self.store)

    async def agent(self, mode: str, **harness: Any) -> Environment:
        """An environment whose agent does this with a case."""
        harness = {
            "files": "agent",
            "command": ["python3", "agent.py"],
            "fields": ["question"],
        } | harness
        code = AGENT.replace("MODE", mode.strip().replace("\n", "\n    "))
        return await self.environment(harness, {"agent/agent.py": code})

    def spec(self, environment: Environment, **fields: Any) -> run_pb2.RunSpec:
        model = model_pb2.Model(name="m", base_url=self.url, model_id="m-1", price=PRICE)
        fields.setdefault("subject", run_pb2.Subject(model=model))
        return environment.spec(**{"cases": 1} | fields)

    def lease(self, spec: run_pb2.RunSpec, **fields: Any) -> HeldLease:
        claims = claims_of(spec, **{"count": spec.planned} | fields)
        self.lane.set_permits(8)
        return HeldLease(claims, self.scorer.sign(claims), self.lane, 60, monotonic() + 60)

    async def run(self, lease: HeldLease, *, grace: float = 5.0) -> bool:
        records: result_pb2_grpc.RecordServiceAsyncStub = self.scorer.records("runner")
        inputs = CaseReader(Bucket.INPUTS, self.objects, None)
        work = ProgramShard(lease, "", self.client, inputs, self.objects, records, self.tools)
        async with asyncio.timeout(60):
            await work.ready()
            return await work.run(self.stopping, grace)

    async def results(self, run: str) -> list[result_pb2.Result]:
        return list((await self.scorer.list(run, page_size=100)).results)

    async def only(self, environment: Environment, **fields: Any) -> result_pb2.Result:
        """The result of a run of one case."""
        spec = self.spec(environment, **fields)
        assert await self.run(self.lease(spec))
        (result,) = await self.results(spec.run)
        return result


@pytest.fixture(scope="module")
def provider() -> Provider:
    return provider_of(SandboxSettings())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("programs")


@pytest_asyncio.fixture(loop_scope="module")
async def bench(
    scorer: Scorer, buckets: conftest.ObjectStore, provider: Provider, folder: Path
) -> AsyncIterator[Bench]:
    endpoint = Endpoint()
    async with AsyncExitStack() as stack:
        objects = await stack.enter_async_context(ObjectStore(object_settings(buckets, "runner")))
        client = await stack.enter_async_context(ModelClient())
        url = await stack.enter_async_context(http_server(endpoint.answer))
        programs = stack.enter_context(closing(ProgramStore(objects, None)))
        tools = ProgramTools(Boxes(provider, 2), programs)
        yield Bench(url, endpoint, scorer, client, objects, buckets, folder, tools)


def outcome(result: result_pb2.Result) -> str:
    return result_pb2.Outcome.Name(result.outcome).removeprefix("OUTCOME_").lower()


async def test_a_script_with_the_openai_package_runs_as_it_is(bench: Bench) -> None:
    harness = {"files": ".", "command": ["python3", "agent.py"], "io": "text", "prompt": "{{ question }}"}
    environment = await bench.environment(harness, {"agent.py": SCRIPT})
    result = await bench.only(environment)
    assert (outcome(result), result.response, result.error) == ("ok", "0", "")
    assert result.scores[0].passed
    assert (result.calls, result.usage.input_tokens, result.cost_picousd) == (3, 30, 60_000_000)
    assert (result.program.ended, result.program.exit_code) == ("exited", 0)
    assert result.latency_ms > 0


async def test_a_shell_script_needs_no_python(bench: Bench) -> None:
    script = "#!/bin/sh\nread -r number rest\necho $((2 * number))\necho done >&2\n"
    harness = {"files": "sh", "command": ["./double.sh"], "io": "text", "prompt": "{{ question }}"}
    environment = await bench.environment(harness, {"sh/double.sh": script})
    result = await bench.only(environment)
    assert (outcome(result), result.response, result.program.stderr) == ("ok", "0", "done\n")
    assert [(message.role, message.content) for message in result.input] == [("user", "0 + 0 = ?")]
    assert result.calls == 0


async def test_one_start_for_a_batch_of_cases_and_trials(bench: Bench) -> None:
    environment = await bench.agent('return {"response": ask(case, asked)}', batch=6)
    spec = bench.spec(environment, cases=3, trials=2)
    assert await bench.run(bench.lease(spec))
    results = await bench.results(spec.run)
    assert [(r.position, r.trial, r.response) for r in results] == [
        (n, t, str(2 * n)) for n in range(3) for t in range(2)
    ]
    assert {(r.program.batch, r.calls) for r in results} == {(6, 1)}
    assert orjson.loads(results[0].input[0].content) == {"question": "0 + 0 = ?"}
    assert all(r.scores[0].passed for r in results)


async def test_the_program_sees_its_fields_and_its_trial_and_nothing_else(bench: Bench) -> None:
    mode = """
env = {name: value for name, value in os.environ.items()}
files = sorted(os.listdir("/app/program"))
return {"response": json.dumps([case, env, files])}
"""
    result = await bench.only(await bench.agent(mode, system="Be brief.", prompt="{{ question }}"), seed=5)
    case, env, files = orjson.loads(result.response)
    assert files == ["agent.py"]
    assert set(case) == {"protocol", "case_id", "trial", "seed", "messages", "fields", "model"}
    assert (case["protocol"], case["case_id"], case["trial"]) == (1, "sum-0", 0)
    assert case["fields"] == {"question": "0 + 0 = ?"}
    assert [message["role"] for message in case["messages"]] == ["system", "user"]
    assert case["model"]["name"] == env["MODEL_NAME"] == env["RPE_MODEL_NAME"] == env["RPE_NAME"] == "m-1"
    key, address = case["model"]["api_key"], case["model"]["base_url"]
    for name in ("OPENAI_API_KEY", "MODEL_API_KEY", "RPE_MODEL_API_KEY", "RPE_API_KEY"):
        assert env[name] == key
    for name in ("OPENAI_BASE_URL", "MODEL_BASE_URL", "RPE_MODEL_BASE_URL", "RPE_BASE_URL"):
        assert env[name] == address
    assert str(case["seed"]) == env["BENCHGEN_SEED"]
    assert bench.url not in result.response
    assert b"BENCHGEN_S3" not in result.response.encode()


@pytest.mark.parametrize(
    ("mode", "changes", "expected", "said"),
    [
        ('return {"response": " "}', {}, "empty", ""),
        ('return {"error": "no idea"}', {}, "harness_error", "the program said: no idea"),
        ("return None", {}, "harness_error", "no answer: the program exited with code 0"),
        ('sys.exit("out of luck")', {}, "harness_error", "wrote to stderr: out of luck"),
        ('return {"response": 5}', {}, "harness_error", "line 1: response: expected a text, found int"),
        ("import time; time.sleep(60)", {"limits": {"seconds": 1}}, "limit", ""),
        ('while True: ask(case, asked)', {"calls": 3}, "limit", ""),
        ('x = bytearray(1 << 30)', {"limits": {"memory_mb": 64}}, "harness_error", "no answer"),
        ('os.kill(os.getpid(), 9)', {}, "harness_error", "signal 9"),
    ],
)  # fmt: skip
async def test_how_a_program_ends_is_told_apart(
    bench: Bench, mode: str, changes: dict[str, Any], expected: str, said: str
) -> None:
    result = await bench.only(await bench.agent(mode, **changes))
    assert outcome(result) == expected, result
    assert said in result.error
    if "calls" in changes:
        assert (result.calls, result.finish_reason) == (3, "call_limit")
    if expected == "limit":
        assert not result.scores[0].passed


async def test_an_endpoint_that_fails_is_not_held_against_the_model(bench: Bench) -> None:
    environment = await bench.agent("""
ask(case, asked)
try:
    return {"response": ask(case, asked + "?")}
except Exception:
    return {"response": "I do not know"}
""")
    bench.endpoint.bend = lambda number: web.Response(status=500, text="down") if number == 2 else None
    spec = bench.spec(environment)
    assert await bench.run(bench.lease(spec))
    (result,) = await bench.results(spec.run)
    assert (outcome(result), result.response) == ("provider_error", "")
    assert "down" in result.error
    # Run again it pays for what is missing, and for nothing else.
    assert await bench.run(bench.lease(spec, attempt=2))
    (result,) = await bench.results(spec.run)
    assert (outcome(result), result.response) == ("ok", "0")
    assert len(bench.endpoint.asked) == 3
    totals = await bench.scorer.progress(spec.run)
    assert (totals.recorded, totals.calls, totals.faults) == (1, 3, 0)


async def test_a_provider_that_refuses_for_good_ends_the_work(bench: Bench) -> None:
    environment = await bench.agent('return {"response": ask(case, asked)}')
    bench.endpoint.bend = lambda _: web.json_response({"error": {"message": "no such key"}}, status=401)
    spec = bench.spec(environment)
    with pytest.raises(PermanentFault, match="no such key"):
        await bench.run(bench.lease(spec))
    assert (await bench.scorer.progress(spec.run)).recorded == 0


async def test_a_runner_without_a_sandbox_says_so_before_it_starts(bench: Bench) -> None:
    environment = await bench.agent('return {"response": "1"}')
    refusing = Boxes(provider_of(SandboxSettings(sandbox="none")), 1)
    bench.tools = ProgramTools(refusing, bench.tools.programs)
    with pytest.raises(SandboxFailed, match="programs are not run here"):
        await bench.run(bench.lease(bench.spec(environment)))
    unknown = await bench.agent('return {"response": "1"}', runtime="python-2")
    bench.tools = ProgramTools(Boxes(provider_of(SandboxSettings()), 1), bench.tools.programs)
    with pytest.raises(SandboxFailed, match="python-2"):
        await bench.run(bench.lease(bench.spec(unknown)))


async def test_a_stopped_run_kills_its_box_at_once(bench: Bench) -> None:
    mark = secrets.token_hex(8)
    environment = await bench.agent(f'ask(case, asked); import time; time.sleep(60)  # {mark}', command=[
        "python3", "agent.py", mark])  # fmt: skip
    lease = bench.lease(bench.spec(environment))
    working = asyncio.create_task(bench.run(lease))
    await until(lambda: len(bench.endpoint.asked) == 1, 30)
    lease.end(lease_pb2.RenewLeaseResponse.VERDICT_STOP)
    began = monotonic()
    assert not await working
    assert monotonic() - began < 10
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or ())]
    assert bench.tools.boxes.busy == 0
    # Its call is stored, and is not made again.
    totals = await bench.scorer.progress(lease.claims.run)
    assert (totals.calls, totals.recorded) == (1, 0)


async def test_a_runner_that_stops_hands_back_what_waits_for_a_box(bench: Bench) -> None:
    environment = await bench.agent("import time; time.sleep(60)")
    bench.tools = ProgramTools(Boxes(bench.tools.boxes.provider, 1), bench.tools.programs)
    leases = [bench.lease(bench.spec(environment)) for _ in range(3)]
    working = [asyncio.create_task(bench.run(lease, grace=0.1)) for lease in leases]
    await until(lambda: bench.tools.boxes.busy == 1 and bench.tools.boxes.waiting == 2, 30)
    bench.stopping.set()
    assert await asyncio.gather(*working) == [False] * 3
    assert (bench.tools.boxes.busy, bench.tools.boxes.waiting) == (0, 0)


async def test_a_long_answer_is_stored_whole(bench: Bench) -> None:
    result = await bench.only(await bench.agent('print("x" * 100_000); return {"response": "y" * 70_000}'))
    assert outcome(result) == "ok"
    assert result.payload.size_bytes > 70_000
    assert len(result.program.stdout) <= 32 * 1024
    assert result.program.cut
    assert "bytes left out" in result.program.stdout


async def test_time_that_was_spent_waiting_for_a_permit_is_not_held_against_the_model(bench: Bench) -> None:
    environment = await bench.agent('return {"response": ask(case, asked)}', limits={"seconds": 2})
    spec = bench.spec(environment)
    lease = bench.lease(spec)
    bench.lane.set_permits(0)
    assert await bench.run(lease)
    (result,) = await bench.results(spec.run)
    assert outcome(result) == "provider_error"
    assert "of which it waited" in result.error
    assert bench.endpoint.asked == []
