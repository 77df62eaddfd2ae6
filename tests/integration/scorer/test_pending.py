"""Scores that are made later: whatever dies, is cancelled, resumed or removed, they are made and counted once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
import pytest_asyncio

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.scoring.rules import SlowRule, failed, passed
from services.common import db
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.scorer import app, pending_store
from services.scorer.domain import Subject, TrialKey
from services.scorer.pending import MOST_CLAIMS, MOST_FAULTS, CannotJudge, Scores, SlowScorer
from tests import conftest
from tests.integration.scorer import support
from tests.integration.scorer.support import (
    Environment,
    Scorer,
    answer,
    claims_of,
    fault,
    object_settings,
    refusal,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")

REPORTED = result_pb2.SealRunResponse.STATE_REPORTED
REPORTING = result_pb2.SealRunResponse.STATE_REPORTING
CASES = 40

MANIFEST = (
    support.MANIFEST[: support.MANIFEST.index("scoring:")]
    + """\
scoring:
  - name: correct
    type: code_tests
    extract: {line: last}
    tests: "assert {{ answer }}"
    primary: true
  - name: same
    type: exact_match
"""
)


class SumsJudge:
    """Right is what equals the target. It can be held up, and can break."""

    def __init__(self, size: int = 7) -> None:
        self.size = size
        self.judged: list[TrialKey] = []
        self.go_on = asyncio.Event()
        self.go_on.set()
        self.at_work = asyncio.Event()
        self.broken: Callable[[Subject], Exception | None] = lambda _: None

    def batch(self, rule: SlowRule) -> int:
        return self.size

    async def check(self, rule: SlowRule) -> None:
        pass

    async def judge(self, rule: SlowRule, subjects: Sequence[Subject]) -> AsyncIterator[Scores]:
        for subject in subjects:
            self.at_work.set()
            await self.go_on.wait()
            if (error := self.broken(subject)) is not None:
                raise error
            self.judged.append(subject.key)
            right = subject.response == subject.values["target"]
            yield {subject.key: passed(subject.response) if right else failed(subject.response, "wrong")}


class Loops:
    """The part of a scorer that makes pending scores, with connections of its own: as in another process."""

    def __init__(
        self, scorer: SlowScorer, judge: SumsJudge, stopping: asyncio.Event, pool: asyncpg.Pool
    ) -> None:
        self.scorer = scorer
        self.judge = judge
        self.stopping = stopping
        self.pool = pool


@pytest_asyncio.fixture(loop_scope="module")
async def loops(scorer_dsn: str, buckets: conftest.ObjectStore) -> AsyncIterator[Callable[..., Any]]:
    """Makes them; nothing is pending when the test begins."""
    async with ObjectStore(object_settings(buckets, "scorer")) as objects:
        pools = [await asyncpg.create_pool(scorer_dsn, min_size=1, max_size=4) for _ in range(2)]
        await pools[0].execute(
            "WITH gone AS (DELETE FROM pending_scores) UPDATE run_progress SET pending_scores = 0"
        )
        made = 0

        def make(judge: SumsJudge | None = None, **settings: Any) -> Loops:
            nonlocal made
            pool, judge, stopping = pools[made % 2], judge or SumsJudge(), asyncio.Event()
            made += 1
            targets = CaseReader(Bucket.TARGETS, objects, None)
            settings.setdefault("pause_seconds", 0.0)
            return Loops(
                SlowScorer(pool, targets, objects, judge, stopping, **settings), judge, stopping, pool
            )

        yield make
        for pool in pools:
            await pool.close()


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory, buckets: conftest.ObjectStore) -> Environment:
    """Sums that a slow rule judges, beside one that is not."""
    made = support.materialise(tmp_path_factory.mktemp("coded"), support.case_rows(CASES), MANIFEST)
    return support.uploaded(made, buckets)


async def counted(pool: asyncpg.Pool, run: str) -> tuple[int, int, int]:
    """What a run's progress says: scored, passed, pending; after making sure that the tables say the same."""
    row = await pool.fetchrow(
        """
        SELECT p.scored, p.passed, p.pending_scores,
               (SELECT count(*) FROM scores WHERE run_id = $1 AND rule = 0 AND value IS NOT NULL) AS has_scored,
               (SELECT count(*) FROM scores WHERE run_id = $1 AND rule = 0 AND passed) AS has_passed,
               (SELECT count(*) FROM pending_scores WHERE run_id = $1) AS has_pending
        FROM run_progress p WHERE run_id = $1
        """,
        run,
    )
    assert row is not None
    told, found = tuple(row)[:3], tuple(row)[3:]
    assert told == found
    return told


async def recorded(scorer: Scorer, spec: run_pb2.RunSpec, wrong: int = 10) -> None:
    """All answers, the first few of them wrong."""
    answers = (answer(n, "1" if n < wrong else None) for n in range(spec.cases))
    await scorer.record(claims_of(spec), *answers)


# The usual way


async def test_a_report_waits_for_the_scores_that_are_pending(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=CASES)
    one = loops()
    await recorded(scorer, spec)
    assert await counted(one.pool, spec.run) == (0, 0, CASES)
    progress = await scorer.progress(spec.run)
    assert (progress.recorded, progress.scored) == (CASES, 0)
    # Those of the rule that takes no time are there.
    assert [score.rule for score in (await scorer.list(spec.run)).results[0].scores] == ["same"]
    assert await scorer.seal(spec) == REPORTING
    await one.scorer.step()
    assert await counted(one.pool, spec.run) == (CASES, CASES - 10, 0)
    assert await scorer.seal(spec) == REPORTED
    report = await scorer.report(spec.run)
    assert report.coverage.scored == CASES
    assert report.metrics["correct"].mean == pytest.approx(0.75)
    assert report.metrics["same"].mean == pytest.approx(0.75)
    assert [score.rule for score in (await scorer.list(spec.run)).results[0].scores] == ["correct", "same"]


async def test_several_trials_give_pass_at_k(scorer: Scorer, coded: Environment, loops: Any) -> None:
    spec = coded.spec(cases=2, trials=3)
    one = loops()
    right_once = [answer(0, None if trial == 0 else "1", trial) for trial in range(3)]
    always_right = [answer(1, None, trial) for trial in range(3)]
    await scorer.record(claims_of(spec), *right_once, *always_right)
    await one.scorer.step()
    assert await scorer.seal(spec) == REPORTED
    report = await scorer.report(spec.run)
    points = {point.k: (round(point.mean, 6), point.n) for point in report.pass_at_k["correct"].points}
    assert points == {1: (0.666667, 2), 2: (0.833333, 2), 3: (1.0, 2)}


async def test_two_scorers_share_the_work_and_nothing_is_judged_twice(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    specs = [coded.spec(cases=CASES) for _ in range(3)]
    both = [loops(SumsJudge(size=3)), loops(SumsJudge(size=3))]
    for spec in specs:
        await recorded(scorer, spec)
    await asyncio.gather(*(one.scorer.step() for one in both for _ in range(3)))
    for spec in specs:
        assert await counted(both[0].pool, spec.run) == (CASES, CASES - 10, 0)
    assert sum(len(one.judge.judged) for one in both) == 3 * CASES
    assert all(one.judge.judged for one in both)


async def test_a_small_run_does_not_wait_for_a_large_one(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    large, small = coded.spec(cases=CASES), coded.spec(cases=1)
    await recorded(scorer, large)
    await recorded(scorer, small)
    one = loops(SumsJudge(size=1))
    shares = set()
    async with one.pool.acquire() as connection:
        for _ in range(60):
            group, *_ = await pending_store.groups(connection, 1)
            shares.add(group.run_id)
    assert shares == {large.run, small.run}


async def test_a_batch_that_comes_again_leaves_what_is_pending_as_it_is(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=CASES)
    one = loops()
    await recorded(scorer, spec)
    await recorded(scorer, spec)
    assert await counted(one.pool, spec.run) == (0, 0, CASES)
    await one.scorer.step()
    await recorded(scorer, spec)
    assert await counted(one.pool, spec.run) == (CASES, CASES - 10, 0)


async def test_a_fault_that_gives_way_to_an_answer_is_judged_once(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=4)
    one = loops()
    await scorer.record(claims_of(spec), *(fault(n) for n in range(3)), answer(3))
    assert await counted(one.pool, spec.run) == (0, 0, 1)
    await one.scorer.step()
    # A later attempt replaces two of them, the third stays a fault; the one that was judged comes second.
    await scorer.record(claims_of(spec, attempt=2), answer(0), answer(1, "1"), fault(2), answer(3, "1"))
    assert await counted(one.pool, spec.run) == (1, 1, 2)
    await one.scorer.step()
    assert await counted(one.pool, spec.run) == (3, 2, 0)
    assert sorted(one.judge.judged) == [(0, 0), (1, 0), (3, 0)]
    assert (await scorer.progress(spec.run)).faults == 1


async def test_answers_without_an_answer_need_no_judge(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=2)
    one = loops()
    await scorer.record(claims_of(spec), answer(0, " \n"), answer(1, "<think>2"))
    await one.scorer.step()
    assert await counted(one.pool, spec.run) == (2, 0, 0)
    assert one.judge.judged == []


async def test_a_long_answer_is_judged_whole(
    scorer: Scorer, coded: Environment, loops: Any, buckets: conftest.ObjectStore
) -> None:
    """Recorded answers have no object of their own; what is too long for a row gets one."""
    lines = b"".join(
        b'{"case_id": "sum-%d", "response": "%s\\n%d"}\n' % (n, b"x" * 100_000, 2 * n) for n in range(3)
    )
    async with ObjectStore(object_settings(buckets, "scorer")) as objects:
        from services.scorer.predictions import PredictionStore

        async def chunks() -> AsyncIterator[bytes]:
            yield lines

        store = PredictionStore(objects, CaseReader(Bucket.TARGETS, objects, None))
        digest, _ = await store.accept(coded.data.targets_digest, chunks())
    spec = coded.spec(cases=3, subject=run_pb2.Subject(predictions=run_pb2.Predictions(digest=digest)))
    lease = scorer.sign(claims_of(spec))
    await scorer.records("hub").LoadShard(result_pb2.LoadShardRequest(lease=lease))
    one = loops()
    await one.scorer.step()
    assert await counted(one.pool, spec.run) == (3, 3, 0)


# What dies, and what comes late


async def test_a_claim_that_outlives_its_claimant_is_taken_and_the_late_writer_is_refused(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=5)
    one = loops()
    await recorded(scorer, spec, wrong=5)
    async with one.pool.acquire() as connection:
        (group,) = await pending_store.groups(connection, 8)
        late = await pending_store.claim(connection, group, 5, 0.2)
        assert late is not None
        assert await pending_store.claim(connection, group, 5, 0.2) is None
    # Nobody renews it, as of a scorer that was killed or is frozen.
    while await counted(one.pool, spec.run) != (5, 0, 0):
        await one.scorer.step()
        await asyncio.sleep(0.05)
    async with one.pool.acquire() as connection:
        scores = {key: passed("late") for key in late.held}
        assert await pending_store.write(connection, late, scores, primary=0) == 0
    assert await counted(one.pool, spec.run) == (5, 0, 0)
    assert not await pending_store.renew(one.pool, late, 10)


async def test_a_late_writer_is_refused_while_its_successor_still_works(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=1)
    await recorded(scorer, spec)
    first, second = loops(), loops()
    async with first.pool.acquire() as connection:
        (group,) = await pending_store.groups(connection, 8)
        late = await pending_store.claim(connection, group, 1, 0.01)
        assert late is not None
        await asyncio.sleep(0.05)
        second.judge.go_on.clear()
        step = asyncio.create_task(second.scorer.step())
        await second.judge.at_work.wait()
        assert await pending_store.write(connection, late, {TrialKey(0, 0): passed("late")}, primary=0) == 0
    second.judge.go_on.set()
    await step
    assert await counted(first.pool, spec.run) == (1, 0, 0)


async def test_a_claim_is_kept_for_as_long_as_the_work_takes(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=3)
    await recorded(scorer, spec, wrong=0)
    slow, other = loops(claim_seconds=0.3), loops(claim_seconds=0.3)
    slow.judge.go_on.clear()
    step = asyncio.create_task(slow.scorer.step())
    await slow.judge.at_work.wait()
    until = asyncio.get_running_loop().time() + 1.0
    while asyncio.get_running_loop().time() < until:
        await other.scorer.step()
        await asyncio.sleep(0.05)
    assert other.judge.judged == []
    slow.judge.go_on.set()
    await step
    assert await counted(slow.pool, spec.run) == (3, 3, 0)


async def test_who_stops_hands_back_what_it_holds(scorer: Scorer, coded: Environment, loops: Any) -> None:
    spec = coded.spec(cases=3)
    await recorded(scorer, spec, wrong=0)
    one, other = loops(), loops()
    one.judge.go_on.clear()
    step = asyncio.create_task(one.scorer.step())
    await one.judge.at_work.wait()
    one.stopping.set()
    await step
    # At once, and without a mark: it did not fail.
    assert await one.pool.fetchval("SELECT max(claims) FROM pending_scores WHERE run_id = $1", spec.run) == 0
    await other.scorer.step()
    assert await counted(one.pool, spec.run) == (3, 3, 0)


async def test_work_that_is_cancelled_is_handed_back(scorer: Scorer, coded: Environment, loops: Any) -> None:
    spec = coded.spec(cases=3)
    await recorded(scorer, spec, wrong=0)
    one, other = loops(), loops()
    one.judge.go_on.clear()
    step = asyncio.create_task(one.scorer.step())
    await one.judge.at_work.wait()
    step.cancel()
    await asyncio.gather(step, return_exceptions=True)
    await other.scorer.step()
    assert await counted(one.pool, spec.run) == (3, 3, 0)


# What cannot be judged


async def test_what_cannot_be_judged_is_an_error_and_not_wrong(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=3)
    one = loops(SumsJudge(size=1))
    one.judge.broken = lambda subject: CannotJudge("no box today") if subject.key.position == 1 else None
    await recorded(scorer, spec, wrong=0)
    for _ in range(MOST_FAULTS + 1):
        await one.scorer.step()
    assert await counted(one.pool, spec.run) == (2, 2, 0)
    assert await scorer.seal(spec) == REPORTED
    report = await scorer.report(spec.run)
    assert (report.coverage.recorded, report.coverage.scored) == (3, 2)
    assert (report.metrics["correct"].errors, report.metrics["correct"].mean) == (1, 1.0)
    error = (await scorer.list(spec.run)).results[1].scores[0].error
    assert error == f"rule_error: gave up after {MOST_FAULTS} tries, the last time: no box today"


async def test_a_fault_that_passes_leaves_no_trace(scorer: Scorer, coded: Environment, loops: Any) -> None:
    spec = coded.spec(cases=3)
    one = loops()
    faults = iter([CannotJudge("once"), ValueError("a mistake of ours")])
    one.judge.broken = lambda _: next(faults, None)
    await recorded(scorer, spec, wrong=0)
    for _ in range(3):
        await one.scorer.step()
    assert await counted(one.pool, spec.run) == (3, 3, 0)


async def test_what_scorers_die_over_is_given_up(scorer: Scorer, coded: Environment, loops: Any) -> None:
    spec = coded.spec(cases=1)
    one = loops()
    await recorded(scorer, spec)
    async with one.pool.acquire() as connection:
        (group,) = await pending_store.groups(connection, 8)
        for _ in range(MOST_CLAIMS):
            assert await pending_store.claim(connection, group, 1, 0.0) is not None
    await one.scorer.step()
    assert one.judge.judged == []
    assert await counted(one.pool, spec.run) == (0, 0, 0)


# What becomes of the run meanwhile


async def test_cancelling_a_run_that_is_being_scored_drops_what_is_pending(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=6)
    one = loops(SumsJudge(size=2))
    await recorded(scorer, spec, wrong=0)
    one.judge.broken = lambda _: one.stopping.set() if len(one.judge.judged) == 1 else None
    await one.scorer.step()
    at_work = loops(SumsJudge(size=2))
    at_work.judge.go_on.clear()
    step = asyncio.create_task(at_work.scorer.step())
    await at_work.judge.at_work.wait()
    assert await scorer.seal(spec, epoch=1) == REPORTING
    assert await scorer.seal(spec, epoch=2, state="STATE_CANCELLED") == REPORTED
    scored, _, pending = await counted(one.pool, spec.run)
    assert pending == 0
    at_work.judge.go_on.set()
    await step
    # Who was at work writes nothing any more: the report stays true.
    assert await counted(one.pool, spec.run) == (scored, scored, 0)
    report = await scorer.report(spec.run)
    assert (report.state, report.coverage.recorded, report.coverage.scored) == ("cancelled", 6, scored)
    # Resumed, it misses exactly these scores: nothing is asked again.
    ranges = [(n, 0, n, 0, 1) for n in range(6)]
    incomplete = await missing(scorer, spec, *ranges)
    assert len(incomplete) == 6 - scored
    async with scorer.stream(claims_of(spec, epoch=3)) as stream:
        assert stream is not None
    assert await counted(one.pool, spec.run) == (scored, scored, 6 - scored)
    assert await missing(scorer, spec, *ranges) == []
    await loops().scorer.step()
    assert await counted(one.pool, spec.run) == (6, 6, 0)
    assert await scorer.seal(spec, epoch=3) == REPORTED
    assert (await scorer.report(spec.run)).coverage.scored == 6


async def missing(
    scorer: Scorer, spec: run_pb2.RunSpec, *ranges: tuple[int, int, int, int, int]
) -> list[int]:
    request = result_pb2.FindMissingRequest(
        run=spec.run,
        ranges=[
            result_pb2.TrialRange(first_position=a, first_trial=b, last_position=c, last_trial=d, count=n)
            for a, b, c, d, n in ranges
        ],
    )
    return list((await scorer.records("hub").FindMissing(request)).incomplete)


async def test_a_resumed_run_tries_again_what_a_slow_rule_failed_on(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=3)
    one = loops()
    one.judge.broken = lambda _: CannotJudge("no box today")
    await recorded(scorer, spec, wrong=0)
    for _ in range(MOST_FAULTS + 1):
        await one.scorer.step()
    assert await scorer.seal(spec, epoch=1) == REPORTED
    assert await counted(one.pool, spec.run) == (0, 0, 0)
    assert await missing(scorer, spec, (0, 0, 2, 0, 3)) == [0]
    async with scorer.stream(claims_of(spec, epoch=2)):
        pass
    assert await counted(one.pool, spec.run) == (0, 0, 3)
    await loops().scorer.step()
    assert await scorer.seal(spec, epoch=2) == REPORTED
    report = await scorer.report(spec.run)
    assert (report.number, report.coverage.scored, report.metrics["correct"].errors) == (2, 3, 0)


async def test_nothing_is_written_for_a_run_that_was_removed(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    spec = coded.spec(cases=4)
    await recorded(scorer, spec)
    one = loops()
    one.judge.go_on.clear()
    step = asyncio.create_task(one.scorer.step())
    await one.judge.at_work.wait()
    request = result_pb2.DeleteResultsRequest(run=spec.run)
    request.end_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
    while not (await scorer.records("hub").DeleteResults(request)).done:
        pass
    one.judge.go_on.set()
    await step
    for table in ("pending_scores", "scores", "run_progress"):
        assert await one.pool.fetchval(f"SELECT count(*) FROM {table} WHERE run_id = $1", spec.run) == 0


async def test_writers_sealers_and_removers_neither_deadlock_nor_disagree(
    scorer: Scorer, coded: Environment, loops: Any
) -> None:
    """Batches, both scorers' loops, seals, a cancellation, resumes and a removal, all at once."""
    specs = [coded.spec(cases=CASES) for _ in range(4)]
    both = [loops(SumsJudge(size=3), claim_seconds=0.1), loops(SumsJudge(size=5), claim_seconds=0.1)]
    over = asyncio.Event()

    async def judge(one: Loops) -> None:
        while not over.is_set():
            await one.scorer.step()
            await asyncio.sleep(0)

    async def record(spec: run_pb2.RunSpec) -> None:
        for first in range(0, CASES, 5):
            positions = range(first, first + 5)
            await scorer.record(claims_of(spec), *(fault(n) for n in positions[::2]))
            await scorer.record(claims_of(spec, attempt=2), *(answer(n) for n in positions))

    judges = [asyncio.create_task(judge(one)) for one in both for _ in range(3)]
    await asyncio.gather(*map(record, specs))
    request = result_pb2.DeleteResultsRequest(run=specs[3].run)
    request.end_time.FromDatetime(datetime.now(UTC) + timedelta(seconds=2))
    await asyncio.gather(
        scorer.seal(specs[0], epoch=1),
        scorer.seal(specs[1], epoch=1, state="STATE_CANCELLED"),
        scorer.records("hub").DeleteResults(request),
    )
    async with scorer.stream(claims_of(specs[1], epoch=2)):
        pass
    for spec in specs[:3]:
        while await counted(both[0].pool, spec.run) != (CASES, CASES, 0):
            await asyncio.sleep(0.02)
    over.set()
    await asyncio.gather(*judges)
    assert await both[0].pool.fetchval("SELECT count(*) FROM pending_scores") == 0
    assert await scorer.seal(specs[0], epoch=1) == REPORTED


async def test_without_a_sandbox_such_an_environment_is_refused_with_the_reason(
    coded: Environment, scorer_dsn: str, buckets: conftest.ObjectStore
) -> None:
    request = result_pb2.VerifyVersionRequest(
        targets_digest=coded.data.targets_digest,
        solutions_digest=coded.data.solutions_digest,
        scoring_json=coded.data.scoring_json,
        oracle_min=1.0,
    )
    async with support.scoring(scorer_dsn, buckets, sandbox="none") as scorer:
        error = await refusal(scorer.records("hub").VerifyVersion(request))
    assert isinstance(error, InvalidInput)
    assert (
        "the rule `correct` cannot be judged here: it needs a sandbox, and this scorer has none"
        in error.message
    )


# How it is found


async def test_finding_and_taking_work_is_quick_however_much_there_is(
    database: Callable[..., conftest.Database],
) -> None:
    dsn = database().dsn("scorer")
    async with db.pool(dsn, app.MIGRATIONS, size=1) as pool, pool.acquire() as connection:
        await connection.execute(
            "INSERT INTO runs (run_id, spec) SELECT 'r' || n, '' FROM generate_series(1, 50) n"
        )
        await connection.execute(
            "INSERT INTO pending_scores (run_id, scoring, rule, position, trial)"
            " SELECT 'r' || (n % 50 + 1), 0, 0, n, 0 FROM generate_series(1, 50000) n"
        )
        groups = await pending_store.groups(connection, 8)
        assert len(groups) == 8
        transaction = connection.transaction()
        await transaction.start()
        looked_at = await read_rows(connection, pending_store.SQL["groups"], 8)
        assert looked_at < 500
        token = "00000000-0000-0000-0000-000000000001"
        looked_at = await read_rows(connection, pending_store.SQL["claim"], "r7", 0, 0, 16, token, 30.0)
        assert looked_at < 100
        looked_at = await read_rows(connection, pending_store.SQL["renew"], token, 30.0)
        assert looked_at < 100
        await transaction.rollback()


async def read_rows(connection: Any, query: str, *arguments: Any) -> int:
    """How many rows of tables a statement looks at."""
    import orjson

    plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {query}", *arguments)

    def looked_at(node: dict[str, Any]) -> float:
        own = 0.0
        if "Relation Name" in node and "Scan" in node["Node Type"]:
            own = (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        return own + sum(looked_at(child) for child in node.get("Plans", []))

    return round(looked_at(orjson.loads(plan)[0]["Plan"]))
