"""The response cache on a whole stack, with a model server that counts."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest

from benchgen.client import Client
from benchgen.eval.v1 import model_pb2, result_pb2
from tests.conftest import LocalStack
from tests.e2e.test_cli import command
from tests.e2e.test_lifecycle import MANIFEST, served

CASES = 60
PRICE = model_pb2.Price(input_usd_per_mtok="1", output_usd_per_mtok="1")


def rows(client: Client, run: str) -> list[tuple[str, str, list[result_pb2.Score]]]:
    return [(result.case_id, result.response, list(result.scores)) for result in client.results(run)]


def ended(client: Client, **fields: bool | int) -> str:
    run = client.run("remembered", model="remembering", use_cache=True, **fields).name  # type: ignore[arg-type]
    for _ in client.watch(run):
        pass
    return run


@pytest.mark.timeout(240)
async def test_the_same_run_again_costs_nothing(stack: LocalStack, tmp_path: Path) -> None:
    source = tmp_path / "remembered"
    (source / "data").mkdir(parents=True)
    cases = [{"id": f"c{n}", "question": f"After {n}", "answer": str(n + 1 + n % 2)} for n in range(CASES)]
    (source / "data" / "test.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    (source / "environment.yaml").write_text(MANIFEST.replace("name: counting", "name: remembered"))
    with served() as model, Client(stack.grpc, stack.api_key) as client:
        client.push(source)
        client.create_model(
            model_pb2.Model(name="remembering", base_url=model.url, model_id="m", price=PRICE)
        )
        # One of these answers is long: its object has to outlive the run.
        half = ended(client, limit=CASES // 2)
        assert sum(model.asked.values()) == CASES // 2
        first = ended(client)
        assert sum(model.asked.values()) == CASES
        client.delete_run(half)
        asked = command(
            *(stack.data_dir, "run", "remembered", "--model", "remembering", "--cache", "--json"),
            cwd=tmp_path,
        )
        again = asked.json()
        assert sum(model.asked.values()) == CASES
        assert f"{CASES} cached" in asked.err
        assert (again["cache_hits"], again["calls"], again["latency_ms"]) == (CASES, 0, None)
        assert again["cost_usd"] == {"total": 0, "per_case": 0}
        assert again["tokens"] == {"input": 0, "output": 0}
        assert again["saved_tokens"] == {"input": 10 * CASES, "output": CASES}
        assert again["metrics"]["correct"]["passed"] == CASES // 2
        assert rows(client, again["run"]) == rows(client, first)
        headers = {"Authorization": f"Bearer {stack.api_key}"}
        async with aiohttp.ClientSession(stack.api, headers=headers) as http:
            async with http.post("/api/v1/models/remembering:clearCache") as answer:
                assert await answer.json() == {"removed": CASES}
            body = {"environment": "remembered", "model": "builtin/echo", "cache": True}
            async with http.post("/api/v1/runs", json=body) as answer:
                assert answer.status == 400
                assert "use_cache: expected a registered model" in (await answer.json())["detail"]
        ended(client)
        assert sum(model.asked.values()) == 2 * CASES
