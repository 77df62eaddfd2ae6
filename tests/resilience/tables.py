"""What a run leaves behind, compared with a run that nothing happened to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import orjson

from benchgen.eval.v1 import run_pb2
from tests.resilience.cluster import CAP, MODEL, POSTGRES_AWAY, SOON, Cluster

_RESULTS = """
SELECT r.position, r.trial, r.case_id, r.outcome, r.response, r.error, s.rule, s.value, s.passed, s.answer,
       s.explanation, s.error AS rule_error
FROM scorer.results r LEFT JOIN scorer.scores s USING (run_id, position, trial)
WHERE r.run_id = $1 ORDER BY r.position, r.trial, s.rule
"""
_SPENT = """
WITH calls AS (
    SELECT calls, input_tokens, output_tokens, cost_picousd FROM scorer.results WHERE run_id = $1
    UNION ALL
    SELECT calls, input_tokens, output_tokens, cost_picousd FROM scorer.attempts WHERE run_id = $1
)
SELECT coalesce(sum(calls), 0)::bigint AS calls, coalesce(sum(input_tokens), 0)::bigint AS input_tokens,
       coalesce(sum(output_tokens), 0)::bigint AS output_tokens,
       coalesce(sum(cost_picousd), 0)::bigint AS cost_picousd
FROM calls
"""
_STANDING = """
SELECT count(*) AS recorded, count(*) FILTER (WHERE outcome > 5) AS faults,
       (SELECT count(*) FROM scorer.scores WHERE run_id = $1 AND value IS NOT NULL) AS scored,
       (SELECT count(*) FROM scorer.scores WHERE run_id = $1 AND passed) AS passed
FROM scorer.results WHERE run_id = $1
"""
_ANSWERED = """
SELECT (SELECT count(*) FROM scorer.results WHERE run_id = $1 AND outcome <= 5 AND saved IS NULL)
     + (SELECT count(*) FROM scorer.attempts WHERE run_id = $1 AND outcome <= 5) AS answered
"""
_HANGING = """
SELECT count(*) AS hanging FROM pg_stat_activity
WHERE datname = 'benchgen' AND state LIKE 'idle in transaction%' AND state_change < now() - interval '5 seconds'
"""


@dataclass(frozen=True, slots=True)
class Final:
    """Everything about a finished run that must not depend on what died meanwhile."""

    rows: list[tuple[Any, ...]]
    metrics: Any
    coverage: Any
    outcomes: Any
    reports: int


def final(cluster: Cluster, run: str) -> Final:
    """Read what a run has left."""
    rows = [tuple(row) for row in cluster.query(_RESULTS, run)]
    found = cluster.query("SELECT report FROM scorer.reports WHERE run_id = $1 ORDER BY number", run)
    report = orjson.loads(found[-1]["report"])
    return Final(rows, report["metrics"], report["coverage"], report["outcomes"], len(found))


def check_same(now: Final, clean: Final) -> None:
    """The table of a run is that of a clean one, row by row."""
    different = [pair for pair in zip(now.rows, clean.rows, strict=False) if pair[0] != pair[1]]
    assert not different, f"{len(different)} rows differ, the first: {different[0]}"
    assert len(now.rows) == len(clean.rows)
    for part in ("metrics", "coverage", "outcomes", "reports"):
        assert getattr(now, part) == getattr(clean, part), part


def check_left(cluster: Cluster, run: str) -> None:
    """Nothing is held any more, and every number agrees with the rows that it is about."""
    progress = cluster.query("SELECT * FROM scorer.run_progress WHERE run_id = $1", run)[0]
    for statement in (_SPENT, _STANDING):
        for name, value in cluster.query(statement, run)[0].items():
            if name == "cost_picousd" and progress["calls_of_unknown_cost"]:
                # The row of a trial with one such call has no cost; what its other calls cost counts.
                assert progress[name] >= value
                continue
            assert progress[name] == value, f"{name}: {progress[name]} in the progress, {value} in the rows"
    shards = cluster.query(
        "SELECT state, count(*) AS n FROM hub.shards WHERE run_id = $1 GROUP BY state", run
    )
    assert {row["state"] for row in shards} == {"DONE"}, shards
    row = cluster.query("SELECT state, shards_open FROM hub.runs WHERE id = $1", run)[0]
    assert (row["state"], row["shards_open"]) == ("SUCCEEDED", 0)
    cluster.until(
        lambda: not cluster.query("SELECT FROM hub.permits WHERE pool LIKE '%' || $1", MODEL), "no permits"
    )
    cluster.until(lambda: cluster.query(_HANGING)[0]["hanging"] == 0, "no hanging transaction")
    cluster.until(lambda: cluster.model.counts.in_flight == 0, "no call in flight")


def answers_stored(cluster: Cluster, run: str) -> int:
    """How many answers of the model to this run's calls are in the tables, those that came second included."""
    stored: int = cluster.query(_ANSWERED, run)[0]["answered"]
    return stored


class Observed:
    """One run from its start to its end, with all that must hold afterwards."""

    def __init__(self, cluster: Cluster, cases: int, *, trials: int = 1, use_cache: bool = False) -> None:
        self.cluster = cluster
        self.cases = cases
        self.trials = trials
        self.allowed = 0
        """How many calls may be repeated: those that were in flight in runners that were lost."""
        self.started = time.monotonic()
        cluster.model.reset()
        self.run = cluster.create(cases, trials=trials, use_cache=use_cache)

    @property
    def planned(self) -> int:
        """How many trials there are."""
        return self.cases * self.trials

    def until(self, share: float) -> None:
        """Wait until a share of the results is stored."""
        self.cluster.until_recorded(self.run, int(self.planned * share))

    def finish(self, clean: Final, *, within: float = SOON) -> None:
        """Wait for the end and check everything."""
        began = time.monotonic()
        ended = self.cluster.until_ended(self.run, within=within)
        seconds = time.monotonic() - began
        assert ended.state == run_pb2.Run.STATE_SUCCEEDED, ended.state_message
        counts = self.cluster.model.counts
        check_same(final(self.cluster, self.run), clean)
        check_left(self.cluster, self.run)
        unstored = sum(counts.answered.values()) - answers_stored(self.cluster, self.run)
        print(
            f"run {self.run}: {len(counts.asked)} trials, {counts.repeated} answers repeated and {unstored} lost of"
            f" {self.allowed} allowed, {counts.most_in_flight} calls at once, over {seconds:.1f} s after the last"
            f" fault, {time.monotonic() - self.started:.1f} s in all"
        )
        assert counts.repeated <= self.allowed, "answers were paid for twice"
        assert 0 <= unstored <= self.allowed, "answers that were paid for are not in the tables"

    def allow_for(self, runner: str) -> None:
        """Freeze a runner, and allow for what it has in flight: sent, and not stored yet."""
        node, model = self.cluster.nodes[runner], self.cluster.model
        # First of all: what ends from now on may not be heard of.
        ended = model.ended()
        node.freeze()
        unstored = self._unstored()
        # What it had sent a moment before has arrived then.
        time.sleep(0.15)
        self.allowed += model.begun_from(node.ports(), ended) + unstored

    def _unstored(self) -> int:
        """How many answers are not in the tables yet; where nobody can say, as many as there may be."""
        answered = sum(self.cluster.model.counts.answered.values())
        try:
            return max(0, answered - answers_stored(self.cluster, self.run))
        except POSTGRES_AWAY:
            return 2 * CAP
