"""The simulator's draws and wrong answers."""

from __future__ import annotations

from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import InvalidInput, NotFound
from services.simulator.answers import CLUELESS, wrong_answer
from services.simulator.behaviour import Draws, Mishap, parse_model

draws = st.floats(0, 1, exclude_max=True)


@pytest.mark.parametrize(
    ("solution", "wrong"),
    [
        ("She has 18 eggs.\n#### 18", {f"#### {digit}8" for digit in "23456789"}),
        ("#### 1,234.50", {f"#### {digit},234.50" for digit in "23456789"}),
        ("Answer: B", {"Answer: A", "Answer: C", "Answer: D"}),
        ("answer is (C).", {"answer is (A).", "answer is (B).", "answer is (D)."}),
        ("B", {"A", "C", "D"}),
        ("Paris", {CLUELESS}),
        ("", {CLUELESS}),
        ("The answer is 18 since 9 + 9 = 18", {f"The answer is {d}8 since 9 + 9 = {d}8" for d in "23456789"}),
    ],
)
def test_wrong_answers_look_like_the_solution(solution: str, wrong: set[str]) -> None:
    assert {wrong_answer(solution, step / 100) for step in range(100)} == wrong


@given(st.text(), draws)
def test_a_wrong_answer_is_never_the_solution(solution: str, draw: float) -> None:
    answer = wrong_answer(solution, draw)
    assert answer == CLUELESS or answer not in solution.strip().splitlines()


def test_model_strings() -> None:
    behaviour = parse_model("simulated?accuracy=0.25&latency_ms=50&seed=4&in_tokens=7")
    assert (behaviour.accuracy, behaviour.latency_ms, behaviour.seed, behaviour.in_tokens) == (
        0.25,
        50.0,
        4,
        7,
    )
    assert parse_model("builtin/simulated") == parse_model("simulated")
    with pytest.raises(NotFound, match="gpt-4"):
        parse_model("gpt-4")
    with pytest.raises(InvalidInput, match="allowed: accuracy"):
        parse_model("simulated?acc=1")


def test_a_trial_draws_the_same_again_and_trials_differ() -> None:
    first, second = (Draws(parse_model(f"simulated?accuracy={value}")) for value in (0.2, 0.9))
    numbers = [first.trial(f"q{case}", str(trial)) for case in range(200) for trial in range(3)]
    assert numbers == [second.trial(f"q{case}", str(trial)) for case in range(200) for trial in range(3)]
    assert len(set(numbers)) == 600
    other = Draws(parse_model("simulated?seed=1"))
    assert other.trial("q0", "0") != numbers[0]


def test_draws_are_even() -> None:
    draws = Draws(parse_model("simulated"))
    below = sum(draws.trial(f"q{case}", "0") < 0.8 for case in range(5_000))
    assert abs(below / 5_000 - 0.8) < 0.02


def test_mishaps_come_as_often_as_asked() -> None:
    assert Draws(parse_model("simulated")).mishap() is None
    draws = Draws(parse_model("simulated?error_rate=0.2&error_429=0.3&drop_rate=0.1"))
    seen = [draws.mishap() for _ in range(10_000)]
    for mishap, rate in ((Mishap.ERROR, 0.2), (Mishap.RATE_LIMIT, 0.3), (Mishap.DROP, 0.1), (None, 0.4)):
        assert abs(seen.count(mishap) / 10_000 - rate) < 0.03


def test_latency_is_a_median_with_a_spread() -> None:
    assert Draws(parse_model("simulated?latency_ms=50")).latency_s() == 0.05
    draws = Draws(parse_model("simulated?latency_ms=50&latency_sigma=0.5"))
    seconds = [draws.latency_s() for _ in range(5_000)]
    assert abs(median(seconds) - 0.05) < 0.004
    assert max(seconds) > 0.1
