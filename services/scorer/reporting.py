"""Makes the report of a sealed run from sufficient statistics, once a seal, whoever asks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import asyncpg
import orjson
from google.protobuf.json_format import MessageToDict

from benchgen.eval.v1 import run_pb2
from benchgen.scoring.report import (
    LatencyInputs,
    ReportInputs,
    RuleInputs,
    SliceInputs,
    TallyInputs,
    UsageInputs,
    build_report,
)
from benchgen.scoring.rules import Rule, SlowRule
from benchgen.scoring.spec import ColumnRule
from benchgen.scoring.statistics import ClusterSums, QuestionSums
from services.common import tracing
from services.scorer import metrics
from services.scorer.cases import primary_of, rules_of, slow_places
from services.scorer.competition import leaderboard
from services.scorer.competition import store as competition_store
from services.scorer.domain import Outcome
from services.scorer.store import FIRST_SCORING, SQL, Connection, Standing


class Reporter:
    """Builds and stores reports."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def report(
        self, spec: run_pb2.RunSpec, standing: Standing, budget: run_pb2.Budget | None = None
    ) -> bool:
        """Make the report of this seal unless it is there; False while another replica is making it.

        :param budget: what the hub says that the run was allowed to spend, and did.
        """
        # Nothing changes in a sealed run, so that every figure is of the same results.
        async with self._pool.acquire() as connection, connection.transaction():
            if not await connection.fetchval(SQL["try_claim_report"], spec.run):
                return False
            if await connection.fetchval(SQL["has_report"], spec.run, standing.seal):
                return True
            # A run that has just been written has no statistics yet, and a planner that takes it for tiny joins
            # it row by row: measured, 36 s instead of 0.1 s for 50,000 results.
            await connection.execute("SET LOCAL enable_nestloop = off")
            began = perf_counter()
            with tracing.span("report", run=spec.run, number=standing.seal):
                inputs = await _gather(connection, spec, standing)
                cached = await _cached(connection, spec.run, standing.totals.cache_hits)
            document = build_report(inputs).model_dump(mode="json") | {
                "number": standing.seal,
                "primary_rule": spec.primary_rule,
                "simulated": spec.simulated,
                "calls": standing.totals.calls,
                "trials": spec.trials,
                **cached,
            }
            if budget is not None:
                budget.used.errors = max(0, standing.totals.faults)
                document["budget"] = MessageToDict(budget, preserving_proto_field_name=True)
            if spec.competition_json:
                counted = await connection.fetchval(competition_store.SQL["case_counts"], spec.run)
                document["totals_only"] = not counted
                await leaderboard.put(connection, spec, label_of(spec.subject))
            await connection.execute(
                SQL["insert_report"], spec.run, standing.seal, orjson.dumps(document).decode()
            )
        metrics.REPORT_SECONDS.observe(perf_counter() - began)
        return True


def label_of(subject: run_pb2.Subject) -> str:
    """What answered, for people."""
    match subject.WhichOneof("kind"):
        case "predictions":
            return subject.predictions.label or subject.predictions.digest[:12]
        case "submission":
            return subject.submission.label or subject.submission.digest[:12]
        case _:
            return subject.model.name


async def _gather(connection: Connection, spec: run_pb2.RunSpec, standing: Standing) -> ReportInputs:
    rules = await _rules(connection, spec)
    outcomes = await connection.fetch(SQL["outcome_counts"], spec.run)
    latency = await connection.fetchrow(SQL["latency"], spec.run)
    cost = await connection.fetchrow(SQL["cost_coverage"], spec.run)
    assert latency is not None
    assert cost is not None
    primary = primary_of(rules_of(spec.scoring_json))
    slices = await connection.fetch(SQL["slice_statistics"], spec.run, FIRST_SCORING, primary)
    totals = standing.totals
    # A run that took everything from the cache is known to have used none.
    reported_usage = totals.input_tokens or totals.output_tokens or (totals.cache_hits and not totals.calls)
    return ReportInputs(
        run=spec.run,
        environment=spec.environment,
        digest=spec.digest,
        model=label_of(spec.subject),
        state=standing.final_state,
        planned=spec.planned,
        recorded=totals.recorded,
        scored=await _scored_by_all(connection, spec, rules),
        rules=rules,
        usage=UsageInputs(
            input_tokens=totals.input_tokens if reported_usage else None,
            output_tokens=totals.output_tokens if reported_usage else None,
            cases=cost["called"],
            cost_known_cases=cost["known"],
            cost_picousd=totals.cost_picousd,
        ),
        outcomes={Outcome(row["outcome"]).name.lower(): row["n"] for row in outcomes},
        latency=LatencyInputs(latency["mean"], latency["p50"], latency["p95"]) if latency["n"] else None,
        seconds=standing.seconds,
        slices=[SliceInputs(row["field"], row["value"], _questions(row)) for row in slices],
        tallies=await _tallies(connection, spec),
    )


async def _cached(connection: Connection, run: str, hits: int) -> dict[str, Any]:
    """What the response cache spared; most runs do not use it."""
    if not hits:
        return {}
    row = await connection.fetchrow(SQL["saved_tokens"], run)
    assert row is not None
    saved = {name: tokens for name, tokens in row.items() if tokens is not None}
    return {"cache_hits": hits} | ({"saved_tokens": saved} if saved else {})


async def _scored_by_all(connection: Connection, spec: run_pb2.RunSpec, rules: Sequence[RuleInputs]) -> int:
    """How many trials have a score of every rule."""
    if slow_places(spec.scoring_json):
        counted: int = await connection.fetchval(
            SQL["trials_scored_by_all"], spec.run, FIRST_SCORING, len(rules)
        )
        return counted
    # Every rule has said something of a trial that was judged: all but those with an error are scored by all.
    with_errors: int = await connection.fetchval(SQL["trials_with_errors"], spec.run, FIRST_SCORING)
    return rules[0].scored + rules[0].errors - with_errors


async def _tallies(connection: Connection, spec: run_pb2.RunSpec) -> list[TallyInputs]:
    if spec.trials == 1:
        return []
    names = [rule.name for rule in rules_of(spec.scoring_json)]
    rows = await connection.fetch(SQL["tallies"], spec.run, FIRST_SCORING)
    return [TallyInputs(names[row["rule"]], row["trials"], row["passed"], row["questions"]) for row in rows]


async def _rules(connection: Connection, spec: run_pb2.RunSpec) -> list[RuleInputs]:
    statistics = {
        row["rule"]: row for row in await connection.fetch(SQL["rule_statistics"], spec.run, FIRST_SCORING)
    }
    errors = {
        row["rule"]: row["n"] for row in await connection.fetch(SQL["rule_errors"], spec.run, FIRST_SCORING)
    }
    clusters = {
        row["rule"]: row for row in await connection.fetch(SQL["cluster_statistics"], spec.run, FIRST_SCORING)
    }
    return [
        _rule(rule, statistics.get(place), errors.get(place, 0), clusters.get(place))
        for place, rule in enumerate(rules_of(spec.scoring_json))
    ]


def _rule(rule: Rule, row: asyncpg.Record | None, errors: int, clusters: asyncpg.Record | None) -> RuleInputs:
    # A column of a competition can have any value: nobody knows the worst or the best.
    bounded = not isinstance(rule.spec, ColumnRule) if isinstance(rule, SlowRule) else True
    if row is None:
        sums = QuestionSums(0, 0.0, 0.0, True)
        return RuleInputs(rule.name, rule.primary, sums, 0, 0.0, 0, 0, errors, bounded=bounded)
    return RuleInputs(
        name=rule.name,
        primary=rule.primary,
        bounded=bounded,
        questions=_questions(row) if bounded else replace(_questions(row), binary=False),
        scored=int(row["trials"]),
        score_sum=row["score_sum"],
        passed=int(row["passed"]),
        failed=int(row["failed"]),
        errors=errors,
        clusters=_clusters(clusters, row["n"]),
    )


def _questions(row: asyncpg.Record) -> QuestionSums:
    return QuestionSums(
        n=row["n"],
        total=row["total"],
        squares=row["squares"],
        binary=row["binary_valued"],
    )


def _clusters(row: asyncpg.Record | None, questions: int) -> ClusterSums | None:
    # Clusters count only when every question is in one; otherwise the sums would not be of the same questions.
    if row is None or row["n"] != questions:
        return None
    return ClusterSums(
        count=row["clusters"],
        total_squares=float(row["total_squares"]),
        cross=float(row["n_totals"]),
        size_squares=float(row["n_squares"]),
    )
