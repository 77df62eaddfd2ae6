"""An evaluation over HTTP on the whole stack: everything that a program without gRPC would do."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import asyncpg
import grpc
import pytest

from benchgen import bundle
from benchgen.eval.v1 import lease_pb2, lease_pb2_grpc, result_pb2, result_pb2_grpc
from services.common.auth import Scope, hash_token
from services.gateway.http import documents
from services.local.files import PROGRAM_ROOT
from services.local.state import DataDir
from tests.conftest import LocalStack

ENVIRONMENT = "gsm8k-mini"
CASES = 100
END_SECONDS = 60.0


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """Calls the API with one key, and holds every answer against the shape that OpenAPI promises."""

    def __init__(self, stack: LocalStack, key: str) -> None:
        self._base = stack.api
        self._key = key

    def __call__(
        self,
        method: str,
        path: str,
        shape: type[documents.Shape] | None = None,
        *,
        body: bytes | dict[str, Any] | None = None,
        content_type: str = "application/json",
        idempotency_key: str | None = None,
    ) -> Answer:
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": content_type}
        if idempotency_key is not None:
            headers["Idempotency-Key"] = idempotency_key
        request = urllib.request.Request(self._base + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                found = Answer(answer.status, dict(answer.headers), answer.read())
        except urllib.error.HTTPError as error:
            with error:
                found = Answer(error.code, dict(error.headers), error.read())
            shape = documents.Problem
        if shape is not None:
            shape.model_validate_json(found.body)
        return found


@pytest.fixture(scope="module")
def http(stack: LocalStack) -> Http:
    """Calls with the first key."""
    return Http(stack, stack.api_key)


@pytest.fixture(scope="module")
def version(http: Http, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The published environment."""
    archive = tmp_path_factory.mktemp("bundle") / "bundle.zip"
    bundle.pack(PROGRAM_ROOT / "environments" / ENVIRONMENT, archive)
    uploaded = http(
        "POST",
        "/api/v1/environments",
        documents.Publication,
        body=archive.read_bytes(),
        content_type="application/zip",
    )
    assert uploaded.status == 202
    deadline = time.monotonic() + END_SECONDS
    while (publication := http("GET", uploaded.headers["location"], documents.Publication).json)[
        "state"
    ] != "ready":
        assert publication["state"] != "rejected", publication["problems"]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return http("GET", f"/api/v1/environments/{ENVIRONMENT}/versions/latest", documents.Version).json


def followed(stack: LocalStack, run: str) -> Iterator[dict[str, Any]]:
    """The run's events until their end."""
    request = urllib.request.Request(
        f"{stack.api}/api/v1/runs/{run}/events", headers={"Authorization": f"Bearer {stack.api_key}"}
    )
    with urllib.request.urlopen(request, timeout=END_SECONDS) as answer:
        for line in answer:
            if line.startswith(b"data: "):
                event = json.loads(line.removeprefix(b"data: "))
                documents.Run.model_validate(event)
                yield event


@pytest.fixture(scope="module")
def ended_run(stack: LocalStack, http: Http, version: Any) -> Any:
    """A run of all cases that has ended."""
    body = {"environment": version["name"], "model": "builtin/simulated?accuracy=0.8", "seed": 7}
    made = http("POST", "/api/v1/runs", documents.Run, body=body)
    assert made.status == 201
    events = list(followed(stack, made.json["run"]))
    assert events[-1]["state"] == "succeeded"
    assert events[-1]["progress"]["recorded"] == CASES
    recorded = [event["progress"]["recorded"] for event in events]
    assert recorded == sorted(recorded)
    return http("GET", made.headers["location"], documents.Run).json


def test_an_environment_is_there(http: Http, version: Any) -> None:
    assert version["cases"] == CASES
    assert version["verification"]["state"] == "verified"
    assert http("GET", f"/api/v1/environments/{ENVIRONMENT}", documents.Environment).json["cases"] == CASES
    page = http("GET", "/api/v1/environments", documents.EnvironmentPage).json
    assert ENVIRONMENT in [item["name"] for item in page["items"]]
    again = http("GET", f"/api/v1/environments/{ENVIRONMENT}/versions", documents.VersionPage).json
    assert version in again["items"]


def test_a_run_is_reported(http: Http, ended_run: Any) -> None:
    report = http("GET", f"/api/v1/runs/{ended_run['run']}/report", documents.Report).json
    assert report["coverage"] == {"planned": CASES, "recorded": CASES, "scored": CASES}
    metric = report["metrics"][report["primary_rule"]]
    assert metric["passed"] + metric["failed"] == CASES
    assert metric["mean"] == pytest.approx(metric["passed"] / CASES)
    assert metric["ci95"][0] < metric["mean"] < metric["ci95"][1]
    assert report["simulated"] is True
    page = documents.RunPage
    runs = http("GET", f"/api/v1/runs?environment={ENVIRONMENT}&state=succeeded", page).json["items"]
    assert ended_run in runs


def test_results_are_read_page_by_page(http: Http, ended_run: Any) -> None:
    def pages(which: str) -> Iterator[dict[str, Any]]:
        token = ""
        while True:
            path = f"/api/v1/runs/{ended_run['run']}/results?filter={which}&page_size=30&page_token={token}"
            page = http("GET", path, documents.ResultPage).json
            assert len(page["items"]) <= 30
            yield from page["items"]
            if page["next_page_token"] is None:
                return
            token = page["next_page_token"]

    everything = list(pages("all"))
    assert [result["position"] for result in everything] == list(range(CASES))
    assert all(result["target"] is not None for result in everything)
    rule = ended_run["primary_rule"]
    passed = [result["case_id"] for result in everything if result["scores"][rule]["passed"]]
    assert [result["case_id"] for result in pages("passed")] == passed
    assert len(list(pages("failed"))) == CASES - len(passed)
    assert list(pages("unscored")) == []


def test_answers_are_for_keys_with_the_scope(stack: LocalStack, ended_run: Any) -> None:
    key = "bg_" + secrets.token_urlsafe(30)
    dsn = DataDir(stack.data_dir).settings().postgres().dsn("gateway")

    async def add() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            await connection.execute(
                "INSERT INTO api_keys (id, name, hash, scopes) VALUES ($1, 'reader', $2, $3)",
                "k" + secrets.token_hex(6),
                hash_token(key),
                [str(Scope.READ)],
            )
        finally:
            await connection.close()

    asyncio.run(add())
    reader = Http(stack, key)
    page = documents.ResultPage
    for result in reader("GET", f"/api/v1/runs/{ended_run['run']}/results", page).json["items"]:
        assert result["target"] is None
    for method, path, body in [
        ("POST", "/api/v1/runs", {"environment": ENVIRONMENT, "model": "builtin/echo"}),
        ("POST", f"/api/v1/runs/{ended_run['run']}:cancel", None),
        ("POST", "/api/v1/models", {"name": "m", "base_url": "http://127.0.0.1:9/v1", "model": "m"}),
        ("POST", "/api/v1/models/builtin/echo:test", None),
        ("DELETE", "/api/v1/models/m", None),
    ]:
        assert reader(method, path, body=body).status == 403, path


def test_a_repeated_request_makes_one_run(http: Http, version: Any) -> None:
    key = str(uuid.uuid4())
    body = {"environment": version["name"], "model": "builtin/constant", "limit": 3}
    first = http("POST", "/api/v1/runs", documents.Run, body=body, idempotency_key=key)
    again = http("POST", "/api/v1/runs", documents.Run, body=body, idempotency_key=key)
    assert (again.status, again.body) == (201, first.body)
    assert again.headers["idempotent-replayed"] == "true"
    assert http("POST", "/api/v1/runs", body=body | {"limit": 4}, idempotency_key=key).status == 422


def test_a_run_is_cancelled(stack: LocalStack, http: Http, version: Any) -> None:
    body = {"environment": version["name"], "model": "builtin/simulated?latency_ms=3000", "trials": 20}
    run = http("POST", "/api/v1/runs", documents.Run, body=body).json["run"]
    assert http("GET", f"/api/v1/runs/{run}/report").status in (404, 409)
    stopped = http("POST", f"/api/v1/runs/{run}:cancel", documents.Run)
    assert stopped.status == 200
    assert [event["state"] for event in followed(stack, run)][-1] == "cancelled"


def test_recorded_answers_are_scored(stack: LocalStack, http: Http, version: Any, ended_run: Any) -> None:
    page = documents.ResultPage
    results = http("GET", f"/api/v1/runs/{ended_run['run']}/results?page_size=1000", page).json["items"]
    lines = b"".join(
        json.dumps({"case_id": result["case_id"], "response": result["response"]}).encode() + b"\n"
        for result in results
    )
    path = f"/api/v1/predictions?environment={version['name']}&label=again"
    kind = "application/x-ndjson"
    stored = http("POST", path, documents.StoredPredictions, body=lines, content_type=kind)
    assert stored.json["predictions"]["rows"] == CASES
    run = http("POST", "/api/v1/runs", documents.Run, body=stored.json).json["run"]
    assert [event["state"] for event in followed(stack, run)][-1] == "succeeded"
    old = http("GET", f"/api/v1/runs/{ended_run['run']}/report", documents.Report).json
    new = http("GET", f"/api/v1/runs/{run}/report", documents.Report).json
    assert new["metrics"] == old["metrics"]
    assert new["model"] == "again"
    refused = http("POST", path, body=b'{"case_id": "no such case", "response": ""}\n', content_type=kind)
    assert (refused.status, refused.json["reason"]) == (400, "INVALID_INPUT")


def test_a_model_is_registered_and_removed(http: Http) -> None:
    body = {
        "name": "http-test",
        "base_url": "http://127.0.0.1:9/v1",
        "model": "m",
        "secret": "sk-very-secret",
    }
    made = http("POST", "/api/v1/models", documents.Model, body=body)
    assert (made.status, made.json["has_secret"]) == (201, True)
    assert b"sk-very-secret" not in made.body
    assert b"sk-very-secret" not in http("GET", made.headers["location"], documents.Model).body
    tested = http("POST", made.headers["location"] + ":test", documents.ModelTest)
    assert tested.json["ok"] is False
    assert http("DELETE", made.headers["location"]).status == 204
    assert http("GET", made.headers["location"]).status == 404


def test_a_broken_environment_is_rejected_with_all_its_problems(http: Http, tmp_path: Path) -> None:
    archive = tmp_path / "broken.zip"
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "environment.yaml").write_text("schema: 1\nname: Not A Name\nversion: one\n")
    bundle.pack(folder, archive)
    path = "/api/v1/environments"
    zipped = archive.read_bytes()
    uploaded = http("POST", path, documents.Publication, body=zipped, content_type="application/zip")
    deadline = time.monotonic() + END_SECONDS
    while (publication := http("GET", uploaded.headers["location"], documents.Publication).json)[
        "state"
    ] != "rejected":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(publication["problems"]) >= 3
    assert {problem["file"] for problem in publication["problems"]} == {"environment.yaml"}


def test_internal_services_cannot_be_reached(stack: LocalStack) -> None:
    metadata = (("authorization", f"Bearer {stack.api_key}"),)
    with grpc.insecure_channel(stack.grpc) as channel:
        leases = lease_pb2_grpc.LeaseServiceStub(channel)
        records = result_pb2_grpc.RecordServiceStub(channel)
        for call in (
            lambda: leases.LeaseShard(lease_pb2.LeaseShardRequest(shard="r1-000001"), metadata=metadata),
            lambda: leases.GetModelSecret(lease_pb2.GetModelSecretRequest(), metadata=metadata),
            lambda: records.GetProgress(result_pb2.GetProgressRequest(), metadata=metadata),
            lambda: list(records.RecordResults(iter([]), metadata=metadata)),
        ):
            with pytest.raises(grpc.RpcError) as failure:
                call()
            assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
