"""`benchgen run`, `runs`, `report` and `results`."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.cli.conftest import Command
from tests.unit.cli.platform import API_KEY, CASES, Platform, Run

SIMULATED = ("run", "gsm8k-mini", "--model", "builtin/simulated")


def test_a_run_ends_with_a_report(benchgen: Command) -> None:
    ended = benchgen(*SIMULATED)
    assert ended.code == 0
    assert "80.0%   95% interval 60.0% to 100.0%   n = 10 (wilson)" in ended.out
    assert "simulated answers: not a measurement" in ended.out
    assert "10 of 10 scored (100.0%)" in ended.out
    assert "8 passed, 2 failed" in ended.out
    assert "mean 12 ms · p50 12 ms · p95 20 ms" in ended.out
    assert "unknown: built-in models have no price" in ended.out
    assert "difficulty" in ended.out
    assert "benchgen results r000000000000 --failed" in ended.out
    assert "succeeded  10/10" in ended.err


def test_json_is_all_of_stdout(benchgen: Command) -> None:
    document = benchgen(*SIMULATED, "--json").json()
    assert document["run"] == "r000000000000"
    assert document["state"] == "succeeded"
    assert document["coverage"] == {"planned": 10, "recorded": 10, "scored": 10}
    assert document["metrics"]["correct"]["ci95"] == pytest.approx([0.6, 1.0])
    assert document["cost_usd"] is None
    assert document["outcomes"] == {"ok": 10}


@pytest.mark.parametrize(("threshold", "code"), [("0.8", 0), ("80%", 0), ("0.81", 1)])
def test_the_gate(benchgen: Command, threshold: str, code: int) -> None:
    ended = benchgen(*SIMULATED, "--fail-under", threshold, "--json")
    assert ended.code == code
    assert ended.json()["gate"]["passed"] == (code == 0)


def test_missing_results_do_not_open_the_gate(benchgen: Command, platform: Platform) -> None:
    platform.missing = 2
    ended = benchgen(*SIMULATED, "--fail-under", "0.9")
    assert ended.code == 1
    assert "2 of 10 results are missing, and with them it could be 0.8000" in ended.err
    assert "80.0% at worst, 100.0% at best" in ended.out
    assert "what is missing: benchgen results" in ended.out


def test_nothing_scored_is_unknown_and_closes_the_gate(benchgen: Command, platform: Platform) -> None:
    platform.missing = CASES
    ended = benchgen(*SIMULATED, "--fail-under", "0")
    assert ended.code == 1
    assert "unknown: nothing was scored" in ended.out


def test_detached(benchgen: Command) -> None:
    document = benchgen(*SIMULATED, "--detach", "--json").json()
    assert document["run"] == "r000000000000"
    assert document["state"] == "queued"
    assert benchgen("runs", "watch", document["run"]).code == 0


@pytest.mark.parametrize(("state", "word"), [(Run.STATE_FAILED, "failed"), (Run.STATE_PAUSED, "paused")])
def test_a_run_that_does_not_finish(
    benchgen: Command, platform: Platform, state: Run.State.ValueType, word: str
) -> None:
    platform.end_state = state
    ended = benchgen(*SIMULATED, "--json")
    assert ended.code == 3
    assert f"the run r000000000000 is {word}" in ended.err
    assert ended.json()["state"] == word


def test_a_cancelled_run_is_reported_and_did_not_finish(benchgen: Command, platform: Platform) -> None:
    platform.end_state = Run.STATE_CANCELLED
    ended = benchgen(*SIMULATED)
    assert ended.code == 3
    assert "r000000000000 · cancelled" in ended.out


def test_options_reach_the_run(benchgen: Command, platform: Platform) -> None:
    ended = benchgen(
        *SIMULATED, "--limit", "3", "--trials", "2", "--seed", "7", "--temperature", "0.5", "--stop", "END"
    )
    assert ended.code == 0
    spec = platform.runs["r000000000000"].spec
    assert (spec.planned, spec.seed, spec.trials) == (6, 7, 2)
    assert spec.generation.temperature == 0.5
    assert list(spec.generation.stop) == ["END"]
    assert not spec.generation.HasField("max_tokens")


def test_an_estimate_makes_no_run(benchgen: Command, platform: Platform) -> None:
    ended = benchgen(*SIMULATED, "--estimate")
    assert ended.code == 0
    for part in ("about 250, at most 1,000", "at most unknown", "nothing bounds a reply", "$0.00"):
        assert part in ended.out
    shown = json.loads(benchgen(*SIMULATED, "--estimate", "--json").out)
    assert (shown["most_input_tokens"], shown["most_output_tokens"], shown["most_cost_usd"]) == (
        1000,
        None,
        0,
    )
    assert not platform.runs


def test_a_budget_reaches_the_run_and_is_shown(benchgen: Command, platform: Platform) -> None:
    limits = ("--max-cost", "2.50", "--max-tokens", "5000", "--max-time", "1h30m", "--max-errors", "3")
    assert benchgen(*SIMULATED, *limits, "--max-reply-tokens", "64").code == 0
    made = platform.runs["r000000000000"]
    budget = made.budget
    assert (budget.cost_picousd, budget.tokens, budget.errors) == (25 * 10**11, 5000, 3)
    assert budget.time.seconds == 5400
    assert made.spec.generation.max_tokens == 64
    budget.used.cost_picousd, budget.used.reserved_picousd, budget.used.tokens = 10**11, 10**10, 70
    shown = benchgen("runs", "show", "latest").out
    assert re.search(r"budget +\$0.10\d* of \$2.50 \(\$0.01\d* reserved\) · 70 of 5,000 tokens", shown), shown
    assert "0.0 s of 1 h 30 min · 0 of 3 errors" in shown
    made.state = Run.STATE_PAUSED
    assert benchgen("runs", "resume", "latest", "--max-cost", "5").code == 0
    assert (made.budget.cost_picousd, made.budget.HasField("tokens")) == (5 * 10**12, False)


def test_of_a_cost_that_is_not_known_the_known_part_is_shown(benchgen: Command, platform: Platform) -> None:
    assert benchgen(*SIMULATED).code == 0
    progress = platform.runs["r000000000000"].progress
    progress.calls, progress.calls_of_unknown_cost, progress.cost_picousd = 12, 1, 3 * 10**10
    assert "unknown of 1 call; the others $0.0300" in benchgen("runs", "show", "latest").out
    progress.calls_of_unknown_cost = 0
    assert re.search(r"cost +\$0\.0300\n", benchgen("runs", "show", "latest").out)


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--max-cost", "lots", "expected US dollars such as 2.50, found 'lots'"),
        ("--max-cost", "-1", "expected US dollars such as 2.50"),
        ("--max-time", "soon", "expected a time such as 90s, 20m or 1h30m, found 'soon'"),
        ("--max-time", "0", "expected a time"),
        ("--max-time", "99999999999999999d", "expected at most 3650d, found '99999999999999999d'"),
        ("--max-tokens", "9" * 23, "expected at most 1,152,921,504,606,846,976, found 99,9"),
        ("--max-errors", "2147483648", "expected at most 2,147,483,647, found 2,147,483,648"),
        ("--limit", "9" * 23, "expected at most 2,147,483,647"),
        ("--sample", "9" * 23, "expected at most 2,147,483,647"),
        ("--seed", "18446744073709551616", "expected at most 18,446,744,073,709,551,615"),
        ("--max-reply-tokens", "9" * 23, "expected at most 2,147,483,647"),
    ],
)
def test_a_limit_that_makes_no_sense(benchgen: Command, option: str, value: str, expected: str) -> None:
    ended = benchgen(*SIMULATED, option, value)
    assert ended.code == 2
    assert expected in ended.err


def test_what_came_from_the_cache_is_told_apart(benchgen: Command, platform: Platform) -> None:
    ended = benchgen(*SIMULATED, "--cache")
    assert ended.code == 0
    assert platform.runs["r000000000000"].spec.use_cache
    assert "0 faults  4 cached" in ended.err
    assert "cache     4 of 10 answers · spared tokens: 400 in, 40 out" in ended.out
    assert "4 of 10 answers" in benchgen("runs", "show", "latest").out
    assert benchgen("results", "latest").out.count("from the cache") == 4
    document = benchgen("runs", "show", "latest", "--json").json()
    assert (document["cache"], document["progress"]["cache_hits"]) == (True, 4)
    first, *_, last = benchgen("results", "latest", "--json").json()
    assert (first["cached"], first["tokens"], first["latency_ms"], first["cost_usd"]) == (True, None, None, 0)
    assert first["saved_tokens"] == {"input": 100, "output": 10, "cached": None, "reasoning": None}
    assert (last["cached"], last["saved_tokens"]) == (False, None)
    report = benchgen(*SIMULATED, "--cache", "--json").json()
    assert (report["cache_hits"], report["saved_tokens"]) == (4, {"input": 400, "output": 40})
    # Who did not ask for it hears nothing of it.
    assert "cache" not in benchgen(*SIMULATED).out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "gsm8k-mini"), "expected one of --model NAME, --predictions FILE and --submission FILE"),
        ((*SIMULATED, "--limit", "2", "--sample", "2"), "expected either --limit or --sample, found both"),
        ((*SIMULATED, "--limit", "0"), "0 is not in the range"),
        ((*SIMULATED, "--fail-under", "80"), "expected a share such as 0.8 or 80%"),
        ((*SIMULATED, "--detach", "--fail-under", "0.8"), "--detach does not wait"),
        ((*SIMULATED, "--extra", "[1]"), "expected a JSON object"),
        (("run", "gsm8k", "--model", "gpt"), 'did you mean "gsm8k-mini"?'),
        (("run", "gsm8k-mini", "--model", "gpt"), 'there is no model "gpt"'),
        (("run", "./nowhere", "--model", "gpt"), "there is no folder ./nowhere"),
        (("run", "gsm8k-mini", "--predictions", "nowhere.jsonl"), "does not exist"),
        (("nonsense",), "No such command"),
    ],
)
def test_wrong_usage_is_one_clear_line(benchgen: Command, arguments: tuple[str, ...], message: str) -> None:
    ended = benchgen(*arguments)
    assert ended.code == 2
    assert ended.out == ""
    assert message in ended.err
    assert ended.err.startswith("error: ")
    assert "Traceback" not in ended.err


def test_a_folder_is_published_and_run(benchgen: Command, folder: Path) -> None:
    ended = benchgen("run", "./my-task", "--model", "builtin/simulated", "--json")
    assert ended.code == 0
    assert ended.json()["environment"] == "my-task@0.1.0"


def test_a_plain_word_is_a_name_and_the_folder_is_hinted_at(benchgen: Command, folder: Path) -> None:
    ended = benchgen("run", "my-task", "--model", "builtin/simulated")
    assert ended.code == 2
    assert "write ./my-task" in ended.err


def test_predictions(benchgen: Command, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    answers.write_text('{"case_id": "case-000", "response": "1"}\n')
    ended = benchgen("run", "gsm8k-mini", "--predictions", str(answers))
    assert ended.code == 0
    assert "gsm8k-mini@1.0.0  ×  answers.jsonl" in ended.out
    assert "none: no model was called" in ended.out
    answers.write_text('{"id": "case-000"}\n')
    ended = benchgen("run", "gsm8k-mini", "--predictions", str(answers))
    assert ended.code == 2
    assert "line 1: expected case_id" in ended.err


def test_results_can_be_read(benchgen: Command) -> None:
    benchgen(*SIMULATED)
    ended = benchgen("results", "latest", "--failed")
    assert ended.code == 0
    assert "✗ failed  case-008  12 ms · tokens 100 in, 10 out · $0.0010" in ended.out
    assert "input     What is 8 + 1?" in ended.out
    assert "expected  9" in ended.out
    assert "answer    -1  expected 9, found -1" in ended.out
    assert "case-007" not in ended.out
    assert "\x1b" not in ended.out


def test_results_as_json_are_all_of_them(benchgen: Command, platform: Platform) -> None:
    platform.missing = 1
    benchgen(*SIMULATED)
    documents = benchgen("results", "latest", "--json").json()
    assert [document["case_id"] for document in documents] == [f"case-{n:03d}" for n in range(CASES)]
    first, last = documents[0], documents[-1]
    assert first["scores"]["correct"] == {
        "value": 1.0,
        "passed": True,
        "answer": "1",
        "explanation": "equal",
        "error": None,
    }
    assert first["tokens"]["input"] == 100
    assert first["cost_usd"] == 0.001
    assert first["target"] == "1"
    assert last["outcome"] == "provider_error"
    assert (last["latency_ms"], last["tokens"], last["cost_usd"], last["scores"]) == (None, None, None, {})
    assert benchgen("results", "latest", "--unscored", "--json").json() == [last]
    assert benchgen("results", "latest", "--case", "nothing", "--json").json() == []


def test_the_calls_of_a_program(benchgen: Command) -> None:
    benchgen(*SIMULATED)
    shown = benchgen("results", "latest", "--calls", "--limit", "1").out
    assert "call 1" in shown
    assert "What is case-000?" in shown
    assert "It is 42." in shown
    assert "tried 2 times" in shown
    assert "quota: none left" in shown
    ran = benchgen("results", "latest", "--calls", "--json", "--limit", "1").json()[0]
    assert [call["error"] for call in ran["model_calls"]] == [None, "quota: none left"]
    assert ran["program"]["exit_code"] == 0


def test_results_say_when_there_are_more(benchgen: Command) -> None:
    benchgen(*SIMULATED)
    assert "the first 3; there are more" in benchgen("results", "latest", "--limit", "3").err
    assert "more" not in benchgen("results", "latest", "--limit", str(CASES)).err


def test_hidden_targets_are_said_to_be_hidden(benchgen: Command, platform: Platform) -> None:
    platform.hide_targets = True
    benchgen(*SIMULATED)
    assert "hidden: this API key lacks the scope `answers`" in benchgen("results", "latest").out


def test_report_waits_for_the_end(benchgen: Command) -> None:
    run = benchgen(*SIMULATED, "--detach", "--json").json()["run"]
    ended = benchgen("report", run)
    assert ended.code == 3
    assert f"benchgen runs watch {run}" in ended.err
    benchgen("runs", "watch", run)
    assert benchgen("report", run[:-1] + "0", "--json").json()["run"] == run


def test_runs_are_listed_shown_and_cancelled(benchgen: Command) -> None:
    benchgen(*SIMULATED)
    benchgen(*SIMULATED, "--detach")
    listed = benchgen("runs", "list")
    assert listed.out.splitlines()[2].startswith("r000000000001")
    states = [run["state"] for run in benchgen("runs", "list", "--json").json()]
    assert states == ["queued", "succeeded"]
    assert len(benchgen("runs", "list", "--limit", "1", "--json").json()) == 1
    assert len(benchgen("runs", "list", "--state", "succeeded", "--json").json()) == 1
    assert "80.0% of 10 scored" in benchgen("runs", "show", "r000000000000").out
    assert "is cancelled" in benchgen("runs", "cancel", "latest").out


def test_a_run_is_paused_resumed_and_removed(benchgen: Command, platform: Platform) -> None:
    run = benchgen(*SIMULATED, "--detach", "--json").json()["run"]
    assert f"benchgen runs pause {run}" in benchgen("runs", "show", run).out
    paused = benchgen("runs", "pause", "latest")
    assert (paused.code, paused.out) == (0, f"{run} is paused\n")
    assert f"benchgen runs resume {run}" in paused.err
    platform.end_state = Run.STATE_PAUSED
    assert "resume, cancel" in benchgen("runs", "list").out
    refused = benchgen("runs", "rm", run)
    assert (refused.code, "cancel it first" in refused.err) == (2, True)
    resumed = benchgen("runs", "resume", run)
    assert (resumed.code, resumed.out) == (0, f"{run} is running\n")
    assert f"benchgen runs watch {run}" in resumed.err
    platform.end_state = Run.STATE_SUCCEEDED
    assert benchgen("runs", "watch", run).code == 0
    again = benchgen("runs", "resume", run)
    assert (again.code, again.out) == (0, f"{run} is succeeded\n")
    assert benchgen("runs", "pause", run).code == 2
    assert benchgen("runs", "rm", run).out == f"{run} is removed\n"
    assert benchgen("runs", "show", run).code == 2


def _command(address: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | {"BENCHGEN_SERVER": address, "BENCHGEN_API_KEY": API_KEY, "COLUMNS": "100"}
    return [sys.executable, "-m", "benchgen.cli.main", *arguments], environment


def test_ctrl_c_ends_the_watching_and_not_the_run(address: str, platform: Platform) -> None:
    platform.hold.clear()
    argv, environment = _command(address, *SIMULATED)
    process = subprocess.Popen(argv, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    said = ""
    while "running" not in said:
        said += process.stderr.readline()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    process.stderr.close()
    platform.hold.set()
    assert process.wait(10) == 130
    assert "The run r000000000000 goes on." in rest
    assert "benchgen runs watch r000000000000" in rest
    assert "benchgen runs cancel r000000000000" in rest
    assert "Traceback" not in rest


def test_a_terminal_gets_a_bar(address: str, platform: Platform) -> None:
    platform.hold.clear()
    argv, environment = _command(address, *SIMULATED, "--json")
    ours, theirs = pty.openpty()
    environment["TERM"] = "xterm"
    process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    # It has drawn itself before anything happens, however busy the machine is.
    shown = b""
    while b"queued" not in shown:
        shown += os.read(ours, 4096)
    platform.hold.set()
    out, _ = process.communicate(timeout=20)
    # Linux answers EIO when the other side of the terminal is gone.
    try:
        while block := os.read(ours, 4096):
            shown += block
    except OSError:
        os.close(ours)
    assert process.returncode == 0
    assert json.loads(out)["state"] == "succeeded"
    assert "━".encode() in shown
    assert b"/10" in shown
