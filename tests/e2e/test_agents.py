"""The ready environment with an agent, through the whole stack: calls, transcripts, costs."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request

from benchgen.client import Client
from benchgen.eval.v1 import result_pb2, run_pb2
from tests.conftest import LocalStack


def test_an_agent_calls_its_model_several_times_a_case(stack: LocalStack) -> None:
    with Client(stack.grpc, stack.api_key) as client:
        run = client.run("ledger-agent", model="builtin/simulated?accuracy=1", limit=4)
        assert run.spec.harness_json
        *_, ended = client.watch(run.name)
        assert ended.state == run_pb2.Run.STATE_SUCCEEDED
        results = list(client.results(run.name))
        assert [result.outcome for result in results] == [result_pb2.OUTCOME_OK] * 4
        assert all(result.scores[0].passed for result in results)
        # It plans, it works, and it checks itself.
        assert [result.calls for result in results] == [3] * 4
        assert ended.progress.calls == 12
        calls = list(client.calls(run.name, results[2].case_id))
        assert [call.number for call in calls] == [1, 2, 3]
        assert "Check it against the question" in calls[2].request_json
        assert f"ANSWER {results[2].target_json.strip(chr(34))}" in calls[2].answer_json
        assert sum(call.usage.input_tokens for call in calls) == results[2].usage.input_tokens
    query = urllib.parse.urlencode({"case_id": results[2].case_id, "page_size": 2})
    request = urllib.request.Request(
        f"{stack.api}/api/v1/runs/{run.name}/calls?{query}",
        headers={"Authorization": f"Bearer {stack.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        page = json.load(answer)
    assert [call["number"] for call in page["items"]] == [1, 2]
    assert page["next_page_token"]
