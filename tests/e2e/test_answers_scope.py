"""A key without the scope `answers` reads everything there is, and finds no expected answer in any of it."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import pytest
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from benchgen import bundle
from benchgen.eval.v1 import environment_pb2, result_pb2, run_pb2
from services.common.auth import Scope, hash_token
from services.gateway import store
from services.gateway.domain import new_key_id
from services.gateway.passthrough import PUBLIC_SERVICES
from services.local.state import DataDir
from tests.conftest import LocalStack
from tests.e2e.test_http import Http
from tests.unit.bundle.competition.support import folder_tree
from tests.unit.bundle.competition.support import zipped as zip_of

CASES = 6
END_SECONDS = 60.0

#: Words that stand in targets, in reference solutions and in rules, and nowhere else.
TARGET, SOLUTION, LITERAL = "zarquon", "slartibart", "fjordword"
SECRETS = (TARGET, SOLUTION, LITERAL)

MANIFEST = f"""\
schema: 1
name: {{name}}
version: 1.0.0
title: What is hidden
category: reasoning
dataset: {{{{file: data/test.jsonl, id: id, target: answer}}}}
harness:
  type: chat
  prompt: "{{{{{{{{ question }}}}}}}}"
oracle: "{{oracle}}"
scoring:
  - {{{{name: correct, type: exact_match, extract: {{{{line: last}}}}, primary: true}}}}
  - {{{{name: cannot_judge, type: choice}}}}
  - {{{{name: literal, type: regex, pattern: {LITERAL}}}}}
"""
ROWS = [
    {
        "id": f"case-{n}",
        "question": f"What is number {n}?",
        # A number at the end: a simulated answer that is wrong keeps the words.
        "answer": f"{TARGET} {n + 10}",
        "solution": f"By {SOLUTION}.\n{TARGET} {n + 10}",
    }
    for n in range(CASES)
]


def zipped(folder: Path, name: str, oracle: str) -> bytes:
    """An environment as it is uploaded."""
    (folder / "source" / "data").mkdir(parents=True)
    (folder / "source" / "environment.yaml").write_text(MANIFEST.format(name=name, oracle=oracle))
    (folder / "source" / "data" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    bundle.pack(folder / "source", folder / "bundle.zip")
    return (folder / "bundle.zip").read_bytes()


COMPETITION = """\
title: Judged
phases: [{index: 0, name: Only, tasks: [0]}]
tasks: [{index: 0, name: Words, scoring_program: scoring, reference_data: reference}]
solutions: [{index: 0, path: solution.zip, tasks: [0]}]
pages: [{title: Overview, file: overview.md}]
leaderboards:
  - {title: Results, key: main, columns: [{title: Accuracy, key: accuracy, index: 0}]}
"""
#: Says what is expected wherever it can be said: logs, details, single cases, and why there is no score.
SCORING = """\
truth = open("/app/input/ref/truth.txt").read()
given = open("/app/input/res/answers.txt").read()
print(truth)
open("/app/output/detailed_results.html", "w").write(truth)
open("/app/output/results.jsonl", "w").write('{"case_id": "0", "value": 0.5, "target": "%s"}\\n' % truth)
if given == "worse":
    raise SystemExit(truth)
open("/app/output/scores.json", "w").write('{"accuracy": 0.5}')
"""


def competition(folder: Path) -> bytes:
    """A competition as it is uploaded; its solution fails, and the reason quotes the truth."""
    files = {
        "competition.yaml": COMPETITION,
        "overview.md": "Guess.",
        "scoring/metadata.yaml": "command: python3 score.py",
        "scoring/score.py": SCORING,
        "reference/truth.txt": TARGET,
    }
    folder_tree(folder / "source", {**files, "solution.zip": zip_of({"answers.txt": "worse"})})
    bundle.pack(folder / "source", folder / "bundle.zip")
    return (folder / "bundle.zip").read_bytes()


def new_key(stack: LocalStack, *scopes: Scope) -> str:
    """Make an API key."""
    key = "bg_" + secrets.token_urlsafe(30)

    async def add() -> None:
        async with asyncpg.create_pool(
            DataDir(stack.data_dir).settings().postgres().dsn("gateway"), min_size=1, max_size=1
        ) as pool:
            assert await store.add_key(
                pool, new_key_id(), "reader", hash_token(key), [str(s) for s in scopes]
            )

    asyncio.run(add())
    return key


def published(http: Http, data: bytes) -> dict[str, Any]:
    """A publication that has ended."""
    made = http("POST", "/api/v1/environments", body=data, content_type="application/zip").json
    deadline = time.monotonic() + END_SECONDS
    while made["state"] not in ("ready", "rejected"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        made = http("GET", f"/api/v1/publications/{made['publication']}").json
    return dict(made)


def ended(http: Http, body: dict[str, Any]) -> str:
    """A run that has succeeded."""
    made = http("POST", "/api/v1/runs", body=body)
    assert made.status == 201, made.body
    run = str(made.json["run"])
    deadline = time.monotonic() + END_SECONDS
    while (state := http("GET", f"/api/v1/runs/{run}").json["state"]) != "succeeded":
        assert state != "failed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return run


def everything_over_http(http: Http, ids: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Every GET route with every id: what was asked, and what was answered."""
    paths = http("GET", "/openapi.json").json["paths"]
    for path in (path for path, methods in paths.items() if "get" in methods):
        filled = [path]
        for parameter in re.findall(r"{(\w+)}", path):
            kind = _kind(path, parameter)
            values = [urllib.parse.quote(value) for value in ids[kind]]
            filled = [one.replace(f"{{{parameter}}}", value) for one in filled for value in values]
        for one in filled:
            found = http("GET", one + CASE_OF.get(path, ""))
            if path not in CLOSED or found.status != HTTPStatus.FORBIDDEN:
                assert found.status == HTTPStatus.OK, (one, found.body)
                yield path, found.body.decode(errors="replace")


#: The case that is asked for, where one has to be.
FILES = "/api/v1/runs/{run}/task/{file}"
CASE_OF = {
    "/api/v1/runs/{run}/calls": "?case_id=case-0",
    "/api/v1/runs/{run}/task": "?case_id=Only/Words",
    FILES: "?case_id=Only/Words",
}
#: What may be refused without another scope.
CLOSED = {FILES, "/api/v1/keys"}


def _kind(path: str, parameter: str) -> str:
    """Which ids fit a parameter of a path: some routes are for competitions alone."""
    if path.endswith(("/task", "/task/{file}", "/leaderboard", "/assets/{sha256}")) and parameter in (
        "run",
        "name",
    ):
        return f"competition {parameter}"
    if path.endswith("/calls"):
        return "plain run"
    return "model" if "/models/" in path else parameter


#: How every public method is asked that only reads; the ids are filled in.
REQUESTS: dict[str, tuple[str | None, Callable[[str], Message]]] = {
    "GetPublication": ("publication", lambda name: environment_pb2.GetPublicationRequest(name=name)),
    "GetEnvironment": ("name", lambda name: environment_pb2.GetEnvironmentRequest(name=name)),
    "ListEnvironments": (None, lambda _: environment_pb2.ListEnvironmentsRequest()),
    "GetEnvironmentVersion": (
        "name",
        lambda name: environment_pb2.GetEnvironmentVersionRequest(name=name),
    ),
    "ListEnvironmentVersions": (
        "name",
        lambda name: environment_pb2.ListEnvironmentVersionsRequest(environment=name),
    ),
    "GetRun": ("run", lambda run: run_pb2.GetRunRequest(name=run)),
    "ListRuns": (None, lambda _: run_pb2.ListRunsRequest()),
    "WatchRun": ("run", lambda run: run_pb2.WatchRunRequest(name=run)),
    # Writes nothing where a run has ended and misses nothing.
    "ResumeRun": ("run", lambda run: run_pb2.ResumeRunRequest(name=run)),
    "CancelRun": ("run", lambda run: run_pb2.CancelRunRequest(name=run)),
    "ListResults": ("run", lambda run: result_pb2.ListResultsRequest(run=run)),
    "ListCalls": ("plain run", lambda run: result_pb2.ListCallsRequest(run=run, case_id="case-0")),
    "GetTask": ("competition run", lambda run: result_pb2.GetTaskRequest(run=run, case_id="Only/Words")),
    "GetReport": ("run", lambda run: result_pb2.GetReportRequest(run=run)),
}
#: Those that need other scopes, have no answers, or were called over HTTP.
OTHERS = {
    *("UploadBundle", "YankEnvironmentVersion", "DownloadBundle", "UploadPredictions", "CreateRun"),
    *("CreateModel", "GetModel", "ListModels", "DeleteModel", "TestModel", "PauseRun", "DeleteRun"),
    *("EstimateRun", "ClearCache", "UploadSubmission", "DownloadAsset", "DownloadTaskFile", "GetLeaderboard"),
}


def everything_over_grpc(address: str, key: str, ids: dict[str, list[str]]) -> Iterator[tuple[str, str]]:
    """Every public method of :data:`REQUESTS` with every id: what was asked, and what was answered."""
    metadata = (("authorization", f"Bearer {key}"),)
    methods = {method.name: method for service in PUBLIC_SERVICES for method in service.methods}
    assert methods.keys() == REQUESTS.keys() | OTHERS, "a new method: may it be read without `answers`?"
    with grpc.insecure_channel(address) as channel:
        dial: Any = channel
        for name, (kind, request) in REQUESTS.items():
            method = methods[name]
            path = f"/{method.containing_service.full_name}/{name}"
            kinds: dict[str, Any] = {
                "request_serializer": lambda message: message.SerializeToString(),
                "response_deserializer": GetMessageClass(method.output_type).FromString,
            }
            for value in [""] if kind is None else ids[kind]:
                if method.server_streaming:
                    answers = list(dial.unary_stream(path, **kinds)(request(value), metadata=metadata))
                else:
                    answers = [dial.unary_unary(path, **kinds)(request(value), metadata=metadata)]
                assert answers
                yield name, "".join(MessageToJson(answer) for answer in answers)


@pytest.fixture(scope="module")
def ids(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What there is to read: a version, a rejected upload that quotes a target, runs by a key that may only run."""
    admin, runner = Http(stack, stack.api_key), Http(stack, new_key(stack, Scope.READ, Scope.RUN))
    good = published(admin, zipped(tmp_path_factory.mktemp("good"), "hidden", "{{ solution }}"))
    assert good["state"] == "ready", good["problems"]
    bad = published(admin, zipped(tmp_path_factory.mktemp("bad"), "hidden-bad", "{{ question }}"))
    assert bad["state"] == "rejected"
    lines = json.dumps({"case_id": "case-0", "response": "no idea"}).encode()
    path = "/api/v1/predictions?environment=hidden"
    stored = runner("POST", path, body=lines, content_type="application/x-ndjson").json
    subjects: list[dict[str, Any]] = [
        {"environment": "hidden", "model": "builtin/oracle"},
        {"environment": "hidden", "model": "builtin/simulated?accuracy=0.5"},
        {"environment": "hidden", "model": "builtin/constant?text=no"},
        stored,
    ]
    judged = published(admin, competition(tmp_path_factory.mktemp("judged")))
    assert judged["state"] == "ready", judged["problems"]
    tasks = []
    for answers in ("better", "worse"):
        path = "/api/v1/predictions?environment=judged"
        data = zip_of({"answers.txt": answers})
        tasks.append(ended(runner, runner("POST", path, body=data, content_type="application/zip").json))
    about = admin("GET", "/api/v1/environments/judged/versions/1.0.0").json["competition"]
    runs = [ended(runner, subject) for subject in subjects]
    return {
        "name": ["hidden", "judged"],
        "competition name": ["judged"],
        "version": ["1.0.0", "latest"],
        "sha256": [page["sha256"] for page in about["pages"]],
        "publication": [good["publication"], bad["publication"], judged["publication"]],
        "run": [*runs, *tasks],
        "plain run": runs,
        "competition run": tasks,
        "file": ["predictions", "details", "cases"],
        "model": ["builtin/oracle"],
    }


def leaks(found: Iterator[tuple[str, str]]) -> set[str]:
    """Where a secret word was read."""
    return {where for where, text in found if any(secret in text for secret in SECRETS)}


#: Where a key with every scope reads them: were one missing, the test below would prove nothing of it.
WITH_ANSWERS = {
    "/api/v1/publications/{publication}",
    "/api/v1/environments/{name}/versions",
    "/api/v1/environments/{name}/versions/{version}",
    "/api/v1/runs/{run}/results",
    *("/api/v1/runs/{run}/task", FILES, "GetTask"),
    *("GetPublication", "GetEnvironmentVersion", "ListEnvironmentVersions", "ListResults"),
    *("GetRun", "ListRuns", "WatchRun", "ResumeRun", "CancelRun"),
}


def test_answers_are_seen_with_the_scope(stack: LocalStack, ids: dict[str, list[str]]) -> None:
    http = Http(stack, stack.api_key)
    seen = leaks(everything_over_http(http, ids)) | leaks(
        everything_over_grpc(stack.grpc, stack.api_key, ids)
    )
    assert seen == WITH_ANSWERS


def test_no_answer_is_seen_without_the_scope(stack: LocalStack, ids: dict[str, list[str]]) -> None:
    key = new_key(stack, Scope.READ, Scope.RUN)
    http = Http(stack, key)
    assert leaks(everything_over_http(http, ids)) == set()
    assert leaks(everything_over_grpc(stack.grpc, key, ids)) == set()
    with grpc.insecure_channel(stack.grpc) as channel:
        download: Any = channel.unary_stream(
            "/benchgen.eval.v1.EnvironmentService/DownloadBundle",
            request_serializer=environment_pb2.DownloadBundleRequest.SerializeToString,
            response_deserializer=environment_pb2.DownloadBundleResponse.FromString,
        )
        request = environment_pb2.DownloadBundleRequest(name="hidden")
        with pytest.raises(grpc.RpcError) as failure:
            list(download(request, metadata=(("authorization", f"Bearer {key}"),)))
    assert failure.value.code() is grpc.StatusCode.PERMISSION_DENIED


def test_what_is_no_answer_is_seen_all_the_same(stack: LocalStack, ids: dict[str, list[str]]) -> None:
    http = Http(stack, new_key(stack, Scope.READ, Scope.RUN))
    by_run = {run: http("GET", f"/api/v1/runs/{run}/results").json["items"] for run in ids["plain run"]}
    oracle, simulated, constant, loaded = by_run.values()
    for result in (*oracle, *simulated):
        assert result["response"] == ""
        assert all(score["answer"] is None for score in result["scores"].values())
    assert all(result["scores"]["correct"]["passed"] for result in oracle)
    assert {result["response"] for result in constant} == {"no"}
    assert {result["scores"]["correct"]["answer"] for result in constant} == {"no"}
    assert loaded[0]["response"] == "no idea"
    for result in (*oracle, *simulated, *constant, *loaded):
        assert result["input"][0]["content"].startswith("What is number")
        assert {score["explanation"] for score in result["scores"].values()} == {""}
        assert result["scores"]["cannot_judge"]["error"].startswith("rule_error")


def test_who_uploads_reads_what_is_wrong(stack: LocalStack, ids: dict[str, list[str]]) -> None:
    bad = ids["publication"][1]
    http = Http(stack, new_key(stack, Scope.READ, Scope.PUBLISH))
    problems = http("GET", f"/api/v1/publications/{bad}").json["problems"]
    assert TARGET in problems[0]["message"]
    reader = Http(stack, new_key(stack, Scope.READ))
    hidden = reader("GET", f"/api/v1/publications/{bad}").json
    assert hidden["problems"] == [
        problem | {"message": hidden["problems"][0]["message"]} for problem in problems
    ]
    assert "scope" in hidden["problems"][0]["message"]
