"""The client library against a real gRPC server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchgen import errors
from benchgen.bundle import BundleInvalid
from benchgen.client import TERMINAL, Client
from benchgen.eval.v1 import environment_pb2, model_pb2, run_pb2
from tests.unit.cli.platform import API_KEY, CASES, Platform, serving


def test_a_run_from_its_creation_to_its_report(client: Client) -> None:
    run = client.run("gsm8k-mini", model="builtin/simulated", limit=5, trials=2)
    states = list(client.watch(run.name))
    assert states[-1].state in TERMINAL
    assert states[-1].progress.recorded == 10
    assert client.report(run.name).coverage.planned == 10


def test_short_outages_are_not_noticed(client: Client, platform: Platform) -> None:
    platform.outages = 3
    assert client.get_version("gsm8k-mini").cases == CASES


def test_a_creation_that_is_tried_again_happens_once(client: Client, platform: Platform) -> None:
    platform.outages = 2
    client.run("gsm8k-mini", model="builtin/simulated")
    assert len(platform.runs) == 1


def test_the_same_request_id_is_the_same_run(client: Client) -> None:
    request = run_pb2.CreateRunRequest(request_id="one", environment="gsm8k-mini", model="builtin/simulated")
    assert client.create_run(request).name == client.create_run(request).name


def test_a_removal_whose_answer_was_lost_is_no_error(client: Client, platform: Platform) -> None:
    client.create_model(model_pb2.Model(name="gpt", base_url="http://127.0.0.1:1/v1"))
    del platform.models["gpt"]
    platform.outages = 1
    client.delete_model("gpt")
    with pytest.raises(errors.NotFound):
        client.delete_model("gpt")


def test_no_server_is_unavailable_after_the_patience(address: str) -> None:
    with Client("127.0.0.1:9", API_KEY, connect_seconds=0.3) as client, pytest.raises(errors.Unavailable):
        list(client.list_models())


def test_a_wrong_key_is_told(address: str) -> None:
    with (
        Client(address, "bg_wrong") as client,
        pytest.raises(errors.Unauthenticated, match="no such API key"),
    ):
        client.get_version("gsm8k-mini")


def test_watching_survives_a_restart(client: Client, platform: Platform) -> None:
    platform.broken_watches = 2
    run = client.run("gsm8k-mini", model="builtin/simulated")
    assert [state.state for state in client.watch(run.name)][-1] == run_pb2.Run.STATE_SUCCEEDED


def test_the_server_may_come_back_at_the_same_address(platform: Platform) -> None:
    with serving(platform) as address:
        client = Client(address, API_KEY, patience=10)
        client.get_version("gsm8k-mini")
    with client, serving(platform, int(address.rpartition(":")[2])):
        assert client.get_version("gsm8k-mini").cases == CASES


def test_lists_are_read_page_by_page(client: Client) -> None:
    run = client.run("gsm8k-mini", model="builtin/simulated")
    list(client.watch(run.name))
    assert [result.position for result in client.results(run.name)] == list(range(CASES))
    assert len(list(client.results(run.name, limit=5))) == 5
    assert [result.case_id for result in client.results(run.name, which="failed")] == ["case-008", "case-009"]
    assert [result.case_id for result in client.results(run.name, case_id="case-003")] == ["case-003"]


def test_runs_are_found_by_a_beginning_and_by_latest(client: Client, platform: Platform) -> None:
    for name in ("ra0", "ra1", "rb0"):
        platform.runs[name] = run_pb2.Run(name=name)
    assert client.get_run("rb").name == "rb0"
    assert client.get_run("latest").name == "rb0"
    with pytest.raises(errors.InvalidInput, match="can mean 2 runs: ra1, ra0"):
        client.get_run("ra")
    with pytest.raises(errors.NotFound, match="no run 'rx'"):
        client.get_run("rx")


def test_latest_without_any_run(client: Client) -> None:
    with pytest.raises(errors.NotFound, match="no run yet"):
        client.get_run("latest")


def test_push_follows_the_publication(client: Client, folder: Path) -> None:
    seen: list[int] = []
    publication = client.push(folder, lambda change: seen.append(change.state))
    state = environment_pb2.Publication
    assert publication.environment_version == "my-task@0.1.0"
    assert seen == [
        state.STATE_UPLOADED,
        state.STATE_VALIDATING,
        state.STATE_MATERIALISING,
        state.STATE_VERIFYING,
        state.STATE_READY,
    ]
    assert client.push(folder).already_published


def test_a_rejected_push_carries_all_problems(client: Client, platform: Platform, folder: Path) -> None:
    platform.problems = [
        environment_pb2.Problem(file="data/test.jsonl", line=3, field="answer", message="expected a number"),
        environment_pb2.Problem(file="environment.yaml", message="expected a title"),
    ]
    with pytest.raises(BundleInvalid) as caught:
        client.push(folder)
    assert [str(problem) for problem in caught.value.problems] == [
        "data/test.jsonl:3: answer: expected a number",
        "environment.yaml: expected a title",
    ]


def test_bundles_travel_whole(client: Client, platform: Platform, folder: Path, tmp_path: Path) -> None:
    client.push(folder)
    client.download_bundle("my-task@0.1.0", tmp_path / "back.zip")
    assert (tmp_path / "back.zip").read_bytes() == platform.bundles["my-task@0.1.0"]


def test_predictions_are_uploaded_for_the_version_they_answer(
    client: Client, platform: Platform, tmp_path: Path
) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text(json.dumps({"case_id": "case-000", "response": "#### 1"}) + "\n")
    run = client.run("gsm8k-mini", predictions=answers)
    assert run.spec.subject.predictions.label == "answers.jsonl"
    assert run.spec.subject.predictions.rows == 1
    assert run.spec.digest == platform.versions["gsm8k-mini@1.0.0"].digest


def test_a_run_needs_exactly_one_subject(client: Client) -> None:
    with pytest.raises(errors.InvalidInput):
        client.run("gsm8k-mini")
