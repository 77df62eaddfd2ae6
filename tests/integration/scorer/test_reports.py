"""Reports against figures that were worked out apart, and what verification says of an environment."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, stdev

import pytest
from google.protobuf import json_format

from benchgen.eval.v1 import environment_pb2, result_pb2, run_pb2
from tests import conftest
from tests.integration.scorer import support
from tests.integration.scorer.support import Environment, Scorer, answer, case_rows, claims_of, fault, subject

# One loop and one scorer for all tests of the module: starting each takes longer than most tests.
pytestmark = pytest.mark.asyncio(loop_scope="module")

# Tables of Student's t, 97.5 %.
T975 = {6: 2.446912, 9: 2.262157}


def clustered(scores: dict[int, float], clusters: int) -> tuple[float, float]:
    """The mean over questions and its standard error: residuals add up within a cluster."""
    mean = fmean(scores.values())
    sums = [
        sum(score - mean for position, score in scores.items() if position % clusters == cluster)
        for cluster in range(clusters)
    ]
    stderr = math.sqrt(sum(total**2 for total in sums)) / len(scores)
    return mean, stderr * math.sqrt(clusters / (clusters - 1))


async def test_a_report_of_several_trials_with_gaps(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(trials=2, cases=14)
    results: list[result_pb2.TrialResult] = []
    for n in range(12):
        results.append(answer(n, None if n % 3 else "none", 0))
        results.append(answer(n, "none" if n % 2 else None, 1))
    # Of the thirteenth one trial failed for a reason that is not the model's doing; the fourteenth is missing.
    tried = result_pb2.FailedCall(usage=result_pb2.Usage(input_tokens=7, output_tokens=0))
    results += [fault(12, 0, calls=2, failed_calls=[tried], no_cost=True), answer(12, trial=1)]
    for latency, result in enumerate(results, start=1):
        result.latency_ms = latency
    await scorer.record(claims_of(spec), *results)
    await scorer.seal(spec, seconds=2.5)
    report = await scorer.report(spec.run)

    scores = {n: (bool(n % 3) + (n % 2 == 0)) / 2 for n in range(12)} | {12: 1.0}
    total = sum(2 * scores[n] for n in range(12)) + 1
    mean, stderr = clustered(scores, 7)
    correct = report.metrics["correct"]
    assert (correct.n, correct.passed, correct.failed, correct.errors) == (13, total, 25 - total, 0)
    assert correct.mean == pytest.approx(mean)
    assert correct.stderr == pytest.approx(stderr)
    assert correct.method == "clustered_t"
    assert list(correct.ci95) == pytest.approx([mean - T975[6] * stderr, mean + T975[6] * stderr], rel=1e-5)
    assert (correct.missing, correct.primary) == (3, True)
    assert [correct.worst, correct.best] == pytest.approx([total / 28, (total + 3) / 28])

    # Of case 9 the second rule says nothing: its target is no number.
    near = report.metrics["near"]
    known = {n: score for n, score in scores.items() if n != 9}
    assert (near.n, near.errors, near.missing, near.primary) == (12, 2, 5, False)
    assert near.mean == pytest.approx(fmean(known.values()))

    coverage = report.coverage
    assert (coverage.planned, coverage.recorded, coverage.scored) == (28, 26, 23)
    assert dict(report.outcomes) == {"ok": 25, "provider_error": 1}
    assert (report.latency_ms.mean, report.latency_ms.p50, report.latency_ms.p95) == (13.5, 13.5, 24.75)
    assert (report.tokens.input, report.tokens.output) == (257, 125)
    # 10 tokens at 1 and 5 at 2 USD a million for each answer; 7 for the try that failed.
    assert report.cost_usd.total == pytest.approx(25 * 20e-6 + 7e-6)
    assert report.cost_usd.per_case == pytest.approx((25 * 20e-6 + 7e-6) / 26)
    assert (report.calls, report.cost_known_cases, report.trials, report.seconds) == (27, 26, 2, 2.5)
    assert (report.run, report.number, report.state, report.model) == (spec.run, 1, "succeeded", "m")
    assert (report.environment, report.digest) == ("sums@1.0.0", environment.digest)
    assert (report.primary_rule, report.simulated) == ("correct", False)

    levels = report.slices["level"].values
    for level, positions in (("hard", [0, 4, 8, 12]), ("easy", [n for n in range(12) if n % 4])):
        assert levels[level].n == len(positions)
        assert levels[level].mean == pytest.approx(fmean(scores[n] for n in positions))


async def test_scored_means_by_every_rule(scorer: Scorer, plain: Environment) -> None:
    """Two rules that fail on different cases: neither count alone is what both have scored."""
    spec = plain.spec(cases=10)
    await scorer.record(claims_of(spec), *(answer(n) for n in range(10)))
    await scorer.seal(spec)
    report = await scorer.report(spec.run)
    assert (report.metrics["near"].errors, report.metrics["far"].errors) == (1, 2)
    assert report.coverage.scored == 7


async def test_the_interval_of_few_questions(scorer: Scorer, plain: Environment) -> None:
    spec = plain.spec(cases=10, subject=subject("builtin/constant?text=1"), simulated=True)
    told = [answer(n, None if n < 7 else "none", calls=0, usage=None) for n in range(10)]
    for result in told:
        result.ClearField("latency_ms")
    await scorer.record(claims_of(spec), *told)
    await scorer.seal(spec)
    report = await scorer.report(spec.run)
    correct = report.metrics["correct"]
    # Wilson's interval of 7 in 10, from any table of it.
    assert list(correct.ci95) == pytest.approx([0.3968, 0.8922], abs=5e-5)
    assert correct.method == "wilson"
    assert correct.mean == pytest.approx(0.7)
    assert correct.stderr == pytest.approx(stdev([1.0] * 7 + [0.0] * 3) / math.sqrt(10))
    assert report.simulated
    assert not report.HasField("latency_ms")
    assert not report.HasField("cost_usd")
    assert not report.tokens.HasField("input")
    assert not report.slices


async def test_the_interval_of_several_trials(scorer: Scorer, plain: Environment) -> None:
    spec = plain.spec(trials=4, cases=10)
    right = [4, 3, 2, 4, 1, 0, 2, 3, 4, 1]
    told = [
        answer(n, None if trial < count else "none", trial)
        for n, count in enumerate(right)
        for trial in range(4)
    ]
    await scorer.record(claims_of(spec), *told)
    await scorer.seal(spec)
    correct = (await scorer.report(spec.run)).metrics["correct"]
    assert (correct.n, correct.passed, correct.failed) == (10, 24, 16)
    # Wilson's interval of 6 in 10: a question counts once, however often it is asked.
    assert list(correct.ci95) == pytest.approx([0.3127, 0.8318], abs=5e-5)
    assert correct.stderr == pytest.approx(stdev(count / 4 for count in right) / math.sqrt(10))


async def test_scores_between_0_and_1_get_students_interval(scorer: Scorer, plain: Environment) -> None:
    spec = plain.spec(cases=10)
    # One word of two is right where the answer says more than it should.
    told = [answer(n, f"{2 * n} more" if n % 2 else None) for n in range(10)]
    await scorer.record(claims_of(spec), *told)
    await scorer.seal(spec)
    overlap = (await scorer.report(spec.run)).metrics["overlap"]
    scores = [2 / 3 if n % 2 else 1.0 for n in range(10)]
    half = T975[9] * stdev(scores) / math.sqrt(10)
    assert overlap.method == "t"
    assert list(overlap.ci95) == pytest.approx([fmean(scores) - half, fmean(scores) + half], rel=1e-5)


async def test_a_run_of_which_nothing_was_recorded(scorer: Scorer, environment: Environment) -> None:
    spec = environment.spec(cases=5)
    await scorer.seal(spec, state="STATE_CANCELLED", seconds=0)
    report = await scorer.report(spec.run)
    coverage = report.coverage
    assert (coverage.planned, coverage.recorded, coverage.scored, report.state) == (5, 0, 0, "cancelled")
    correct = report.metrics["correct"]
    assert (correct.n, correct.worst, correct.best, correct.method) == (0, 0, 1, "too_few_questions")
    assert not correct.HasField("mean")
    assert not report.HasField("cost_usd")


@pytest.mark.parametrize("stands", [True, False])
async def test_the_cost_is_unknown_when_that_of_any_call_is(
    scorer: Scorer, environment: Environment, stands: bool
) -> None:
    """Also when the call's answer is not the one that stands: it was paid for all the same."""
    spec = environment.spec(cases=2)
    unknown = answer(0, usage=result_pb2.Usage(input_tokens=10))
    known = answer(0)
    for attempt, result in enumerate([unknown, known] if stands else [known, unknown], start=1):
        await scorer.record(claims_of(spec, attempt=attempt), result)
    await scorer.record(claims_of(spec), answer(1))
    await scorer.seal(spec)
    report = await scorer.report(spec.run)
    assert not report.HasField("cost_usd")
    assert (report.cost_known_cases, report.calls) == (1, 3)


async def test_labels_that_a_database_has_no_place_for(scorer: Scorer, other: Environment) -> None:
    spec = other.spec(cases=3)
    await scorer.record(claims_of(spec), *(answer(n) for n in range(3)))
    await scorer.seal(spec)
    report = await scorer.report(spec.run)
    assert list(report.slices["level"].values) == ["\ufffd"]


# ---------------------------------------------------------------------------------------- verification


@pytest.fixture(scope="session")
def plain(tmp_path_factory: pytest.TempPathFactory, buckets: conftest.ObjectStore) -> Environment:
    """Neither clusters nor slices; a third rule cannot judge the first two cases."""
    manifest = support.MANIFEST.replace("  cluster: story\n  slices: [level]\n", "")
    manifest += "  - name: far\n    type: numeric\n    target: distance\n"
    manifest += "  - name: overlap\n    type: f1\n"
    rows = [row | {"distance": "far" if n < 2 else 2 * n} for n, row in enumerate(case_rows(20))]
    return support.uploaded(support.materialise(tmp_path_factory.mktemp("plain"), rows, manifest), buckets)


async def verify(
    scorer: Scorer, data: Environment, *, oracle: bool = True, oracle_min: float = 1, empty_max: float = 0
) -> environment_pb2.Verification:
    request = result_pb2.VerifyVersionRequest(
        targets_digest=data.data.targets_digest,
        solutions_digest=data.data.solutions_digest if oracle else "",
        scoring_json=data.data.scoring_json,
        oracle_min=oracle_min,
        empty_max=empty_max,
    )
    return await scorer.records("hub").VerifyVersion(request)


async def test_an_environment_that_keeps_its_promises(scorer: Scorer, environment: Environment) -> None:
    kept = await verify(scorer, environment)
    # Above 1,000 cases a sample.
    assert (kept.state, kept.cases, kept.oracle_mean, kept.empty_mean) == (kept.STATE_VERIFIED, 1000, 1, 0)
    unverified = await verify(scorer, environment, oracle=False)
    assert unverified.state == unverified.STATE_UNVERIFIED
    assert not unverified.HasField("oracle_mean")


WRONG: Sequence[tuple[str, str, float, str]] = [
    ("7", "5", 1.0, "oracle, case 'sum-0': expected 7, got 5"),
    ("", "5", 0.0, "empty answer, case 'sum-0' accepts it"),
]


@pytest.mark.parametrize(("target", "solution", "oracle_min", "said"), WRONG)
async def test_an_environment_that_does_not(
    scorer: Scorer,
    buckets: conftest.ObjectStore,
    tmp_path_factory: pytest.TempPathFactory,
    target: str,
    solution: str,
    oracle_min: float,
    said: str,
) -> None:
    rows = [row | {"answer": target, "solution": solution} for row in case_rows(5)]
    manifest = support.MANIFEST.replace('oracle: "{{ answer }}"', 'oracle: "{{ solution }}"')
    made = support.materialise(tmp_path_factory.mktemp("wrong"), rows, manifest)
    broken = await verify(scorer, await support.stored(made, buckets), oracle_min=oracle_min)
    assert broken.state == broken.STATE_FAILED
    assert said in broken.message, json_format.MessageToDict(broken)


async def test_a_primary_rule_that_cannot_judge(
    scorer: Scorer, buckets: conftest.ObjectStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    manifest = support.MANIFEST.replace("type: exact_match", "type: numeric\n    target: weight")
    made = support.materialise(tmp_path_factory.mktemp("unjudged"), case_rows(10), manifest)
    broken = await verify(scorer, await support.stored(made, buckets))
    assert broken.state == broken.STATE_FAILED
    assert "the primary rule fails on the oracle, case 'sum-9'" in broken.message
    assert not broken.HasField("oracle_mean")


async def test_progress_of_many_runs(scorer: Scorer, environment: Environment) -> None:
    specs = [environment.spec(cases=3) for _ in range(2)]
    for spec in specs:
        await scorer.record(claims_of(spec), answer(0))
    asked = result_pb2.GetProgressRequest(runs=[*(spec.run for spec in specs), "r-nobody-knows"])
    told = await scorer.records("hub").GetProgress(asked)
    assert dict(told.progress) == {
        spec.run: run_pb2.RunProgress(
            recorded=1, scored=1, passed=1, calls=1, input_tokens=10, output_tokens=5, cost_picousd=20_000_000
        )
        for spec in specs
    }
    many = result_pb2.GetProgressRequest(runs=["r"] * 1001)
    assert "at most 1,000" in (await support.refusal(scorer.records("hub").GetProgress(many))).message
