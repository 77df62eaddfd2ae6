"""Providers that misbehave, end to end: outcomes, retries, spend, words, and when a run is not gone on with."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import NamedTuple

import orjson
import psutil
import pytest

from benchgen.eval.v1 import run_pb2
from tests.resilience import odd_model
from tests.resilience.cluster import Cluster
from tests.resilience.odd_model import Oddity, OddModel, error, once, says, stream, text
from tests.resilience.tables import check_left, final

_RESULTS = """
SELECT r.case_id, r.outcome, r.response, coalesce(r.error, '') AS error, r.calls, r.cost_picousd, s.passed,
       s.value IS NOT NULL AS scored
FROM scorer.results r LEFT JOIN scorer.scores s USING (run_id, position, trial) WHERE r.run_id = $1 ORDER BY r.position
"""
OK, REFUSED, PROVIDER_ERROR = 1, 3, 6
#: Of a model that takes $1 and $2 for a million: ten tokens in, five out.
COST = 20_000_000


class Case(NamedTuple):
    """What an endpoint does about a case, and what becomes of it."""

    odd: Oddity
    calls: int = 2
    outcome: int = OK
    words: str = ""
    cost: int | None = COST


CASES = [
    Case(odd_model.fine, 1),
    # What passes: asked again, and the answer counts.
    Case(once(error(429, "slow down", Retry_After="1"))),
    Case(once(error(429, "slow down"))),
    Case(once(error(429, "slow down", retry_after_ms="300"))),
    Case(once(odd_model.says_when)),
    Case(once(error(500, "it broke"))),
    Case(once(error(503, "too busy"))),
    Case(once(error(529, "overloaded"))),
    Case(once(says(200, {"error": {"message": "upstream is away", "code": 502}}))),
    # The same; but what the first call cost is not known.
    Case(once(odd_model.drops), cost=None),
    Case(once(odd_model.breaks_off), cost=None),
    Case(once(text(b'{"choices": [{"mess')), cost=None),
    Case(once(text(b"")), cost=None),
    Case(once(stream("1", whole=False)), cost=None),
    Case(once(text(b"data: {not json\n\n", "text/event-stream")), cost=None),
    # Odd, and good.
    Case(stream("30", whole=True), 1),
    # What does not pass: asked once, no answer, no score, the provider's words.
    Case(error(400, "this case is not liked"), 1, PROVIDER_ERROR, "bad_request: this case is not liked", 0),
    Case(error(400, "maximum context length is 9"), 1, PROVIDER_ERROR, "context_length: maximum context", 0),
    Case(text(b"<html>Login</html>", "text/html"), 1, PROVIDER_ERROR, "found text/html: <html>Login", None),
    Case(odd_model.huge, 1, PROVIDER_ERROR, "too_large: the reply is larger than", None),
    Case(odd_model.bomb, 1, PROVIDER_ERROR, "too_large: the reply is larger than", None),
    # The model's, or its filter's, doing.
    Case(says(400, {"error": {"message": "not allowed", "code": "content_filter"}}), 1, REFUSED, cost=0),
]


@pytest.fixture
def odd(cluster: Cluster) -> Iterator[OddModel]:
    made = OddModel(cluster.background)
    yield made
    made.close()


def register(cluster: Cluster, odd: OddModel) -> str:
    name = f"odd-{uuid.uuid4().hex[:8]}"
    cluster.register_model(name, odd.url)
    return name


def test_what_becomes_of_every_oddity(cluster: Cluster, odd: OddModel) -> None:
    odd.oddity = lambda number: CASES[number].odd
    run = cluster.create(len(CASES), model=register(cluster, odd))
    ended = cluster.until_ended(run)
    assert ended.state == run_pb2.Run.STATE_SUCCEEDED
    rows = cluster.query(_RESULTS, run)
    wrong = []
    for number, (case, row) in enumerate(zip(CASES, rows, strict=True)):
        found = (row["calls"], row["outcome"], row["cost_picousd"])
        if found != (case.calls, case.outcome, case.cost) or case.words not in row["error"]:
            wrong.append(f"case {number}: expected {case}, found {dict(row)}")
        # No error is ever a wrong answer.
        assert row["scored"] == (case.outcome != PROVIDER_ERROR)
        assert row["passed"] is (
            True if case.outcome == OK else False if case.outcome == REFUSED else None
        ), row
        assert odd.tries[number] == case.calls
    assert not wrong, "\n".join(wrong)
    check_left(cluster, run)
    faults = sum(case.outcome == PROVIDER_ERROR for case in CASES)
    assert final(cluster, run).coverage == {
        "planned": len(CASES),
        "recorded": len(CASES),
        "scored": len(CASES) - faults,
    }


PERMANENT = {
    "a bad key": (error(401, "Incorrect API key provided"), "Incorrect API key provided"),
    "no money": (error(402, "Your credit balance is too low"), "credit balance is too low"),
    "no quota": (
        says(429, {"error": {"message": "You exceeded your quota", "type": "insufficient_quota"}}),
        "You exceeded your quota",
    ),
    "another address": (says(307, {}, Location="http://elsewhere.invalid/"), "redirects are not followed"),
    "no such model": (error(404, "The model `counted` does not exist"), "does not exist"),
    "a wrong parameter": (error(400, "Unknown parameter: 'top_k'"), "Unknown parameter: 'top_k'"),
    "a page": (text(b"<html>Welcome</html>", "text/html"), "<html>Welcome</html>"),
}


@pytest.mark.parametrize("what", PERMANENT)
def test_what_is_for_good_pauses_the_run_early(cluster: Cluster, odd: OddModel, what: str) -> None:
    oddity, words = PERMANENT[what]
    odd.oddity = lambda _: oddity
    run = cluster.create(1000, trials=10, model=register(cluster, odd))
    cluster.until(lambda: cluster.get(run).state == run_pb2.Run.STATE_PAUSED, "a pause")
    paused = cluster.get(run)
    assert words in paused.state_message
    assert sum(odd.tries.values()) < 200, "of 10,000"
    # Somebody sets it right.
    odd.oddity = None
    cluster.cancel(run)
    rows = cluster.query(_RESULTS, run)
    assert {row["outcome"] for row in rows} <= {PROVIDER_ERROR}
    assert not any(row["scored"] for row in rows)


def test_enormous_replies_take_bounded_memory(cluster: Cluster, odd: OddModel) -> None:
    odd.oddity = lambda number: odd_model.huge if number % 2 else odd_model.bomb
    runners = [psutil.Process(node.pid) for node in cluster.of_kind("runner")]
    run = cluster.create(40, model=register(cluster, odd))
    most = 0

    def is_over() -> bool:
        nonlocal most
        most = max(most, *(runner.memory_info().rss for runner in runners))
        return cluster.get(run).state != run_pb2.Run.STATE_RUNNING and sum(odd.tries.values()) > 0

    cluster.until(is_over, "the end", within=60)
    cluster.cancel(run)
    print(f"{most / 2**20:.0f} MiB at most")
    assert most < 400 << 20


def test_one_case_in_a_hundred_that_always_fails(cluster: Cluster) -> None:
    run = cluster.create(400)
    ended = cluster.until_ended(run)
    assert ended.state == run_pb2.Run.STATE_SUCCEEDED
    assert (ended.progress.recorded, ended.progress.faults) == (400, 4)
    row = cluster.query("SELECT report FROM scorer.reports WHERE run_id = $1", run)[0]
    report = orjson.loads(row["report"])
    assert report["coverage"] == {"planned": 400, "recorded": 400, "scored": 396}
    assert report["outcomes"] == {"ok": 396, "provider_error": 4}
    (metric,) = report["metrics"].values()
    passed = metric["passed"]
    assert metric["n"] == 396
    assert metric["mean"] == pytest.approx(passed / 396)
    assert metric["worst"] == pytest.approx(passed / 400)
    assert metric["best"] == pytest.approx((passed + 4) / 400)
    errors = [row["error"] for row in cluster.query(_RESULTS, run) if row["outcome"] == PROVIDER_ERROR]
    assert errors == [f"bad_request: no answer to c-{n}" for n in (99, 199, 299, 399)]
