"""Means with their uncertainty, from sums that SQL yields in one pass.

The unit is the question. With several trials of a question its score is their mean, which makes the standard
error right for any number of trials. Formulas: Miller 2024, "Adding Error Bars to Evals" (arXiv 2411.00640);
why not the normal interval for few questions: Bowyer et al. 2025 (arXiv 2503.01747); few clusters: Cameron
and Miller 2015.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, NamedTuple

WILSON_BELOW_QUESTIONS = 500
WILSON_BELOW_EVENTS = 10
"""Wilson's interval is used below so many questions, or so many successes or failures."""

MIN_CLUSTERS = 5
"""With fewer clusters no standard error is given."""

MANY_CLUSTERS = 50
"""From so many clusters on the normal quantile is used, without the correction for few clusters."""

Method = Literal["wilson", "t", "clustered_t", "clustered_z", "too_few_clusters", "too_few_questions"]


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class QuestionSums:
    """What is known of the scores of n questions; s_i is the mean score of question i over its trials."""

    n: int
    total: float  # sum of s_i
    squares: float  # sum of s_i squared
    binary: bool  # every trial scored 0 or 1


@dataclass(frozen=True, slots=True)
class ClusterSums:
    """What is known of G clusters; cluster c has n_c questions whose s_i sum to t_c."""

    count: int  # G
    total_squares: float  # sum of t_c squared
    cross: float  # sum of n_c * t_c
    size_squares: float  # sum of n_c squared


@dataclass(frozen=True, slots=True)
class MeanEstimate:
    """A mean and how sure it is. What cannot be said is None, never 0 and never NaN."""

    mean: float | None  # None without questions
    stderr: float | None
    ci95: Interval | None
    n: int  # questions
    method: Method


def estimate(questions: QuestionSums, clusters: ClusterSums | None = None) -> MeanEstimate:
    """The mean over questions with the interval that suits the data.

    Clustered when clusters are given; Wilson's for 0/1 scores of few questions or rare events; else
    Student's t.
    """
    n = questions.n
    if n == 0:
        return MeanEstimate(None, None, None, 0, "too_few_questions")
    mean = questions.total / n
    if clusters is not None:
        return _clustered(mean, n, clusters)
    stderr = _stderr(questions, mean)
    if questions.binary:
        # With several trials a question's mean varies less than a single 0 or 1, so this errs on the wide side,
        # where Student's interval shrinks to nothing when all trials agree.
        rare = min(questions.total, n - questions.total) < WILSON_BELOW_EVENTS
        if n < WILSON_BELOW_QUESTIONS or rare:
            return MeanEstimate(mean, stderr, wilson(questions.total, n), n, "wilson")
    if stderr is None:
        return MeanEstimate(mean, None, None, n, "too_few_questions")
    return MeanEstimate(mean, stderr, _around(mean, t_quantile_975(n - 1) * stderr), n, "t")


def _stderr(questions: QuestionSums, mean: float) -> float | None:
    """``sqrt(sum((s_i - mean)^2) / (n (n - 1)))``; None for one question."""
    n = questions.n
    if n < 2:
        return None
    # Rounding can make the difference of two equal sums slightly negative.
    deviations = max(0.0, questions.squares - n * mean * mean)
    return math.sqrt(deviations / (n * (n - 1)))


def _clustered(mean: float, n: int, clusters: ClusterSums) -> MeanEstimate:
    """``(1/n) sqrt(sum_c (sum_{i in c} (s_i - mean))^2)``, corrected when there are few clusters."""
    count = clusters.count
    if count < MIN_CLUSTERS:
        return MeanEstimate(mean, None, None, n, "too_few_clusters")
    residuals = clusters.total_squares - 2 * mean * clusters.cross + mean * mean * clusters.size_squares
    stderr = math.sqrt(max(0.0, residuals)) / n
    if count >= MANY_CLUSTERS:
        return MeanEstimate(mean, stderr, _around(mean, _Z975 * stderr), n, "clustered_z")
    stderr *= math.sqrt(count / (count - 1))
    return MeanEstimate(mean, stderr, _around(mean, t_quantile_975(count - 1) * stderr), n, "clustered_t")


def _around(mean: float, half_width: float) -> Interval:
    return Interval(mean - half_width, mean + half_width)


def wilson(successes: float, n: int) -> Interval:
    """Wilson's score interval for a proportion; needs n >= 1. ``successes`` is a sum of means over trials."""
    p = successes / n
    z2 = _Z975 * _Z975
    scale = 1 + z2 / n
    centre = (p + z2 / (2 * n)) / scale
    half_width = _Z975 * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n)) / scale
    # At the ends the formula gives exactly 0 and 1, but for rounding.
    low = 0.0 if successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if successes == n else min(1.0, centre + half_width)
    return Interval(low, high)


_Z975 = NormalDist().inv_cdf(0.975)
_EXPANSION_FROM = 200  # degrees of freedom from which on the expansion is exact to 1e-9


@lru_cache(maxsize=1024)
def t_quantile_975(df: int) -> float:
    """The 97.5 % quantile of Student's t with ``df`` >= 1 degrees of freedom."""
    if df < 1:
        raise ValueError(f"expected at least 1 degree of freedom, found {df}")
    if df >= _EXPANSION_FROM:
        return _t_expansion(df)
    low, high = 1.9, 12.8
    while high - low > 1e-13 * high:
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if _t_central(middle, df) < 0.95:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _t_central(t: float, df: int) -> float:
    """``P(|T| <= t)`` in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(df))
    sine, cosine = math.sin(theta), math.cos(theta)
    odd = df % 2 == 1
    term = cosine if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(3 if odd else 2, df - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + sine * total) if odd else sine * total


def _t_expansion(df: int) -> float:
    """Cornish-Fisher expansion around the normal quantile (Abramowitz and Stegun 26.7.5)."""
    z = _Z975
    return (
        z
        + (z**3 + z) / (4 * df)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * df**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * df**4)
    )


def pass_at_k(n: int, correct: int, k: int) -> float:
    """The chance that at least one of ``k`` of the ``n`` trials of a question is correct, without bias.

    ``1 - C(n - c, k) / C(n, k)`` (Chen et al. 2021, arXiv 2107.03374). ``ValueError`` unless
    0 <= correct <= n and 1 <= k <= n.
    """
    _check_trials(n, correct, k)
    if n - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - correct + 1, n + 1))


def pass_hat_k(n: int, correct: int, k: int) -> float:
    """The chance that all of ``k`` of the ``n`` trials of a question are correct: ``C(c, k) / C(n, k)``."""
    _check_trials(n, correct, k)
    return math.prod((correct - i) / (n - i) for i in range(k)) if correct >= k else 0.0


def _check_trials(n: int, correct: int, k: int) -> None:
    if not (0 <= correct <= n and 1 <= k <= n):
        raise ValueError(f"expected 0 <= correct <= n and 1 <= k <= n, found n={n}, correct={correct}, k={k}")
