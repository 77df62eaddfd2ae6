"""Checks an environment before it is published: does its oracle score, and does saying nothing not?"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import environment_pb2, result_pb2
from benchgen.scoring.rules import RuleScore, SlowRule, rule_error
from services.common.parts import CaseReader
from services.scorer.cases import Judge, judge_of, rules_of
from services.scorer.domain import Outcome, Subject, TrialKey
from services.scorer.intake import clean
from services.scorer.pending import MOST_FAULTS, CannotJudge, Scores, SlowJudge
from services.scorer.turns import in_turns

#: Above so many cases a seeded sample of this size is scored.
MAX_CASES = 1000
#: Boxes are limited where they are made; this only keeps their work apart.
_BATCHES_AT_ONCE = 16
_PAUSE_SECONDS = 0.5


class VersionVerifier:
    """Scores reference solutions and empty answers, as responses of a run are scored."""

    def __init__(
        self, targets: CaseReader, solutions: CaseReader, scoring_threads: Executor, slow: SlowJudge
    ) -> None:
        self._targets = targets
        self._solutions = solutions
        self._threads = scoring_threads
        self._slow = slow

    async def verify(self, request: result_pb2.VerifyVersionRequest) -> environment_pb2.Verification:
        """Score both and say whether the bundle keeps its promises.

        :raises InvalidInput: it has rules that this scorer cannot judge by; the message says why.
        """
        for rule in rules_of(request.scoring_json):
            if isinstance(rule, SlowRule):
                try:
                    await self._slow.check(rule)
                except CannotJudge as error:
                    raise InvalidInput(f"the rule `{rule.name}` cannot be judged here: {error}") from None
        index = await self._targets.index(request.targets_digest)
        positions: Sequence[int] = range(index.cases)
        if index.cases > MAX_CASES:
            positions = sorted(random.Random(request.targets_digest).sample(positions, MAX_CASES))  # noqa: S311
        judge = await judge_of(self._targets, request.targets_digest, request.scoring_json, positions)
        empty = await self._mean(judge, positions, [""] * len(positions))
        oracle = None
        if request.solutions_digest:
            rows = await self._solutions.rows(request.solutions_digest, positions)
            oracle = await self._mean(judge, positions, [row["solution"] for row in rows])
        return _verdict(request, len(positions), oracle, empty)

    async def _mean(self, judge: Judge, positions: Sequence[int], answers: Sequence[str]) -> _Mean:
        answered = list(zip(positions, answers, strict=True))
        rule = judge.rules[judge.primary]
        found = _Mean()
        if isinstance(rule, SlowRule):
            for key, score in sorted((await self._slow_scores(judge, rule, answered)).items()):
                if not found.add(judge, key.position, score):
                    return found
            return found
        scores = in_turns(self._threads, partial(_scored, judge), answered)
        async with aclosing(scores):
            async for turn in scores:
                for position, score in turn:
                    if not found.add(judge, position, score):
                        return found
        return found

    async def _slow_scores(self, judge: Judge, rule: SlowRule, answered: Sequence[tuple[int, str]]) -> Scores:
        """What a slow rule says, several at once as it takes them."""
        found: Scores = {}
        subjects: list[Subject] = []
        for position, answer in answered:
            key, target = TrialKey(position, 0), judge.target(position)
            assert target is not None
            response = rule.answer(clean(answer))
            if isinstance(response, RuleScore):
                found[key] = response
            else:
                outcome = Outcome.OK if answer.strip() else Outcome.EMPTY
                values, _ = target.by_rule[judge.primary]
                subjects.append(Subject(key, target.case_id, outcome, response, values))
        size = self._slow.batch(rule)
        batches = [subjects[first : first + size] for first in range(0, len(subjects), size)]
        under_way = asyncio.Semaphore(_BATCHES_AT_ONCE)

        async def judged(batch: Sequence[Subject]) -> None:
            async with under_way:
                found.update(await self._tried(rule, batch))

        async with asyncio.TaskGroup() as group:
            for batch in batches:
                group.create_task(judged(batch))
        return found

    async def _tried(self, rule: SlowRule, batch: Sequence[Subject]) -> Scores:
        """The scores of a batch; what cannot be judged without its own doing is tried again."""
        found: Scores = {}
        reason = ""
        for _ in range(MOST_FAULTS):
            left = [subject for subject in batch if subject.key not in found]
            if not left:
                break
            try:
                async for scores in self._slow.judge(rule, left):
                    found |= scores
            except CannotJudge as error:
                reason = str(error)
                await asyncio.sleep(_PAUSE_SECONDS)
        return {subject.key: found.get(subject.key) or rule_error(reason) for subject in batch}


def _scored(judge: Judge, answered: tuple[int, str]) -> tuple[int, RuleScore]:
    """What the primary rule says."""
    position, answer = answered
    outcome = Outcome.OK if answer.strip() else Outcome.EMPTY
    score = judge.score(position, outcome, answer)[judge.primary]
    assert score is not None, "slow rules are asked otherwise"
    return position, score


class _Mean:
    """The mean of the primary rule, None when it fails on a case; and the first case that explains it."""

    def __init__(self) -> None:
        self._total = 0.0
        self._cases = 0
        self._failed = self._passed = self._error = ""

    @property
    def value(self) -> float | None:
        return None if self._error else self._total / self._cases

    @property
    def example(self) -> str:
        return self._error or self._failed or self._passed

    def add(self, judge: Judge, position: int, score: RuleScore) -> bool:
        """Count one case; whether it makes sense to go on."""
        target = judge.target(position)
        assert target is not None
        case = f"case {target.case_id!r}"
        if score.value is None:
            self._error = f"{case}: {score.error}"
            return False
        self._total += score.value
        self._cases += 1
        if score.value < 1 and not self._failed:
            self._failed = f"{case}: {score.explanation or f'scored {score.value:g}'}"
        if score.value > 0 and not self._passed:
            self._passed = f"{case} accepts it"
        return True


def _verdict(
    request: result_pb2.VerifyVersionRequest, cases: int, oracle: _Mean | None, empty: _Mean
) -> environment_pb2.Verification:
    states = environment_pb2.Verification
    problems: list[str] = []
    if oracle is not None and oracle.value is None:
        problems.append(f"the primary rule fails on the oracle, {oracle.example}")
    elif oracle is not None and oracle.value is not None and oracle.value < request.oracle_min - 1e-9:
        problems.append(f"oracle, {oracle.example}")
    if empty.value is None:
        problems.append(f"the primary rule fails on the empty answer, {empty.example}")
    elif empty.value > request.empty_max + 1e-9:
        problems.append(f"empty answer, {empty.example}")
    verification = environment_pb2.Verification(
        cases=cases,
        oracle_mean=oracle.value if oracle else None,
        empty_mean=empty.value,
        message="; ".join(problems),
    )
    if problems:
        verification.state = states.STATE_FAILED
    elif oracle is None:
        verification.state = states.STATE_UNVERIFIED
        verification.message = "there is no oracle to check with"
    else:
        verification.state = states.STATE_VERIFIED
    return verification
