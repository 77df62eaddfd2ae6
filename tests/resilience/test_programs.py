"""A runner dies while its program is in the middle of its calls: what was paid for is not paid for again."""

from __future__ import annotations

import secrets

import psutil

from benchgen.eval.v1 import run_pb2
from tests.resilience.cluster import Cluster

CALLS = 50
BEFORE = 40

#: Asks fifty questions one after the other, and takes a breath after the fortieth.
AGENT = f"""
import json, os, sys, time, urllib.request

address, key = os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"]
total = 0
for number in range(1, {CALLS} + 1):
    body = {{"messages": [{{"role": "user", "content": f"Case c-0: what is {{number}} + {{number}}?"}}]}}
    request = urllib.request.Request(address + "/chat/completions", json.dumps(body).encode(),
                                     {{"Authorization": "Bearer " + key}})
    with urllib.request.urlopen(request) as response:
        total += len(json.load(response)["choices"][0]["message"]["content"]) > 0
    if number == {BEFORE}:
        time.sleep(3)
print(total)
"""

MANIFEST = """
schema: 1
name: fifty-calls
version: 1.0.0
dataset: {{file: data/test.jsonl, id: id, target: answer}}
harness: {{type: program, files: agent, command: [python3, agent.py, {mark}], io: text, prompt: "{{{{ id }}}}"}}
oracle: answer
scoring: [{{name: correct, type: exact_match}}]
"""


def test_a_runner_that_dies_after_40_of_50_calls_costs_10_more(cluster: Cluster) -> None:
    mark = secrets.token_hex(8)
    cluster.publish(
        {
            "environment.yaml": MANIFEST.format(mark=mark).encode(),
            "data/test.jsonl": b'{"id": "c-0", "answer": "50"}\n',
            "agent/agent.py": AGENT.encode(),
        }
    )
    cluster.model.reset()
    cluster.model.latency = 0.0
    run = cluster.create(1, environment="fifty-calls")

    def stored() -> int:
        rows = cluster.query("SELECT count(*) AS calls FROM scorer.model_calls WHERE run_id = $1", run)
        return int(rows[0]["calls"])

    cluster.until(lambda: stored() == BEFORE, f"{BEFORE} calls", within=60)
    (row,) = cluster.query("SELECT runner FROM hub.shards WHERE run_id = $1 AND state = 'RUNNING'", run)
    for node in cluster.of_kind("runner"):
        # The name of a runner is of its process, not of its node: all that hold a box are killed.
        if _boxes(node.pid):
            node.kill()
    assert row["runner"]
    asked = sum(cluster.model.counts.asked.values())
    assert asked == BEFORE
    for node in cluster.of_kind("runner"):
        if not node.runs:
            node.start()
    ended = cluster.until_ended(run, within=90)
    assert ended.state == run_pb2.Run.STATE_SUCCEEDED
    assert sum(cluster.model.counts.asked.values()) == CALLS
    assert stored() == CALLS
    assert (ended.progress.calls, ended.progress.passed, ended.progress.recorded) == (CALLS, 1, 1)
    (result,) = cluster.query("SELECT calls, response, attempt FROM scorer.results WHERE run_id = $1", run)
    assert (result["calls"], result["response"]) == (CALLS, "50")
    assert result["attempt"] > 1
    assert not [p for p in psutil.process_iter(["cmdline"]) if mark in (p.info["cmdline"] or ())]


def _boxes(pid: int) -> list[psutil.Process]:
    """What runs below a process."""
    return psutil.Process(pid).children(recursive=True)
