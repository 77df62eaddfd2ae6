"""A run of which nothing succeeds is stopped early; one of which something does is not."""

from __future__ import annotations

import pytest

from benchgen.eval.v1 import result_pb2
from services.runner.streaks import ALIKE, FAILED, Streak, Streaks


def failed(error: str, *, calls: int = 1) -> result_pb2.TrialResult:
    return result_pb2.TrialResult(outcome=result_pb2.OUTCOME_PROVIDER_ERROR, error=error, calls=calls)


OK = result_pb2.TrialResult(outcome=result_pb2.OUTCOME_OK)


def ends(streak: Streak, result: result_pb2.TrialResult) -> str | None:
    return streak.end(streak.begin(), result)


def test_the_same_refusal_of_every_case_is_about_the_run() -> None:
    streak = Streak()
    said = [ends(streak, failed(f"bad_request: unknown 'x-{n}' for case c-{n}")) for n in range(ALIKE)]
    assert said[:-1] == [None] * (ALIKE - 1)
    assert said[-1] is not None
    assert f"first {ALIKE} failed alike: bad_request: unknown 'x-{ALIKE - 1}'" in said[-1]


def test_those_that_began_before_are_waited_for_since_failures_are_quicker_than_answers() -> None:
    streak = Streak()
    slow = [streak.begin(), streak.begin()]
    for n in range(2 * ALIKE):
        assert ends(streak, failed(f"bad_request: case {n}")) is None
    assert streak.end(slow[0], OK) is None
    assert ends(streak, failed("bad_request: case 99")) is None

    streak = Streak()
    slow = [streak.begin(), streak.begin()]
    for n in range(ALIKE):
        assert ends(streak, failed(f"bad_request: case {n}")) is None
    streak.drop(slow[0])
    assert streak.end(slow[1], failed("server_error: broke", calls=8)) is not None


@pytest.mark.parametrize(
    "errors",
    [
        ["bad_request: this", "bad_request: that"],
        ["context_length: too long"],
        ["server_error: broke", "connect: no"],
    ],
)
def test_different_failures_need_more(errors: list[str]) -> None:
    streak = Streak()
    said = [ends(streak, failed(errors[n % len(errors)])) for n in range(FAILED)]
    assert said[:-1] == [None] * (FAILED - 1)
    assert said[-1] is not None


def test_what_was_tried_again_is_not_about_a_parameter() -> None:
    streak = Streak()
    said = [ends(streak, failed("server_error: broke", calls=8)) for _ in range(FAILED)]
    assert [one is not None for one in said] == [False] * (FAILED - 1) + [True]


@pytest.mark.parametrize("outcome", ["OK", "TRUNCATED", "REFUSED", "EMPTY", "LIMIT"])
def test_one_answer_is_enough(outcome: str) -> None:
    streak = Streak()
    ends(streak, result_pb2.TrialResult(outcome=result_pb2.Outcome.Value(f"OUTCOME_{outcome}")))
    assert not any(ends(streak, failed("bad_request: no")) for _ in range(100))


def test_what_the_provider_did_not_do_does_not_count() -> None:
    streak = Streak()
    broken = result_pb2.TrialResult(outcome=result_pb2.OUTCOME_HARNESS_ERROR, error="it broke")
    assert not any(ends(streak, broken) for _ in range(100))
    assert not streak.answered


def test_runs_and_epochs_apart() -> None:
    streaks = Streaks()
    first = streaks.of("r1", 0)
    assert streaks.of("r1", 0) is first
    assert streaks.of("r1", 1) is not first
    for n in range(1000):
        streaks.of(f"r{n}", 0)
    assert streaks.of("r999", 0) is streaks.of("r999", 0)
    assert streaks.of("r1", 0) is not first, "old ones are forgotten"
