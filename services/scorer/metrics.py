"""What the scorer counts: a few increments a batch, nothing a result."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Collection, Sequence
from pathlib import Path

import asyncpg
from prometheus_client import Counter, Histogram, Metric

from benchgen.scoring.rules import RuleScore
from services.common.queries import load_queries
from services.common.telemetry import gauge
from services.scorer.domain import Outcome, ScoredRecord, Totals

_SQL = load_queries(Path(__file__).with_name("measures.sql"))

_RESULTS = Counter(
    "benchgen_scorer_results_total",
    "Results committed, by outcome; what was sent twice counts twice.",
    ["outcome"],
)
_BATCHES = Counter("benchgen_scorer_batches_total", "Batches committed.")
_ROWS = Histogram(
    "benchgen_scorer_transaction_rows",
    "How many results one transaction stored.",
    buckets=(1, 4, 16, 64, 256, 1024),
)
_SECONDS = Histogram(
    "benchgen_scorer_transaction_seconds",
    "How long storing them took.",
    buckets=(0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 2, 10),
)
_SPEND = Counter("benchgen_scorer_spend_picousd_total", "What calls of known cost cost, in 1e-12 US dollars.")
_CALLS = Counter("benchgen_scorer_calls_total", "Calls of models that results took.")
_UNKNOWN = Counter("benchgen_scorer_calls_of_unknown_cost_total", "Those of them whose cost is not known.")
_TOKENS = Counter("benchgen_scorer_tokens_total", "Tokens that providers reported.", ["kind"])

_CACHE_HITS = Counter(
    "benchgen_scorer_cache_hits_total", "Results that were taken from the response cache instead of a call."
)

CACHE_LOOKUPS = Counter(
    "benchgen_scorer_cache_lookups_total", "Trials that were looked up in the response cache."
)
REJECTIONS = Counter("benchgen_scorer_rejections_total", "Results that were refused.")
REPORT_SECONDS = Histogram(
    "benchgen_scorer_report_seconds",
    "How long making a report took.",
    buckets=(0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30),
)

_SLOW_SCORES = Counter(
    "benchgen_scorer_slow_scores_total",
    "Scores made after their results were stored, by type of rule: passed, failed, or error when the rule failed; "
    "refused when somebody else had made the score meanwhile.",
    ["type", "verdict"],
)
SLOW_SECONDS = Histogram(
    "benchgen_scorer_slow_score_seconds",
    "How long one such score took, by type of rule.",
    ["type"],
    buckets=(0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
CLAIMS_ENDED = Counter(
    "benchgen_scorer_claims_total",
    "Claims on pending scores, by how they ended: done, given_back, lost to another scorer, fault.",
    ["end"],
)

_BY_OUTCOME = {outcome: _RESULTS.labels(outcome.name.lower()) for outcome in Outcome}
_INPUT, _OUTPUT = _TOKENS.labels("input"), _TOKENS.labels("output")


def stored(items: Sequence[ScoredRecord], batches: int, added: Totals, seconds: float) -> None:
    """Count one transaction.

    :param added: what it really added, whatever was there before.
    """
    for outcome, count in Tally(item.record.outcome for item in items).items():
        _BY_OUTCOME[outcome].inc(count)
    _BATCHES.inc(batches)
    _ROWS.observe(len(items))
    _SECONDS.observe(seconds)
    _SPEND.inc(added.cost_picousd)
    _CALLS.inc(added.calls)
    _UNKNOWN.inc(added.calls_of_unknown_cost)
    _INPUT.inc(added.input_tokens)
    _OUTPUT.inc(added.output_tokens)
    _CACHE_HITS.inc(added.cache_hits)


def slow_scored(kind: str, scores: Collection[RuleScore], refused: int) -> None:
    """Count scores that were to be written, and how many of them were not."""
    if refused:
        # Which of them is not known, and not worth a look.
        _SLOW_SCORES.labels(kind, "refused").inc(refused)
        return
    for score in scores:
        verdict = "error" if score.value is None else "passed" if score.passed else "failed"
        _SLOW_SCORES.labels(kind, verdict).inc()


class Measures:
    """What stands in the scorer's tables. Every scorer shows the same: take `max` over them."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def __call__(self) -> Sequence[Metric]:
        async with self._pool.acquire() as connection:
            pending = await connection.fetchval(_SQL["pending"])
            row = await connection.fetchrow(_SQL["claims"])
        assert row is not None
        lag = "How long the oldest score that is to be made has waited, seconds."
        return [
            gauge("benchgen_scorer_pending_scores", "Scores to be made yet.", [], {(): pending}),
            gauge(
                "benchgen_scorer_claimed_scores", "Those that somebody is making.", [], {(): row["claimed"]}
            ),
            gauge("benchgen_scorer_pending_lag_seconds", lag, [], {(): row["lag"]}),
        ]
