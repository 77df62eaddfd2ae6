"""The report of a run, built from sufficient statistics.

:class:`ReportInputs` is what a store must know; :class:`Report` is the JSON document that people and programs
read. Missing is not zero: what has no score is in no mean, and every metric shows what it would be if all
missing trials had failed (``worst``) or passed (``best``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

from benchgen.scoring.cost import usd
from benchgen.scoring.statistics import (
    ClusterSums,
    Interval,
    MeanEstimate,
    Method,
    QuestionSums,
    estimate,
    pass_at_k,
)

# ------------------------------------------------------------------------------------------------- inputs


@dataclass(frozen=True, slots=True)
class RuleInputs:
    """One rule over the whole run."""

    name: str
    primary: bool
    questions: QuestionSums  # over questions with at least one score
    scored: int  # trials with a score
    score_sum: float  # sum of the scores of these trials
    passed: int  # trials
    failed: int  # trials
    errors: int  # trials that the rule could not judge
    clusters: ClusterSums | None = None  # None where the environment names no cluster
    bounded: bool = True  # whether scores are from 0 to 1


@dataclass(frozen=True, slots=True)
class SliceInputs:
    """The primary rule over the questions whose ``field`` has this ``value``."""

    field: str
    value: str
    questions: QuestionSums


@dataclass(frozen=True, slots=True)
class TallyInputs:
    """How many questions have so many scored trials, so many of them passed."""

    rule: str
    trials: int
    passed: int
    questions: int


@dataclass(frozen=True, slots=True)
class LatencyInputs:
    """Latency of the trials that have one, in milliseconds."""

    mean: float
    p50: float
    p95: float


@dataclass(frozen=True, slots=True)
class UsageInputs:
    """Tokens and money over all calls of the run, retries and judges included."""

    input_tokens: int | None  # None when no call reported any
    output_tokens: int | None
    cases: int  # cases that made a call, or brought their usage with them
    cost_known_cases: int  # of these, the cases whose every call has a known cost
    cost_picousd: int  # sum of the known costs


@dataclass(frozen=True, slots=True)
class ReportInputs:
    """Everything a report says, as a store finds it."""

    run: str
    environment: str  # name@version
    digest: str
    model: str
    state: str
    planned: int  # trials
    recorded: int  # trials with a final or provisional result
    scored: int  # trials with a score of every rule
    rules: Sequence[RuleInputs]
    usage: UsageInputs
    outcomes: Mapping[str, int] = field(default_factory=dict)  # trials by outcome
    latency: LatencyInputs | None = None
    seconds: float | None = None  # from the start of the run to its end, or until now
    slices: Sequence[SliceInputs] = ()
    tallies: Sequence[TallyInputs] = ()  # of runs with several trials


# ------------------------------------------------------------------------------------------------- report


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Coverage(_Model):
    """How much of what was planned is there, in trials."""

    planned: int = Field(ge=0, description="Trials that the run consists of.")
    recorded: int = Field(ge=0, description="Trials with a result of any outcome.")
    scored: int = Field(ge=0, description="Trials that every rule has judged.")


class Metric(_Model):
    """One rule's figure."""

    mean: float | None = Field(description="Mean score over questions; null when nothing is scored.")
    stderr: float | None = Field(description="Standard error of the mean; null when it cannot be estimated.")
    ci95: tuple[float, float] | None = Field(description="95 % confidence interval of the mean, or null.")
    n: int = Field(description="Questions with at least one score.")
    passed: int = Field(description="Trials that passed.")
    failed: int = Field(description="Trials that did not pass.")
    errors: int = Field(description="Trials that the rule could not judge; they are in no mean.")
    missing: int = Field(description="Planned trials without a score of this rule, errors included.")
    worst: float | None = Field(
        description="The mean if every missing trial scored 0; null where scores have no bounds."
    )
    best: float | None = Field(
        description="The mean if every missing trial scored 1; null where scores have no bounds."
    )
    method: Method = Field(description="How the interval was made, or why there is none.")
    primary: bool = Field(description="Whether this is the figure that counts.")


class SliceMetric(_Model):
    """The primary rule over a part of the questions."""

    mean: float | None = Field(description="Mean score over the questions of this part.")
    n: int = Field(description="Questions of this part with at least one score.")
    ci95: tuple[float, float] | None = Field(description="95 % confidence interval of the mean, or null.")


class PassAtK(_Model):
    """The chance that at least one of k answers to a question passes, unbiased (Chen et al. 2021)."""

    k: int = Field(ge=1, description="How many answers.")
    mean: float = Field(description="Mean over questions.")
    n: int = Field(description="Questions with at least k scored trials; the others are in no mean.")


class Latency(_Model):
    """Latency of trials in milliseconds."""

    mean: float = Field(description="Arithmetic mean.")
    p50: float = Field(description="Median.")
    p95: float = Field(description="95th percentile.")


class Tokens(_Model):
    """Tokens over all calls; null when no call reported any."""

    input: int | None = Field(description="Tokens that were sent, cached ones included.")
    output: int | None = Field(description="Tokens that were generated, reasoning included.")


class Cost(_Model):
    """What the calls cost in US dollars."""

    total: float = Field(description="All calls, retries and judges included.")
    per_case: float = Field(description="Total divided by the cases that made a call.")


class Report(_Model):
    """What came out of a run."""

    run: str = Field(description="Identifier of the run.")
    environment: str = Field(description="Name and version of the environment.")
    digest: str = Field(description="Digest of the environment's bundle.")
    model: str = Field(description="The model, or what else was tested.")
    state: str = Field(description="State of the run.")
    coverage: Coverage
    metrics: dict[str, Metric] = Field(description="By rule.")
    outcomes: dict[str, int] = Field(description="Trials by outcome.")
    latency_ms: Latency | None = Field(description="Null when no trial has a latency.")
    tokens: Tokens
    cost_usd: Cost | None = Field(description="Null when the cost of any call is unknown.")
    cost_known_cases: int = Field(description="Cases whose cost is known.")
    seconds: float | None = Field(description="Wall time of the run; null when it has not started.")
    slices: dict[str, dict[str, SliceMetric]] = Field(description="Primary rule by field and value.")
    pass_at_k: dict[str, list[PassAtK]] = Field(description="By rule; empty for runs with one trial a case.")


def build_report(inputs: ReportInputs) -> Report:
    """The report; deterministic, and free of NaN whatever is missing."""
    latency = inputs.latency
    slices: dict[str, dict[str, SliceMetric]] = {}
    for part in inputs.slices:
        slices.setdefault(part.field, {})[part.value] = _slice_metric(part)
    return Report(
        run=inputs.run,
        environment=inputs.environment,
        digest=inputs.digest,
        model=inputs.model,
        state=inputs.state,
        coverage=Coverage(planned=inputs.planned, recorded=inputs.recorded, scored=inputs.scored),
        metrics={rule.name: _metric(rule, inputs.planned) for rule in inputs.rules},
        outcomes=dict(inputs.outcomes),
        latency_ms=latency and Latency(mean=latency.mean, p50=latency.p50, p95=latency.p95),
        tokens=Tokens(input=inputs.usage.input_tokens, output=inputs.usage.output_tokens),
        cost_usd=_cost(inputs.usage),
        cost_known_cases=inputs.usage.cost_known_cases,
        seconds=inputs.seconds,
        slices=slices,
        pass_at_k=_pass_at_k(inputs.tallies),
    )


def _metric(rule: RuleInputs, planned: int) -> Metric:
    found: MeanEstimate = estimate(rule.questions, rule.clusters)
    missing = max(0, planned - rule.scored)
    trials = rule.scored + missing
    known = trials > 0 and (rule.bounded or not missing)
    return Metric(
        mean=found.mean,
        stderr=found.stderr,
        ci95=_pair(found.ci95),
        n=found.n,
        passed=rule.passed,
        failed=rule.failed,
        errors=rule.errors,
        missing=missing,
        worst=rule.score_sum / trials if known else None,
        best=(rule.score_sum + missing) / trials if known else None,
        method=found.method,
        primary=rule.primary,
    )


def _pass_at_k(tallies: Sequence[TallyInputs]) -> dict[str, list[PassAtK]]:
    """For k = 1, 2, 4 and so on, and for all trials of the run."""
    by_rule: dict[str, list[TallyInputs]] = {}
    for tally in tallies:
        by_rule.setdefault(tally.rule, []).append(tally)
    found: dict[str, list[PassAtK]] = {}
    for rule, own in by_rule.items():
        most = max(tally.trials for tally in own)
        powers = [1 << exponent for exponent in range(most.bit_length())]
        found[rule] = [_at_k(own, k) for k in sorted({*powers, most})]
    return found


def _at_k(tallies: Sequence[TallyInputs], k: int) -> PassAtK:
    counted = [tally for tally in tallies if tally.trials >= k]
    n = sum(tally.questions for tally in counted)
    total = sum(tally.questions * pass_at_k(tally.trials, tally.passed, k) for tally in counted)
    return PassAtK(k=k, mean=total / n, n=n)


def _slice_metric(part: SliceInputs) -> SliceMetric:
    found = estimate(part.questions)
    return SliceMetric(mean=found.mean, n=found.n, ci95=_pair(found.ci95))


def _pair(interval: Interval | None) -> tuple[float, float] | None:
    return None if interval is None else (interval.low, interval.high)


def _cost(usage: UsageInputs) -> Cost | None:
    if usage.cases == 0 or usage.cost_known_cases < usage.cases:
        return None
    return Cost(total=usd(usage.cost_picousd), per_case=usd(usage.cost_picousd) / usage.cases)
