"""The response cache: answers that a run takes instead of calls, and what a runner's answers are kept as."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import asyncpg
import structlog

from benchgen.errors import FailedPrecondition, InvalidInput
from benchgen.eval.v1 import lease_pb2, result_pb2
from services.common.models.asking import Asking
from services.common.objects import ObjectStore
from services.common.parts import CaseReader, Row
from services.scorer import cache_store, metrics
from services.scorer.cache_store import CachedAnswer
from services.scorer.cases import Judge
from services.scorer.domain import CacheKey, Outcome, Record, ScoredRecord, TrialKey, request_key
from services.scorer.intake import model_key_of
from services.scorer.payloads import whole_response
from services.scorer.recorder import Recorder
from services.scorer.turns import in_turns

log = structlog.get_logger()

#: How many answers are looked up, judged and stored together: each may have 128 KiB.
_AT_ONCE = 32


class _Hit(NamedTuple):
    """An answer for a trial; ``text`` is the whole of it."""

    trial: TrialKey
    answer: CachedAnswer
    text: str


class ResponseCache:
    """Gives answers to trials, and says under which names new ones are kept.

    No runner reads it. What a trial asks is known here from its lease and the inputs: a runner's word alone neither
    finds an answer nor keeps one.

    :param max_age: older answers are not given. Zero: nothing is kept and nothing given.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        recorder: Recorder,
        inputs: CaseReader,
        objects: ObjectStore,
        scoring_threads: Executor,
        max_age: timedelta,
    ) -> None:
        self._pool = pool
        self._recorder = recorder
        self._inputs = inputs
        self._objects = objects
        self._threads = scoring_threads
        self._max_age = max_age

    async def requests(self, claims: lease_pb2.LeaseClaims) -> Mapping[int, str]:
        """What the trials of a lease ask, by digest and offset; nothing where its run does not use the cache, or where
        a program asks."""
        if not (claims.spec.use_cache and self._max_age) or claims.spec.harness_json:
            return {}
        rows = await self._inputs.rows(claims.spec.inputs_digest, claims.positions)
        # Prompts can be long: off the event loop.
        return await asyncio.to_thread(_requests, claims, rows)

    async def load(
        self, claims: lease_pb2.LeaseClaims, judge: Judge, held: frozenset[int], asked: Sequence[str]
    ) -> int:
        """Store what there is for the trials of a lease that are not held yet; returns how many that were.

        :param asked: what the runner would ask, by digest, for each trial of the lease. Where that is not what the
            lease says, one of the two is of another version, and the trial is left to the runner.
        :raises FailedPrecondition: the lease's run does not use the cache.
        :raises InvalidInput: these are not as many as there are trials.
        """
        if not claims.spec.use_cache:
            raise FailedPrecondition("the run of this lease does not use the response cache")
        if len(asked) != claims.count:
            raise InvalidInput(
                f"request_digests: expected one for each of {claims.count} trials, found {len(asked)}"
            )
        requests = await self.requests(claims)
        model = model_key_of(claims.spec.subject.model)
        wanted = [
            (trial, CacheKey(model, request_key(asked[offset], trial.trial)))
            for offset, trial in enumerate(_trials(claims))
            if offset not in held and asked[offset] and asked[offset] == requests.get(offset)
        ]
        metrics.CACHE_LOOKUPS.inc(len(wanted))
        loaded = 0
        for start in range(0, len(wanted), _AT_ONCE):
            async for hits in self._found(wanted[start : start + _AT_ONCE]):
                # Stored as they are judged: whoever asks again goes on from there.
                async for batch in in_turns(self._threads, partial(_scored, claims, judge), hits):
                    await self._recorder.store(claims.run, batch)
                    loaded += len(batch)
        return loaded

    async def _found(self, wanted: Sequence[tuple[TrialKey, CacheKey]]) -> AsyncIterator[list[_Hit]]:
        """What there is of these: first the short answers together, then the long ones one by one."""
        model = wanted[0][1].model
        async with self._pool.acquire() as connection:
            found = await cache_store.find(
                connection, model, {key.request for _, key in wanted}, self._max_age
            )
        hits = [(trial, key, found[key.request]) for trial, key in wanted if key.request in found]
        yield [
            _Hit(trial, answer, answer.response) for trial, _, answer in hits if answer.payload_digest is None
        ]
        for trial, key, answer in hits:
            # An answer can be a hundred times as long as what is kept of it in a row.
            if answer.payload_digest is not None:
                text = await self._whole(key, answer)
                if text is not None:
                    yield [_Hit(trial, answer, text)]

    async def _whole(self, key: CacheKey, answer: CachedAnswer) -> str | None:
        """A long answer; None where it cannot be read any more, and then nobody is to find it again."""
        assert answer.payload_digest is not None
        payload = result_pb2.PayloadRef(digest=answer.payload_digest, size_bytes=answer.payload_bytes or 0)
        try:
            return await whole_response(self._objects, payload)
        except InvalidInput as error:
            log.warning("cache.lost", payload=answer.payload_digest, error=error.message)
            async with self._pool.acquire() as connection:
                await cache_store.forget(connection, key)
            return None

    async def expire(self) -> None:
        """Remove what is too old."""
        async with self._pool.acquire() as connection:
            removed = await cache_store.expire(connection, self._max_age)
        if removed:
            log.info("sweep.cache", removed=removed)


def _trials(claims: lease_pb2.LeaseClaims) -> Iterator[TrialKey]:
    """The trials of a lease, in order."""
    trials = claims.spec.trials
    first_slot = claims.first // trials
    for number in range(claims.first, claims.first + claims.count):
        slot, trial = divmod(number, trials)
        yield TrialKey(claims.positions[slot - first_slot], trial)


def _requests(claims: lease_pb2.LeaseClaims, rows: Sequence[Row]) -> dict[int, str]:
    asking = Asking(claims.spec.generation, claims.spec.seed)
    cases = {row["position"]: row for row in rows}
    digests = {}
    for offset, key in enumerate(_trials(claims)):
        case = cases[key.position]
        digests[offset] = asking.digest(asking.request(case["messages"], case["id"], key.trial))
    return digests


def _scored(claims: lease_pb2.LeaseClaims, judge: Judge, hit: _Hit) -> ScoredRecord:
    position, trial = hit.trial
    target = judge.target(position)
    assert target is not None
    answer = hit.answer
    record = Record(
        position=position,
        trial=trial,
        attempt=claims.attempt,
        outcome=Outcome.OK,
        case_id=target.case_id,
        response=answer.response,
        reasoning=answer.reasoning,
        finish_reason=answer.finish_reason,
        reported_model=answer.reported_model,
        input_digest=answer.input_digest,
        cost_picousd=0,
        payload_digest=answer.payload_digest,
        payload_bytes=answer.payload_bytes,
        cluster=target.cluster,
        slices=target.slices,
        saved=answer.saved,
    )
    return ScoredRecord(record, judge.score(position, Outcome.OK, hit.text), judge.primary)
