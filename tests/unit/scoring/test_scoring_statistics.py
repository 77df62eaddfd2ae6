"""Means, intervals and pass@k against published and independently computed figures."""

from __future__ import annotations

import json
import math
import statistics
from itertools import combinations, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.scoring.statistics import (
    ClusterSums,
    QuestionSums,
    estimate,
    pass_at_k,
    pass_hat_k,
    t_quantile_975,
    wilson,
)

EXPECTED = Path(__file__).resolve().parents[4] / "shared" / "data" / "expected.json"

A = [1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1]
B = [1, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 1]


def sums(scores: list[float], *, binary: bool = False) -> QuestionSums:
    return QuestionSums(len(scores), math.fsum(scores), math.fsum(s * s for s in scores), binary)


def cluster_sums(clusters: list[list[float]]) -> ClusterSums:
    return ClusterSums(
        count=len(clusters),
        total_squares=sum(sum(c) ** 2 for c in clusters),
        cross=sum(len(c) * sum(c) for c in clusters),
        size_squares=sum(len(c) ** 2 for c in clusters),
    )


def test_mean_and_standard_error() -> None:
    found = estimate(sums([float(a) for a in A]))
    assert found.mean == 0.75
    assert found.stderr == pytest.approx(0.130558, abs=1e-6)
    assert found.method == "t"


def test_paired_difference() -> None:
    found = estimate(sums([float(a - b) for a, b in zip(A, B, strict=True)]))
    assert found.mean == 0.25
    assert found.stderr == pytest.approx(0.130558, abs=1e-6)


def test_trials_that_all_agree_are_not_certain() -> None:
    """Five questions, each failed in all of its trials: that is no proof of 0 %."""
    found = estimate(sums([0.0] * 5, binary=True))
    assert found.ci95 is not None
    assert found.ci95.high == wilson(0, 5).high
    assert found.ci95.high > 0.4


def test_few_binary_scores_get_wilsons_interval() -> None:
    found = estimate(sums([float(a) for a in A], binary=True))
    assert found.method == "wilson"
    assert found.ci95 == pytest.approx((0.467695, 0.911058), abs=1e-6)
    assert wilson(12, 12) == pytest.approx((0.757506, 1), abs=1e-6)
    assert wilson(0, 12) == pytest.approx((0, 1 - 0.757506), abs=1e-6)


@pytest.mark.parametrize(
    ("successes", "n", "method"),
    [(250, 499, "wilson"), (250, 500, "t"), (9, 5000, "wilson"), (10, 5000, "t"), (4991, 5000, "wilson")],
)
def test_when_wilsons_interval_is_used(successes: int, n: int, method: str) -> None:
    assert estimate(QuestionSums(n, successes, successes, True)).method == method


def test_clusters() -> None:
    # The four clusters of the published vector are too few for an interval; its plain error is checked by
    # doubling the data, which halves the variance of the mean.
    clusters = [[float(a) for a in A[i : i + 3]] for i in range(0, 12, 3)]
    few = estimate(sums([float(a) for a in A]), cluster_sums(clusters))
    assert (few.mean, few.stderr, few.ci95, few.method) == (0.75, None, None, "too_few_clusters")
    found = estimate(sums([float(a) for a in A * 2]), cluster_sums(clusters * 2))
    assert found.stderr == pytest.approx(0.138193 / math.sqrt(2) * math.sqrt(8 / 7), abs=1e-6)
    assert found.method == "clustered_t"
    assert found.ci95 is not None
    assert found.stderr is not None
    assert found.ci95.high - 0.75 == pytest.approx(2.3646242516 * found.stderr)
    many = estimate(sums([float(a) for a in A * 13]), cluster_sums(clusters * 13))
    assert many.stderr == pytest.approx(0.138193 / math.sqrt(13), abs=1e-6)
    assert many.method == "clustered_z"


@given(st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=5), min_size=5, max_size=60))
def test_cluster_sums_give_the_formula(clusters: list[list[float]]) -> None:
    scores = [s for c in clusters for s in c]
    mean = math.fsum(scores) / len(scores)
    residuals = sum(sum(s - mean for s in c) ** 2 for c in clusters)
    correction = math.sqrt(len(clusters) / (len(clusters) - 1)) if len(clusters) < 50 else 1
    found = estimate(sums(scores), cluster_sums(clusters))
    assert found.stderr == pytest.approx(math.sqrt(residuals) / len(scores) * correction, abs=1e-6)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=200))
def test_sums_give_the_standard_error(scores: list[float]) -> None:
    found = estimate(sums(scores))
    assert found.stderr == pytest.approx(statistics.stdev(scores) / math.sqrt(len(scores)), abs=1e-7)
    assert found.mean is not None
    assert found.ci95 is not None
    assert found.ci95.low <= found.mean <= found.ci95.high


@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_proportion(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert 0 <= low <= successes / n <= high <= 1
    mirrored = wilson(n - successes, n)
    assert (1 - high, 1 - low) == pytest.approx(mirrored)


def test_nothing_is_nothing() -> None:
    nothing = estimate(QuestionSums(0, 0.0, 0.0, True))
    assert (nothing.mean, nothing.stderr, nothing.ci95, nothing.n) == (None, None, None, 0)
    one = estimate(sums([0.5]))
    assert (one.mean, one.stderr, one.ci95, one.method) == (0.5, None, None, "too_few_questions")
    assert estimate(sums([1.0], binary=True)).method == "wilson"


@pytest.mark.parametrize(
    ("df", "quantile"),
    [
        (1, 12.7062047362),
        (2, 4.3026527297),
        (3, 3.1824463053),
        (4, 2.7764451052),
        (5, 2.5705818356),
        (10, 2.2281388520),
        (30, 2.0422724563),
        (100, 1.9839715184),
        (1000, 1.9623390808),
    ],
)
def test_t_quantiles(df: int, quantile: float) -> None:
    assert t_quantile_975(df) == pytest.approx(quantile, abs=1e-8)


def test_t_quantiles_fall_towards_the_normal_one_without_a_step() -> None:
    quantiles = [t_quantile_975(df) for df in range(1, 400)]
    assert all(a > b for a, b in pairwise(quantiles))
    assert t_quantile_975(10**9) == pytest.approx(1.9599639845, abs=1e-8)
    with pytest.raises(ValueError, match="at least 1 degree"):
        t_quantile_975(0)


@pytest.mark.parametrize(("k", "value"), [(1, 0.3), (2, 0.533333), (5, 0.916667), (8, 1.0)])
def test_pass_at_k(k: int, value: float) -> None:
    assert pass_at_k(10, 3, k) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("k", "value"), [(1, 0.3), (2, 0.066667), (3, 0.008333), (4, 0.0)])
def test_pass_hat_k(k: int, value: float) -> None:
    assert pass_hat_k(10, 3, k) == pytest.approx(value, abs=1e-6)


@given(st.integers(1, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_k_by_counting(case: tuple[int, int, int]) -> None:
    n, correct, k = case
    draws = list(combinations([True] * correct + [False] * (n - correct), k))
    assert pass_at_k(n, correct, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert pass_hat_k(n, correct, k) == pytest.approx(sum(map(all, draws)) / len(draws))


@pytest.mark.parametrize(("n", "correct", "k"), [(3, 4, 1), (3, -1, 1), (3, 1, 0), (3, 1, 4)])
def test_pass_k_refuses_nonsense(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="expected 0 <= correct <= n"):
        pass_at_k(n, correct, k)
    with pytest.raises(ValueError, match="expected 0 <= correct <= n"):
        pass_hat_k(n, correct, k)


@pytest.mark.skipif(
    not EXPECTED.is_file(), reason="the expected figures are not here (../shared/data/expected.json)"
)
@pytest.mark.parametrize("model", ["6b_finetuning", "175b_verification"])
def test_gsm8k_figures_agree_with_inspect(model: str) -> None:
    expected = json.loads(EXPECTED.read_text(encoding="utf-8"))["gsm8k"]["models"][model]
    n, correct = expected["n"], expected["n_correct"]
    found = estimate(QuestionSums(n, correct, correct, True))
    assert found.mean == pytest.approx(expected["accuracy"], abs=1e-12)
    assert found.stderr == pytest.approx(expected["stderr_inspect"], abs=1e-9)
    interval = expected["ci95_student_t_inspect"]
    assert found.ci95 == pytest.approx((interval["lower"], interval["upper"]), abs=1e-6)
    assert wilson(correct, n) == pytest.approx(tuple(expected["wilson95"]), abs=1e-6)
