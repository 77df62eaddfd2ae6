"""A competition from its bundle to its leaderboard, on the whole stack: solutions, predictions, programs, a model."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchgen.bundle import BundleInvalid
from benchgen.client import Client
from benchgen.errors import InvalidInput
from benchgen.eval.v1 import environment_pb2, result_pb2, run_pb2
from services.gateway.http import documents
from tests.conftest import LocalStack
from tests.unit.bundle.competition.support import Files, documented, folder_tree, within, zipped

SCORE = """
import json, os
truth = open("/app/input/ref/truth.txt").read().split()
given = open("/app/input/res/answers.txt").read().split()
right = [a == b for a, b in zip(truth, given)]
with open("/app/output/results.jsonl", "w") as cases:
    for n, good in enumerate(right):
        cases.write(json.dumps({"case_id": str(n), "value": float(good)}) + "\\n")
open("/app/output/detailed_results.html", "w").write("<h1>Details</h1><script>alert(1)</script>")
print("truth is", truth)
scores = {"accuracy": sum(right) / len(truth), "loss": 27.5 if all(right) else float("nan"), "more": {"x": 1}}
json.dump(scores, open("/app/output/scores.json", "w"))
"""
INGESTION = """
import json, os, urllib.request
answers = []
for word in open("/app/input_data/words.txt").read().split():
    asked = {"model": os.environ["RPE_MODEL_NAME"], "messages": [{"role": "user", "content": word}]}
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + "/chat/completions",
        json.dumps(asked).encode(),
        {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"},
    )
    answers.append(json.load(urllib.request.urlopen(request))["choices"][0]["message"]["content"])
assert not os.path.exists("/app/input/ref"), "the reference data is here"
open("/app/output/answers.txt", "w").write(" ".join(answers))
"""
YAML = """
title: Words
pages:
  - {title: Overview, file: pages/overview.md}
image: logo.png
terms: pages/terms.md
phases:
  - {index: 0, name: Development, tasks: [0], execution_time_limit: 20}
  - {index: 1, name: Final, tasks: [0, 1], execution_time_limit: 20}
tasks:
  - {index: 0, name: Short, scoring_program: scoring, reference_data: short, ingestion_program: ingestion,
     input_data: words}
  - {index: 1, name: Long, scoring_program: scoring, reference_data: long, ingestion_program: ingestion,
     input_data: words}
solutions:
  - {index: 0, name: Good, path: good.zip, tasks: [0]}
  - {index: 1, name: Broken, path: broken.zip, tasks: [0]}
leaderboards:
  - title: Results
    key: main
    columns:
      - {title: Accuracy, key: accuracy, index: 0, sorting: desc}
      - {title: Loss, key: loss, index: 1, sorting: asc}
      - {title: Both, key: both, index: 2, computation: sum, computation_indexes: [0, 1]}
"""


def bundle() -> Files:
    files = documented(competition_DOT_yaml=YAML)
    for name in ("scoring.zip", "reference.zip", "solution.zip"):
        del files[name]
    return {
        **files,
        **within("scoring", {"metadata.yaml": "command: python3 score.py", "score.py": SCORE}),
        **within("ingestion", {"metadata": "command: python3 run.py", "run.py": INGESTION}),
        **within("words", {"words.txt": "a b c d"}),
        **within("short", {"truth.txt": "a b c d"}),
        **within("long", {"truth.txt": "a b c d e f g h"}),
        "good.zip": zipped({"answers.txt": "a b c d"}),
        "broken.zip": zipped({"answer.txt": "a b c d"}),
    }


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[Client]:
    with Client(stack.grpc, stack.api_key) as connected:
        yield connected


@pytest.fixture(scope="module")
def published(client: Client, tmp_path_factory: pytest.TempPathFactory) -> environment_pb2.EnvironmentVersion:
    folder = tmp_path_factory.mktemp("bundle")
    folder_tree(folder, bundle())
    publication = client.push(folder)
    assert publication.environment_version == "words@1.0.0"
    assert client.push(folder).already_published
    return client.get_version("words")


def submitted(folder: Path, files: Files) -> Path:
    path = folder / "submission.zip"
    path.write_bytes(zipped(files))
    return path


def ended(client: Client, run: run_pb2.Run) -> result_pb2.Report:
    *_, last = client.watch(run.name)
    assert last.state == run_pb2.Run.STATE_SUCCEEDED, last.state_message
    return client.report(run.name)


def values(client: Client, run: str) -> dict[str, dict[str, float | str]]:
    return {
        result.case_id: {
            score.rule: score.value if score.HasField("value") else score.error for score in result.scores
        }
        for result in client.results(run)
    }


def test_a_version_shows_what_its_solutions_score(published: environment_pb2.EnvironmentVersion) -> None:
    check = published.verification
    assert check.state == environment_pb2.Verification.STATE_UNVERIFIED
    found = {(one.solution, one.case_id): (dict(one.scores), one.error) for one in check.solutions}
    assert set(found) == {
        (name, f"{phase}/Short") for name in ("Good", "Broken") for phase in ("Development", "Final")
    }
    scores, error = found["Good", "Development/Short"]
    assert (scores, error) == ({"accuracy": 1.0, "loss": 27.5, "both": 28.5}, "")
    scores, error = found["Broken", "Final/Short"]
    assert scores == {}
    assert "exited with code 1" in error
    assert "answers.txt" in error
    assert "Broken" in check.message
    about = json.loads(published.competition_json)
    assert [page["title"] for page in about["pages"]] == ["Overview"]
    assert [task["name"] for task in about["phases"][1]["tasks"]] == ["Short", "Long"]


def test_predictions_are_scored_in_every_phase(
    client: Client, published: environment_pb2.EnvironmentVersion, tmp_path: Path
) -> None:
    predictions = submitted(tmp_path, {"answers.txt": "a b x d"})
    run = client.run("words", predictions=predictions)
    report = ended(client, run)
    assert report.metrics["accuracy"].mean == pytest.approx((0.75 + 0.75 + 3 / 8) / 3)
    assert not report.totals_only
    found = values(client, run.name)
    assert found["Development/Short"]["accuracy"] == 0.75
    assert found["Final/Long"]["accuracy"] == 3 / 8
    # What is no number has no score, and says why; no bounds are made up for it.
    assert "found NaN, which cannot be ranked" in str(found["Final/Long"]["loss"])
    assert "columns of which loss have no score" in str(found["Final/Long"]["both"])
    assert report.metrics["loss"].errors == 3
    assert not report.metrics["loss"].HasField("mean")
    assert not report.metrics["loss"].HasField("worst")


def test_a_submitted_program_runs_beside_the_ingestion_program(
    client: Client, published: environment_pb2.EnvironmentVersion, tmp_path: Path
) -> None:
    code = (
        "import os\nopen('/app/output/answers.txt', 'w').write('a b c d')\nprint('I ran in', os.getcwd())\n"
    )
    submission = submitted(tmp_path, {"metadata.yaml": "command: python3 m.py", "m.py": code})
    run = client.run("words", submission=submission, phase="Development")
    report = ended(client, run)
    assert report.coverage.planned == 1
    assert {name: metric.mean for name, metric in report.metrics.items()} == {
        "accuracy": 1.0,
        "loss": 27.5,
        "both": 28.5,
    }
    task = client.task(run.name, "Development/Short")
    logs = {(one.step, one.name): one for one in task.programs}
    assert logs["prediction", "submission"].stdout.startswith("I ran in /app/")
    # Without a model the ingestion program fails; that is its own affair.
    assert logs["prediction", "ingestion"].exit_code == 1
    assert "RPE_MODEL_NAME" in logs["prediction", "ingestion"].stderr
    assert logs["scoring", "scoring"].exit_code == 0
    assert "truth is" in logs["scoring", "scoring"].stdout
    assert (task.has_details, task.cases) == (True, 4)
    files = result_pb2.DownloadTaskFileRequest
    data = client.task_file(run.name, "Development/Short", file=files.FILE_PREDICTIONS)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.read("answers.txt") == b"a b c d"
        assert b"exitCode: 0" in archive.read("metadata")
    cases = client.task_file(run.name, "Development/Short", file=files.FILE_CASES)
    assert json.loads(cases.splitlines()[0]) == {"case_id": "0", "value": 1.0}


def test_a_model_answers_through_the_ingestion_program(
    client: Client, published: environment_pb2.EnvironmentVersion
) -> None:
    run = client.run("words", model="builtin/echo", phase="1")
    report = ended(client, run)
    assert {case: scores["accuracy"] for case, scores in values(client, run.name).items()} == {
        "Final/Short": 1.0,
        "Final/Long": 0.5,
    }
    assert report.calls == 0
    assert [call.number for call in client.calls(run.name, "Final/Short")] == [1, 2, 3, 4]


def test_runs_are_ranked_as_the_bundle_says(
    client: Client, published: environment_pb2.EnvironmentVersion, tmp_path: Path
) -> None:
    worse = client.run("words", predictions=submitted(tmp_path, {"answers.txt": "x x x x"}), phase="Final")
    ended(client, worse)
    best = client.run(
        "words", predictions=submitted(tmp_path, {"answers.txt": "a b c d e f g h"}), phase="Final"
    )
    ended(client, best)
    board = client.leaderboard(published.digest, 1)
    assert list(board.columns) == ["accuracy", "loss", "both"]
    places = {entry.run: entry.place for entry in board.entries}
    assert places[best.name] == 1
    assert board.entries[-1].run == worse.name
    # A column that a task has no score for has no mean.
    assert "loss" not in board.entries[-1].scores


def test_what_cannot_be_run_is_told(
    client: Client, published: environment_pb2.EnvironmentVersion, tmp_path: Path
) -> None:
    answers = submitted(tmp_path, {"answers.txt": "a"})
    with pytest.raises(
        InvalidInput, match="expected one of Development, Final, or its place from 0, found 'Finale'"
    ):
        client.run("words", predictions=answers, phase="Finale")
    with pytest.raises(InvalidInput, match=r"gsm8k-mini.* is no competition.yaml environment"):
        client.run("gsm8k-mini", submission=answers)
    with pytest.raises(InvalidInput, match="has no answers for a competition"):
        client.run("words", model="builtin/oracle")
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"no zip")
    with pytest.raises(InvalidInput, match=r"(?s)cannot be used.*submission\.zip: expected a zip archive"):
        client.run("words", submission=broken)


def test_versions_are_numbered_and_named(client: Client, tmp_path: Path) -> None:
    files = bundle()
    files["competition.yaml"] = YAML.replace("solutions:", "old_solutions:")
    folder_tree(tmp_path, files)
    named = client.push(tmp_path, name="org/words", version="3.1.0-beta")
    assert named.environment_version == "org/words@3.1.0-beta"
    assert "no solution" in named.verification.message
    (tmp_path / "pages" / "overview.md").write_text("another text")
    assert client.push(tmp_path, name="more-words").environment_version == "more-words@1.0.0"
    (tmp_path / "pages" / "overview.md").write_text("a third text")
    assert client.push(tmp_path, name="more-words").environment_version == "more-words@1.1.0"
    (tmp_path / "pages" / "overview.md").write_text("yet another text")
    with pytest.raises(BundleInvalid, match="is published already with other content"):
        client.push(tmp_path, name="more-words", version="1.1.0")
    with pytest.raises(BundleInvalid, match="version: expected a semantic version"):
        client.push(tmp_path, version="one")


class Http:
    def __init__(self, stack: LocalStack) -> None:
        self._base = stack.api
        self._key = stack.api_key

    def __call__(
        self, path: str, data: bytes | None = None, kind: str = "application/zip"
    ) -> tuple[Any, bytes]:
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": kind}
        request = urllib.request.Request(f"{self._base}/api/v1/{path}", data, headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.headers, answer.read()


def test_over_http(
    stack: LocalStack, client: Client, published: environment_pb2.EnvironmentVersion, tmp_path: Path
) -> None:
    http = Http(stack)
    _, body = http("predictions?environment=words@1.0.0&label=mine", zipped({"answers.txt": "a b c d"}))
    stored = json.loads(body)
    assert stored["submission"]["answers_only"] is True
    made = documents.Run.model_validate_json(
        http("runs", json.dumps(stored | {"phase": "Development"}).encode(), "application/json")[1]
    )
    assert (made.model, made.selection.phase) == ("mine", "Development")
    ended(client, client.get_run(made.run))
    case = "case_id=Development/Short"
    task = documents.Task.model_validate_json(http(f"runs/{made.run}/task?{case}")[1])
    assert [program.step for program in task.programs] == ["scoring"]
    headers, page = http(f"runs/{made.run}/task/details?{case}")
    # Whatever it holds does nothing: it is nobody's page, and loads nothing.
    assert page.startswith(b"<h1>Details</h1><script>")
    assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    version = documents.Version.model_validate_json(http("environments/words/versions/1.0.0")[1])
    assert version.competition is not None
    shown = version.competition["pages"][0]
    headers, page = http(f"environments/words/versions/1.0.0/assets/{shown['sha256']}")
    assert (page, headers["Content-Type"]) == (b"# Letters", "text/markdown; charset=utf-8")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        http(f"environments/words/versions/1.0.0/assets/{'0' * 64}")
    board = documents.Leaderboard.model_validate_json(
        http("environments/words/versions/1.0.0/leaderboard?phase=0")[1]
    )
    assert made.run in [entry.run for entry in board.entries]
    _, body = http("submissions?label=again", zipped({"answers.txt": "a b c d"}))
    assert json.loads(body)["submission"]["digest"] == stored["submission"]["digest"]


def test_a_removed_run_leaves_the_leaderboard(
    client: Client, published: environment_pb2.EnvironmentVersion, tmp_path: Path
) -> None:
    run = client.run("words", predictions=submitted(tmp_path, {"answers.txt": "a"}), phase="Development")
    ended(client, run)
    assert run.name in [entry.run for entry in client.leaderboard(published.digest, 0).entries]
    client.delete_run(run.name)
    assert run.name not in [entry.run for entry in client.leaderboard(published.digest, 0).entries]
