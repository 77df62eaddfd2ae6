"""Scores the tasks of competitions: one start of the scoring program gives the values of all columns."""

from __future__ import annotations

import asyncio
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache
from pathlib import Path

import asyncpg
import orjson

from benchgen.bundle.competition import ScoresUnreadableError, read_scores
from benchgen.errors import NotFound
from benchgen.eval.v1 import run_pb2
from benchgen.scoring.rules import RuleScore, SlowRule, rule_error
from services.common.competition import PackStore, Scoring, Steps, Work
from services.common.competition.tasks import RunCompetition, read_run, work_of
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.common.sandbox import Provider, SandboxFailed
from services.scorer.competition import store
from services.scorer.competition.cases import count_cases
from services.scorer.competition.store import StepLog, TaskScores
from services.scorer.domain import Outcome, Subject, TrialKey
from services.scorer.payloads import payload_key
from services.scorer.pending import CannotJudge, Scores
from services.scorer.store import spec_of


class CompetitionJudge:
    """Judges columns.

    :param sees_reference: whether ingestion programs that run during the scoring may see the reference data.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        objects: ObjectStore,
        targets: CaseReader,
        packs: PackStore,
        provider: Provider,
        steps: Steps,
        *,
        sees_reference: bool,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._targets = targets
        self._packs = packs
        self._provider = provider
        self._steps = steps
        self._sees_reference = sees_reference
        # Columns of one task wait for one start of its program.
        self._locks: defaultdict[tuple[str, TrialKey], asyncio.Lock] = defaultdict(asyncio.Lock)

    def batch(self, rule: SlowRule) -> int:
        """A task at a time."""
        return 1

    async def check(self, rule: SlowRule) -> None:
        """:raises CannotJudge: there is no sandbox."""
        try:
            await self._provider.check()
        except SandboxFailed as error:
            raise CannotJudge(f"it needs a sandbox: {error.message}") from None

    async def judge(self, rule: SlowRule, subjects: Sequence[Subject]) -> AsyncIterator[Scores]:
        """The values of a column.

        :raises CannotJudge: the sandbox failed.
        """
        for subject in subjects:
            scores = await self._scores(subject)
            yield {subject.key: _score(scores, rule.name)}

    async def _scores(self, subject: Subject) -> TaskScores:
        """The scores of a task: those that are stored, or made now."""
        place = (subject.run, subject.key)
        async with self._locks[place]:
            try:
                async with self._pool.acquire() as connection:
                    found = await store.scores_of(connection, subject.run, subject.key)
                return found or await self._make(subject)
            finally:
                self._locks.pop(place, None)

    async def _make(self, subject: Subject) -> TaskScores:
        async with self._pool.acquire() as connection:
            spec = run_pb2.RunSpec.FromString(await spec_of(connection, subject.run))
        competition = _competition(spec.competition_json)
        answer = orjson.loads(subject.response)
        if subject.outcome is Outcome.LIMIT:
            scoring = Scoring(error=f"nothing is scored: the prediction {answer['limit']}")
        else:
            scoring = await self._score(spec, competition, subject, answer["predictions"])
        scores = scores_from(scoring, competition)
        count = count_cases(scoring.cases)
        logs = [StepLog(subject.key, subject.attempt, store.SCORING, log) for log in scoring.logs]
        async with self._pool.acquire() as connection, connection.transaction():
            await store.add_programs(connection, spec.run, logs)
            await store.add_scores(
                connection,
                spec.run,
                subject.key,
                scores,
                cases=scoring.cases if count else None,
                case_count=count,
                details=scoring.details,
            )
            # Another scorer may have been first: what it wrote stands.
            return await store.scores_of(connection, spec.run, subject.key) or scores

    async def _score(
        self, spec: run_pb2.RunSpec, competition: RunCompetition, subject: Subject, digest: str
    ) -> Scoring:
        (row,) = await self._targets.rows(spec.targets_digest, [subject.key.position])
        work = await work_of(self._packs, Bucket.TARGETS, row["task"], competition.image)
        with tempfile.TemporaryDirectory(prefix="benchgen-") as folder:
            predictions = Path(folder) / "predictions.zip"
            try:
                await self._objects.fetch_file(Bucket.PAYLOADS, payload_key(digest), predictions)
            except NotFound as error:
                raise CannotJudge(f"the predictions are gone: {error.message}") from None
            return await self.score(work, predictions)

    async def score(self, work: Work, predictions: Path) -> Scoring:
        """Run the scoring step.

        :raises CannotJudge: the sandbox failed.
        """
        try:
            return await self._steps.score(work, predictions, ingestion_sees_reference=self._sees_reference)
        except SandboxFailed as error:
            raise CannotJudge(f"the sandbox failed: {error.message}") from None


@lru_cache(maxsize=32)
def _competition(competition_json: str) -> RunCompetition:
    return read_run(competition_json)


def scores_from(scoring: Scoring, competition: RunCompetition) -> TaskScores:
    """What the scoring step says of each column."""
    if scoring.error:
        return TaskScores({}, {}, scoring.error)
    try:
        scores = read_scores(scoring.files, competition.columns, competition.dialect)
    except ScoresUnreadableError as error:
        return TaskScores({}, {}, str(error))
    return TaskScores(scores.values, scores.reasons)


def _score(scores: TaskScores, column: str) -> RuleScore:
    value = scores.values.get(column)
    if value is None:
        return rule_error(scores.error or scores.reasons.get(column, "the scoring program gave no value"))
    return RuleScore(value, None, None, "", None)
