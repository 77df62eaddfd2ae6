"""Reports and costs."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.scoring.cost import Prices, Usage, cost_picousd, usd
from benchgen.scoring.report import (
    LatencyInputs,
    Report,
    ReportInputs,
    RuleInputs,
    SliceInputs,
    TallyInputs,
    UsageInputs,
    build_report,
)
from benchgen.scoring.statistics import ClusterSums, QuestionSums

RULE = RuleInputs(
    name="correct",
    primary=True,
    questions=QuestionSums(8, 6.0, 6.0, True),
    scored=8,
    score_sum=6.0,
    passed=6,
    failed=2,
    errors=1,
)
USAGE = UsageInputs(input_tokens=800, output_tokens=400, cases=9, cost_known_cases=9, cost_picousd=18 * 10**9)
INPUTS = ReportInputs(
    run="run-1",
    environment="gsm8k-mini@1.0.0",
    digest="ab",
    model="m",
    state="SUCCEEDED",
    planned=10,
    recorded=9,
    scored=8,
    rules=[RULE],
    usage=USAGE,
    outcomes={"ok": 8, "truncated": 1},
    latency=LatencyInputs(12.5, 10.0, 30.0),
    seconds=1.5,
    slices=[SliceInputs("level", "easy", QuestionSums(2, 1.0, 1.0, True))],
)


def test_a_report_has_the_names_that_others_rely_on() -> None:
    document = build_report(INPUTS).model_dump(mode="json")
    assert set(document) >= {
        "run", "environment", "digest", "model", "state", "coverage", "metrics", "outcomes",
        "latency_ms", "tokens", "cost_usd", "seconds",
    }  # fmt: skip
    assert document["coverage"] == {"planned": 10, "recorded": 9, "scored": 8}
    metric = document["metrics"]["correct"]
    assert set(metric) >= {"mean", "stderr", "ci95", "n", "passed", "failed"}
    assert (metric["mean"], metric["n"], metric["passed"], metric["failed"], metric["errors"]) == (
        0.75,
        8,
        6,
        2,
        1,
    )
    assert len(metric["ci95"]) == 2
    assert document["latency_ms"] == {"mean": 12.5, "p50": 10.0, "p95": 30.0}
    assert document["tokens"] == {"input": 800, "output": 400}
    assert document["cost_usd"] == {"total": 0.018, "per_case": 0.002}
    assert document["slices"]["level"]["easy"]["mean"] == 0.5
    assert Report.model_validate_json(json.dumps(document)) == build_report(INPUTS)


def test_missing_is_not_zero() -> None:
    metric = build_report(INPUTS).metrics["correct"]
    assert (metric.mean, metric.worst, metric.best, metric.missing) == (0.75, 0.6, 0.8, 2)


def test_a_complete_run_has_no_doubt_about_missing_ones() -> None:
    metric = build_report(dataclasses.replace(INPUTS, planned=8)).metrics["correct"]
    assert metric.worst == metric.mean == metric.best


def test_an_unknown_cost_is_unknown() -> None:
    partly = dataclasses.replace(INPUTS, usage=dataclasses.replace(USAGE, cost_known_cases=8))
    assert build_report(partly).cost_usd is None
    assert build_report(partly).cost_known_cases == 8
    no_calls = dataclasses.replace(INPUTS, usage=UsageInputs(None, None, 0, 0, 0))
    assert build_report(no_calls).cost_usd is None
    assert build_report(no_calls).tokens.input is None


def test_a_free_model_costs_nothing_and_says_so() -> None:
    report = build_report(dataclasses.replace(INPUTS, usage=dataclasses.replace(USAGE, cost_picousd=0)))
    assert report.cost_usd is not None
    assert report.cost_usd.total == 0


def test_a_run_without_results_is_a_report_without_numbers() -> None:
    nothing = dataclasses.replace(
        RULE,
        questions=QuestionSums(0, 0, 0, True),
        scored=0,
        score_sum=0,
        passed=0,
        failed=0,
        clusters=ClusterSums(0, 0, 0, 0),
    )
    report = build_report(
        dataclasses.replace(INPUTS, planned=0, recorded=0, scored=0, rules=[nothing], latency=None)
    )
    text = report.model_dump_json()
    assert "NaN" not in text
    metric = report.metrics["correct"]
    assert (metric.mean, metric.stderr, metric.ci95, metric.worst, metric.best) == (
        None,
        None,
        None,
        None,
        None,
    )
    assert report.latency_ms is None


@given(st.integers(0, 50), st.integers(0, 50), st.data())
def test_the_mean_is_between_worst_and_best(scored: int, missing: int, data: st.DataObject) -> None:
    passed = data.draw(st.integers(0, scored))
    rule = dataclasses.replace(
        RULE, questions=QuestionSums(scored, passed, passed, True), scored=scored, score_sum=passed
    )
    metric = build_report(dataclasses.replace(INPUTS, planned=scored + missing, rules=[rule])).metrics[
        "correct"
    ]
    if metric.mean is not None:
        assert metric.worst is not None
        assert metric.best is not None
        assert metric.worst - 1e-12 <= metric.mean <= metric.best + 1e-12


GPT_4O = Prices.per_million("2.5", "10", input_cached="1.25")
CLAUDE_SONNET = Prices.per_million("3", "15", input_cached="0.3", input_cache_write="3.75")
GEMINI_PRO_LONG = Prices.per_million("2.5", "15", input_cached="0.25")


@pytest.mark.parametrize(
    ("usage", "prices", "dollars"),
    [
        (Usage(input_total=1000, input_cached=400, output_total=500), GPT_4O, 0.0070),
        (Usage(1100, 400, 100, 500), CLAUDE_SONNET, 0.009795),
        (Usage(input_total=250_000, output_total=1000), GEMINI_PRO_LONG, 0.64),
        (Usage(input_total=1000, input_cached=400, output_total=0), Prices.per_million("2", "0"), 0.002),
        (Usage(0, 0, 0, 100, 40), Prices.per_million("1", "10", output_reasoning="5"), 0.0008),
        (Usage(0, 0, 0, 100, 40), Prices.per_million("1", "10"), 0.001),
        (Usage(5, 0, 0, 5), Prices.per_million("0", "0"), 0.0),
        (Usage(1000, 1000, 0, 0), Prices.per_million("1", "1", input_cached="0"), 0.0),
    ],
)
def test_costs(usage: Usage, prices: Prices, dollars: float) -> None:
    cost = cost_picousd(usage, prices)
    assert cost is not None
    assert usd(cost) == dollars


@pytest.mark.parametrize(
    ("usage", "prices"),
    [
        (Usage(), GPT_4O),
        (Usage(input_total=5), GPT_4O),
        (Usage(output_total=5), GPT_4O),
        (Usage(input_total=5, output_total=5), Prices()),
        (Usage(input_total=5, output_total=5), Prices.per_million("1")),
        (Usage(input_total=5, input_cached=6, output_total=5), GPT_4O),
        (Usage(input_total=5, output_total=5, output_reasoning=6), GPT_4O),
        (Usage(input_total=-1, output_total=5), GPT_4O),
    ],
)
def test_unknown_or_contradictory_usage_has_no_cost(usage: Usage, prices: Prices) -> None:
    assert cost_picousd(usage, prices) is None


def test_the_smallest_price_is_a_whole_number() -> None:
    assert Prices.per_million("0.000001", "0.075") == Prices(input=1, output=75_000)


@pytest.mark.parametrize("price", ["", "free", "-1", "nan", "Infinity", "0.0000001", "1e9"])
def test_what_is_no_price(price: str) -> None:
    with pytest.raises(ValueError, match="per million"):
        Prices.per_million(price, "1")


def test_pass_at_k_is_over_questions_that_have_k_trials() -> None:
    """Ten trials, three passed: the vectors of the literature; another question has two trials only."""
    tallies = [TallyInputs("r", 10, 3, 1), TallyInputs("r", 2, 2, 1)]
    found = {
        point.k: (round(point.mean, 6), point.n)
        for point in build_report(dataclasses.replace(INPUTS, tallies=tallies)).pass_at_k["r"]
    }
    assert found == {1: (0.65, 2), 2: (0.766667, 2), 4: (0.833333, 1), 8: (1.0, 1), 10: (1.0, 1)}
    assert build_report(INPUTS).pass_at_k == {}
