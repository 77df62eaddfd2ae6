"""Numbers and words as people read them, and JSON as programs do."""

from __future__ import annotations

import pytest

from benchgen import schemas
from benchgen.cli import text
from benchgen.cli.progress import Pace, figures_of
from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.eval.v1.run_pb2 import Run, RunProgress
from benchgen.names import environment_ref


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.25, "0.2 s"),
        (1.234, "1.23 s"),
        (12.34, "12.3 s"),
        (42.4, "42 s"),
        (59.9, "1 min"),
        (125, "2 min 5 s"),
        (3_600, "1 h"),
        (18_120, "5 h 2 min"),
        (190_000, "2 d 4 h"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (None, "unknown"),
        (0.0, "$0.00"),
        (0.00001234, "$0.000012"),
        (8e-06, "$0.000008"),
        (0.0123, "$0.0123"),
        (1234.5, "$1,234.50"),
    ],
)
def test_money(amount: float | None, words: str) -> None:
    assert text.usd(amount) == words


@pytest.mark.parametrize(("per_second", "words"), [(0.1, "6.0/min"), (4.23, "4.2/s"), (5000, "5,000/s")])
def test_rates(per_second: float, words: str) -> None:
    assert text.rate(per_second) == words


def test_tokens_that_were_not_reported() -> None:
    assert text.tokens(1200, None) == "1,200 in, ? out"


def test_scores_outside_0_to_1_are_no_percentages() -> None:
    assert [text.score(value) for value in (None, 0.7123, 1.0, 7.5)] == ["–", "71.2%", "100.0%", "7.5"]


def test_foreign_text_cannot_steer_the_terminal() -> None:
    assert text.clean("a\x1b[31mb\r\nc\td\u202ee") == "a�[31mb\nc\td�e"
    assert text.clean("👩\u200d💻 naïve") == "👩\u200d💻 naïve"


def test_short_forms_keep_both_ends() -> None:
    short = text.shortened("begin " + "x" * 1000 + " end", 50)
    assert short.startswith("begin")
    assert short.endswith("end")
    assert len(short) < 60


def test_pace_is_over_the_last_ten_seconds() -> None:
    pace = Pace()
    assert pace.per_second() is None
    pace.note(0, 0)
    pace.note(0.1, 10)
    assert pace.per_second() is None
    pace.note(1, 100)
    assert pace.per_second() == 100
    for second in range(2, 30):
        pace.note(second, 100 + second)
    assert pace.per_second() == pytest.approx(1.0)
    # Fewer: something else is counted from here on.
    pace.note(30, 4)
    assert pace.per_second() is None
    pace.note(32, 8)
    assert pace.per_second() == 2


def test_while_a_run_is_scored_its_scores_are_counted() -> None:
    run = Run(state=Run.STATE_RUNNING)
    run.progress.CopyFrom(RunProgress(planned=820, recorded=410, scored=100))
    assert figures_of(run, Pace())[:2] == ["running", "410/820"]
    run.state, run.progress.recorded = Run.STATE_SCORING, 820
    assert figures_of(run, Pace())[:2] == ["scoring", "100/820"]


def test_environment_names() -> None:
    assert environment_ref("org/gsm8k@1.2.0") == ("org/gsm8k", "1.2.0")
    assert environment_ref("gsm8k") == ("gsm8k", None)


def test_unknown_is_null_in_json() -> None:
    report = schemas.report_json(
        result_pb2.Report(metrics={"correct": result_pb2.Metric(n=0)}, primary_rule="correct")
    )
    metric = report["metrics"]["correct"]
    assert (metric["mean"], metric["stderr"], metric["ci95"]) == (None, None, None)
    assert (report["latency_ms"], report["tokens"], report["cost_usd"]) == (None, None, None)
    assert report["outcomes"] == {"ok": 0}


def test_a_cost_that_is_partly_unknown_is_unknown() -> None:
    progress = run_pb2.RunProgress(cost_picousd=5 * schemas.PICOUSD)
    assert schemas.cost_usd(progress) == 5.0
    progress.calls_of_unknown_cost = 1
    assert schemas.cost_usd(progress) is None


def test_outcomes_stand_in_the_order_of_the_contract() -> None:
    counted = schemas.outcomes_json({"provider_error": 1, "truncated": 2, "ok": 3})
    assert list(counted.items()) == [("ok", 3), ("truncated", 2), ("provider_error", 1)]


def test_a_target_that_is_null_or_hidden_or_a_number() -> None:
    def target(raw: str) -> object:
        return schemas.result_json(result_pb2.Result(target_json=raw))["target"]

    assert (target(""), target("null"), target("4.50"), target('"4"')) == (None, None, 4.5, "4")
