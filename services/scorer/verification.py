"""Checks an environment before it is published: does its oracle score, and does saying nothing not?"""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from functools import partial

from benchgen.eval.v1 import environment_pb2, result_pb2
from benchgen.scoring.rules import RuleScore
from services.common.parts import CaseReader
from services.scorer.cases import Judge, judge_of
from services.scorer.domain import Outcome
from services.scorer.turns import in_turns

#: Above so many cases a seeded sample of this size is scored.
MAX_CASES = 1000


class VersionVerifier:
    """Scores reference solutions and empty answers."""

    def __init__(self, targets: CaseReader, solutions: CaseReader, scoring_threads: Executor) -> None:
        self._targets = targets
        self._solutions = solutions
        self._threads = scoring_threads

    async def verify(self, request: result_pb2.VerifyVersionRequest) -> environment_pb2.Verification:
        """Score both and say whether the bundle keeps its promises."""
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
        total = 0.0
        failed = passed = ""
        scores = in_turns(self._threads, partial(_scored, judge), list(zip(positions, answers, strict=True)))
        async with aclosing(scores):
            async for turn in scores:
                for position, score in turn:
                    target = judge.target(position)
                    assert target is not None
                    case = f"case {target.case_id!r}"
                    if score.value is None:
                        return _Mean(None, f"{case}: {score.error}")
                    total += score.value
                    if score.value < 1 and not failed:
                        failed = f"{case}: {score.explanation or f'scored {score.value:g}'}"
                    if score.value > 0 and not passed:
                        passed = f"{case} accepts it"
        return _Mean(total / len(positions), failed or passed)


def _scored(judge: Judge, answered: tuple[int, str]) -> tuple[int, RuleScore]:
    """What the primary rule says."""
    position, answer = answered
    outcome = Outcome.OK if answer.strip() else Outcome.EMPTY
    return position, judge.score(position, outcome, answer)[judge.primary]


class _Mean:
    """The mean of the primary rule, and the first case that explains it."""

    def __init__(self, value: float | None, example: str) -> None:
        self.value = value
        self.example = example


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
