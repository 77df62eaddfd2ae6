"""The `benchgen` command against the whole stack, as a person or a script uses it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchgen.bundle import write_starter
from services.local.files import PROGRAM_ROOT
from tests.conftest import LocalStack

SIMULATED = "builtin/simulated?accuracy=0.8&seed=3"


@dataclass(frozen=True, slots=True)
class Ended:
    """What a command left behind."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """What `--json` printed, which must be all of stdout."""
        assert self.code in (0, 1), self.err
        return json.loads(self.out)


def command(data_dir: Path, *arguments: str, cwd: Path, **environment: str) -> Ended:
    """Run `benchgen` in a process of its own."""
    ended = subprocess.run(
        [sys.executable, "-m", "benchgen.cli.main", *arguments],
        cwd=cwd,
        env=os.environ
        | {"BENCHGEN_DATA_DIR": str(data_dir), "PYTHONPATH": str(PROGRAM_ROOT), "COLUMNS": "110"}
        | environment,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    return Ended(ended.returncode, ended.stdout, ended.stderr)


Benchgen = Callable[..., Ended]


@pytest.fixture
def benchgen(stack: LocalStack, tmp_path: Path) -> Benchgen:
    """The `benchgen` command with the session's stack as its server."""

    def run(*arguments: str, **environment: str) -> Ended:
        return command(stack.data_dir, *arguments, cwd=tmp_path, **environment)

    return run


def starter(folder: Path, name: str, template: str = "math") -> Path:
    """A small environment in a folder."""
    write_starter(folder, name, template)
    return folder


def test_the_main_job(benchgen: Benchgen) -> None:
    ended = benchgen("run", "gsm8k-mini", "--model", SIMULATED, "--json")
    assert ended.code == 0, ended.err
    report = ended.json()
    coverage, metric = report["coverage"], report["metrics"][report["primary_rule"]]
    assert report["simulated"] is True
    assert coverage["planned"] == coverage["recorded"] == coverage["scored"] >= 50
    assert metric["n"] == coverage["planned"]
    assert metric["passed"] + metric["failed"] == metric["n"]
    assert metric["ci95"][0] < metric["mean"] < metric["ci95"][1]
    assert report["outcomes"] == {"ok": metric["n"]}

    results = benchgen("results", report["run"], "--json").json()
    assert len({(result["case_id"], result["trial"]) for result in results}) == len(results) == metric["n"]
    passed = [result for result in results if result["scores"][report["primary_rule"]]["passed"]]
    assert len(passed) == metric["passed"]
    failed = benchgen("results", report["run"], "--failed", "--json").json()
    assert len(failed) == metric["failed"]

    shown = benchgen("report", report["run"])
    assert "simulated answers: not a measurement" in shown.out
    assert f"n = {metric['n']}" in shown.out
    assert "✗ failed" in benchgen("results", report["run"], "--failed", "--limit", "1").out


def test_the_same_run_twice_gives_the_same_answers(benchgen: Benchgen) -> None:
    def responses() -> list[tuple[str, int, str]]:
        arguments = ("--model", SIMULATED, "--limit", "12", "--trials", "2", "--seed", "5")
        run = benchgen("run", "gsm8k-mini", *arguments, "--json").json()["run"]
        results = benchgen("results", run, "--json").json()
        return [(result["case_id"], result["trial"], result["response"]) for result in results]

    first = responses()
    assert len(first) == 24
    assert first == responses()


def test_a_folder_becomes_a_version_and_stays_it(benchgen: Benchgen, tmp_path: Path) -> None:
    folder = starter(tmp_path / "cli-stays", "cli-stays")
    pushed = benchgen("env", "push", str(folder), "--json").json()
    assert (pushed["state"], pushed["already_published"]) == ("ready", False)
    assert pushed["verification"]["state"] == "verified"
    again = benchgen("env", "push", str(folder), "--json").json()
    assert (again["already_published"], again["digest"]) == (True, pushed["digest"])

    rows = folder / "data" / "test.jsonl"
    rows.write_text(rows.read_text().replace("450", "451"))
    refused = benchgen("env", "push", str(folder))
    assert refused.code == 2
    assert "cli-stays" in refused.err

    benchgen("env", "pull", "cli-stays@0.1.0", "-o", str(tmp_path / "back"))
    assert "450" in (tmp_path / "back" / "data" / "test.jsonl").read_text()


def test_all_problems_of_a_bad_folder_come_from_the_server_too(benchgen: Benchgen, tmp_path: Path) -> None:
    folder = starter(tmp_path / "cli-bad", "cli-bad")
    manifest = folder / "environment.yaml"
    manifest.write_text(manifest.read_text().replace("type: numeric", "type: numerik"))
    with (folder / "data" / "test.jsonl").open("a") as rows:
        rows.write("{bad\n")
    here, there = benchgen("env", "validate", str(folder)), benchgen("env", "push", str(folder))
    assert here.code == there.code == 2
    assert set(here.err.splitlines()) <= set(there.err.splitlines())


@pytest.mark.parametrize(("model", "mean"), [("builtin/oracle", 1.0), ("builtin/empty", 0.0)])
def test_the_bounds_of_an_environment(benchgen: Benchgen, tmp_path: Path, model: str, mean: float) -> None:
    folder = starter(tmp_path / "cli-bounds", "cli-bounds")
    report = benchgen("run", str(folder), "--model", model, "--json").json()
    assert report["metrics"]["correct"]["mean"] == mean
    assert report["coverage"]["scored"] == 4


def test_recorded_answers_and_the_gate(benchgen: Benchgen, tmp_path: Path) -> None:
    folder = starter(tmp_path / "cli-recorded", "cli-recorded")
    answers = tmp_path / "answers.jsonl"
    texts = {"apples": "#### 10", "train": "#### 450", "price": "#### 30", "pages": "I do not know"}
    answers.write_text("".join(json.dumps({"case_id": k, "response": v}) + "\n" for k, v in texts.items()))
    run = ("run", str(folder), "--predictions", str(answers), "--json")
    passed, failed = benchgen(*run, "--fail-under", "75%"), benchgen(*run, "--fail-under", "0.76")
    assert (passed.code, failed.code) == (0, 1)
    report = passed.json()
    assert report["metrics"]["correct"]["mean"] == 0.75
    assert report["model"].endswith("answers.jsonl")
    assert report["latency_ms"] is None
    wrong = benchgen("results", report["run"], "--failed", "--json").json()
    assert [result["case_id"] for result in wrong] == ["pages"]

    answers.write_text('{"case_id": "nobody", "response": "1"}\n')
    refused = benchgen(*run)
    assert refused.code == 2
    assert "nobody" in refused.err


def test_a_secret_is_never_seen_again(benchgen: Benchgen, stack: LocalStack) -> None:
    secret = "sk-a-secret-of-the-tests-0123456789"
    added = benchgen(
        *("model", "add", "cli-secret", "--base-url", "http://127.0.0.1:9/v1", "--model", "m"),
        *("--api-key-env", "THE_KEY", "--price-in", "1", "--price-out", "2"),
        THE_KEY=secret,
    )
    assert added.code == 0, added.err
    tested = benchgen("model", "test", "cli-secret")
    assert tested.code == 3
    said = [added, tested, benchgen("model", "show", "cli-secret", "--json"), benchgen("model", "list")]
    assert all(secret not in ended.out + ended.err for ended in said)
    assert said[2].json()["has_secret"] is True
    written = [log.read_bytes() for log in (stack.data_dir / "logs").iterdir() if log.is_file()]
    assert all(secret.encode() not in log for log in written)
    assert benchgen("model", "rm", "cli-secret").code == 0
    assert benchgen("model", "show", "cli-secret").code == 2


def test_a_run_is_detached_watched_and_cancelled(benchgen: Benchgen) -> None:
    slow = "builtin/simulated?latency_ms=20000"
    made = benchgen("run", "gsm8k-mini", "--model", slow, "--detach", "--json").json()
    assert made["state"] in ("queued", "running")
    assert any(run["run"] == made["run"] for run in benchgen("runs", "list", "--json").json())
    assert benchgen("report", made["run"]).code == 3
    assert benchgen("runs", "cancel", made["run"][:8]).code == 0
    watched = benchgen("runs", "watch", made["run"])
    assert watched.code == 3
    assert "cancelled" in watched.err


def test_mistakes_are_answered_with_suggestions(benchgen: Benchgen) -> None:
    ended = benchgen("run", "gsm8k-mni", "--model", "builtin/oracle")
    assert ended.code == 2
    assert "gsm8k-mini" in ended.err
    ended = benchgen("run", "gsm8k-mini", "--model", "builtin/simulated?accuracy=2")
    assert ended.code == 2
    assert "accuracy" in ended.err
    ended = benchgen("run", "gsm8k-mini", "--model", SIMULATED, "--sample", "100000")
    assert ended.code == 2
    assert "100000" in ended.err.replace(",", "")


def test_run_starts_the_stack_by_itself(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    try:
        arguments = ("run", "gsm8k-mini", "--model", "builtin/oracle", "--limit", "3", "--json")
        ended = command(data_dir, *arguments, cwd=tmp_path)
        assert ended.code == 0, ended.err
        assert ended.json()["coverage"]["scored"] == 3
        assert "starting one" in ended.err
        assert command(data_dir, "status", "--json", cwd=tmp_path).json()["state"] == "running"
    finally:
        assert command(data_dir, "down", cwd=tmp_path).code == 0
    assert command(data_dir, "status", cwd=tmp_path).code == 4
