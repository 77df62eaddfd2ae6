"""Makes the scores that take longer: of code and programs in their boxes, and what else needs more than a moment.

::

    claim ──▶ work, outside any transaction ──▶ write, if it is still ours
      │                                            │
      └── ends by itself when nobody renews it     └── a claim that was lost writes nothing
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import lru_cache, partial
from time import perf_counter
from typing import Protocol

import asyncpg
import structlog

from benchgen.errors import BenchgenError, Unavailable
from benchgen.eval.v1 import result_pb2, run_pb2
from benchgen.scoring.rules import RuleScore, SlowRule, rule_error
from benchgen.scoring.spec import ColumnRule
from services.common import db
from services.common.claims import ClaimLost, kept
from services.common.objects import ObjectStore
from services.common.parts import CaseReader
from services.common.process import TRANSIENT
from services.scorer import metrics, pending_store
from services.scorer.cases import judge_of, primary_of, rules_of
from services.scorer.domain import Outcome, Subject, TrialKey
from services.scorer.payloads import whole_response
from services.scorer.pending_store import Claim, Held

log = structlog.get_logger()

MOST_FAULTS = 3
"""What could not be judged so often, without the response's doing, is given up."""
MOST_CLAIMS = 20
"""What was claimed so often by scorers that died over it, too."""
_GROUPS = 8
_PAUSE_SECONDS = 1.0

Scores = dict[TrialKey, RuleScore]


class CannotJudge(Exception):
    """Nothing is wrong with the responses: what judges them does not work. The message says why."""


class SlowJudge(Protocol):
    """Judges responses by slow rules."""

    def batch(self, rule: SlowRule) -> int:
        """How many responses it takes at once at most."""
        ...

    async def check(self, rule: SlowRule) -> None:
        """Make sure that it can work.

        :raises CannotJudge: it cannot.
        """
        ...

    def judge(self, rule: SlowRule, subjects: Sequence[Subject]) -> AsyncIterator[Scores]:
        """Yield scores as they are made, until every subject has one.

        :raises CannotJudge: it does not work; trying again may help.
        """
        ...


class SlowScorer:
    """Makes pending scores, whatever run they are of. Any number may work at once, here and elsewhere.

    :param stopping: when set, the work in hand is handed back.
    :param claim_seconds: how long a claim holds when this process dies.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        targets: CaseReader,
        objects: ObjectStore,
        judge: SlowJudge,
        stopping: asyncio.Event,
        *,
        claim_seconds: float = 30.0,
        pause_seconds: float = _PAUSE_SECONDS,
    ) -> None:
        self._pool = pool
        self._targets = targets
        self._objects = objects
        self._judge = judge
        self._stopping = stopping
        self._claim_seconds = claim_seconds
        self._pause_seconds = pause_seconds

    async def step(self) -> None:
        """Work until there is nothing left to do now.

        :raises Unavailable: a neighbour is away; what was in hand was handed back.
        """
        while not self._stopping.is_set():
            claim = await self._claim()
            if claim is None:
                return
            with structlog.contextvars.bound_contextvars(run=claim.group.run_id, rule=claim.group.rule):
                await self._carry(claim)

    async def _claim(self) -> Claim | None:
        async with self._pool.acquire() as connection:
            for group in await pending_store.groups(connection, _GROUPS):
                most = self._judge.batch(_rule(_spec(group.spec), group.rule))
                claim = await pending_store.claim(connection, group, most, self._claim_seconds)
                if claim is not None:
                    return claim
        return None

    async def _carry(self, claim: Claim) -> None:
        """Make the scores of a claim, or hand it back."""
        renew = partial(pending_store.renew, self._pool, claim, self._claim_seconds)
        release = partial(pending_store.release, self._pool, claim)
        try:
            async with kept(renew, seconds=self._claim_seconds, stopping=self._stopping):
                await self._work(claim)
        except ClaimLost:
            # Ours still when we stop: another scorer may take it at once.
            await release(pause=0.0)
            metrics.CLAIMS_ENDED.labels("given_back" if self._stopping.is_set() else "lost").inc()
        except asyncio.CancelledError:
            # Shielded: who stops us waits for nothing but this one statement.
            await asyncio.shield(release(pause=0.0))
            raise
        except TRANSIENT as error:
            if not db.is_transient(error) and not isinstance(error, Unavailable | TimeoutError):
                raise
            metrics.CLAIMS_ENDED.labels("given_back").inc()
            await release(pause=self._pause_seconds)
            raise
        except (CannotJudge, BenchgenError) as error:
            await self._fault(claim, str(error))
        except Exception:
            # One run that we cannot handle must not stop all others, again after each restart.
            log.exception("scores.failed")
            await self._fault(claim, "internal error; the scorer's log has it")
        else:
            metrics.CLAIMS_ENDED.labels("done").inc()

    async def _fault(self, claim: Claim, reason: str) -> None:
        log.warning("scores.fault", reason=reason)
        metrics.CLAIMS_ENDED.labels("fault").inc()
        await pending_store.release(self._pool, claim, pause=self._pause_seconds, fault=reason)

    async def _work(self, claim: Claim) -> None:
        spec = _spec(claim.group.spec)
        rule = _rule(spec, claim.group.rule)
        given_up = {key: rule_error(why) for key, held in claim.held.items() if (why := _given_up(held))}
        await self._write(claim, rule, given_up)
        subjects, known = await self._subjects(claim, spec, rule, claim.held.keys() - given_up.keys())
        await self._write(claim, rule, known)
        if not subjects:
            return
        began = perf_counter()
        async for scores in self._judge.judge(rule, subjects):
            metrics.SLOW_SECONDS.labels(rule.spec.type).observe((perf_counter() - began) / len(scores))
            await self._write(claim, rule, scores)
            began = perf_counter()

    async def _write(self, claim: Claim, rule: SlowRule, scores: Scores) -> None:
        if not scores:
            return
        primary = primary_of(rules_of(_spec(claim.group.spec).scoring_json))
        async with self._pool.acquire() as connection:
            written = await pending_store.write(connection, claim, scores, primary=primary)
        metrics.slow_scored(rule.spec.type, scores.values(), len(scores) - written)

    async def _subjects(
        self, claim: Claim, spec: run_pb2.RunSpec, rule: SlowRule, keys: set[TrialKey]
    ) -> tuple[list[Subject], Scores]:
        """What is to be judged, and scores of those that need no judging."""
        async with self._pool.acquire() as connection:
            rows = await pending_store.claimed_results(connection, spec.run, keys)
        positions = sorted({row["position"] for row in rows})
        judge = await judge_of(self._targets, spec.targets_digest, spec.scoring_json, positions)
        subjects: list[Subject] = []
        known: Scores = {}
        for row in rows:
            key = TrialKey(row["position"], row["trial"])
            target = judge.target(key.position)
            assert target is not None
            answer = rule.answer(await self._response(rule, row))
            if isinstance(answer, RuleScore):
                known[key] = answer
                continue
            values, _ = target.by_rule[claim.group.rule]
            subjects.append(
                Subject(
                    key, row["case_id"], Outcome(row["outcome"]), answer, values, spec.run, row["attempt"]
                )
            )
        return subjects, known

    async def _response(self, rule: SlowRule, row: asyncpg.Record) -> str:
        """A whole answer. That of a competition says which predictions to fetch."""
        if row["payload_digest"] is None or isinstance(rule.spec, ColumnRule):
            return str(row["response"])
        payload = result_pb2.PayloadRef(digest=row["payload_digest"], size_bytes=row["payload_bytes"])
        return await whole_response(self._objects, payload)


def _given_up(held: Held) -> str:
    """Why a score is not tried again; empty when it is."""
    if held.faults >= MOST_FAULTS:
        return f"gave up after {held.faults} tries, the last time: {held.fault}"
    if held.claims > MOST_CLAIMS:
        return f"gave up: the scorer ended {held.claims - 1} times while judging this"
    return ""


@lru_cache(maxsize=64)
def _spec(data: bytes) -> run_pb2.RunSpec:
    return run_pb2.RunSpec.FromString(data)


def _rule(spec: run_pb2.RunSpec, place: int) -> SlowRule:
    rule = rules_of(spec.scoring_json)[place]
    assert isinstance(rule, SlowRule), "only slow rules are pending"
    return rule
