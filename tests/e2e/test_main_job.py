"""The main job on real data: every recorded answer of two models, judged as it was recorded."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from benchgen.client import Client
from benchgen.eval.v1 import model_pb2, run_pb2
from tests.conftest import LocalStack

GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"

pytestmark = pytest.mark.skipif(
    not GSM8K.is_dir(), reason="the recorded GSM8K solutions are not here (../shared/data/gsm8k)"
)

MANIFEST = """\
schema: 1
name: gsm8k
version: 1.0.0
title: Grade-school math
description: The test set.
category: reasoning
license: MIT
dataset:
  file: data/test.jsonl
  target: "{{ answer.split('####')[-1].strip() }}"
harness:
  type: chat
  prompt: "{{ question }}"
  generation: {temperature: 0, max_tokens: 512}
oracle: answer
scoring:
  - {name: correct, type: numeric, primary: true, extract: [{after: '####'}, {after: 'A:'}]}
"""


@contextmanager
def replay(answers: dict[str, dict[str, str]]) -> Iterator[str]:
    """A server that answers a question with what a model said when it was recorded; yields its base URL."""

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        question = body["messages"][-1]["content"]
        return web.json_response(
            {
                "model": body["model"],
                "choices": [
                    {
                        "message": {"role": "assistant", "content": answers[question][body["model"]]},
                        "finish_reason": "stop",
                    }
                ],
                "usage": {"prompt_tokens": len(question) // 4, "completion_tokens": 50},
            }
        )

    started = threading.Event()
    loop = asyncio.new_event_loop()
    urls: list[str] = []

    async def serve() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        urls.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        started.set()
        await stop.wait()
        await runner.cleanup()

    stop = asyncio.Event()
    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert started.wait(10)
    try:
        yield urls[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def recorded() -> list[dict[str, Any]]:
    with gzip.open(GSM8K / "recorded_solutions.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("name", "correct"), [("6b_finetuning", 286), ("175b_verification", 742)])
def test_every_recorded_answer_is_judged_as_it_was(
    stack: LocalStack, tmp_path: Path, name: str, correct: int
) -> None:
    rows = recorded()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "test.jsonl").write_bytes((GSM8K / "test.jsonl").read_bytes())
    (tmp_path / "environment.yaml").write_text(MANIFEST)
    answers = {
        row["question"]: {model: row[model]["solution"] for model in ("6b_finetuning", "175b_verification")}
        for row in rows
    }
    model = f"replay-{name.split('_')[0]}"
    with replay(answers) as base_url, Client(stack.grpc, stack.api_key) as client:
        client.push(tmp_path)
        client.create_model(
            model_pb2.Model(
                name=model,
                base_url=base_url,
                model_id=name,
                price=model_pb2.Price(input_usd_per_mtok="1", output_usd_per_mtok="2"),
            )
        )
        run = client.run("gsm8k", model=model)
        for latest in client.watch(run.name):
            run = latest
        report = client.report(run.name)
        results = list(client.results(run.name))

    assert run.state == run_pb2.Run.STATE_SUCCEEDED
    assert (report.coverage.planned, report.coverage.recorded, report.coverage.scored) == (1319, 1319, 1319)
    metric = report.metrics["correct"]
    assert (metric.passed, metric.failed, metric.n) == (correct, 1319 - correct, 1319)
    assert metric.mean == pytest.approx(correct / 1319)
    assert len({result.case_id for result in results}) == len(results) == 1319
    verdicts = {int(result.case_id): result.scores[0].passed for result in results}
    assert [verdicts[number] for number in range(1319)] == [row[name]["is_correct"] for row in rows]
    input_tokens = sum(len(row["question"]) // 4 for row in rows)
    assert (report.tokens.input, report.tokens.output) == (input_tokens, 50 * 1319)
    assert report.cost_usd.total == pytest.approx((input_tokens + 2 * 50 * 1319) / 1e6)
