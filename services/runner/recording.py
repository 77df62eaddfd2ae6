"""Streams results to the scorer: in batches, resent after a cut until they are acknowledged."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import grpc
import structlog

from benchgen.errors import BenchgenError, Unavailable
from benchgen.eval.v1 import lease_pb2, result_pb2, result_pb2_grpc
from benchgen.statuses import error_of
from services.runner.patience import until_available

log = structlog.get_logger()

MAX_RESULTS = 256
MAX_BYTES = 1024 * 1024
MAX_UNACKNOWLEDGED = 4

#: How long the first result of a batch waits for company. A call takes longer than that, almost always.
_LINGER_S = 0.004
#: A batch of this size goes at once.
_FULL_ENOUGH = 32

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
#: How often in a row the scorer may break before it has stored anything.
_MOST_FAILURES = 5

_Call = grpc.aio.StreamStreamCall[result_pb2.RecordResultsRequest, result_pb2.RecordResultsResponse]


class RecordStream:
    """The results of one lease on their way.

    :param on_stored: called with how many results were acknowledged.
    """

    def __init__(
        self,
        stub: result_pb2_grpc.RecordServiceAsyncStub,
        lease: lease_pb2.SignedLease,
        on_stored: Callable[[int], None],
    ) -> None:
        self._stub = stub
        self._lease = lease
        self._on_stored = on_stored
        self._pending: list[result_pb2.TrialResult] = []
        self._unacknowledged: OrderedDict[int, list[result_pb2.TrialResult]] = OrderedDict()
        self._sequence = 0
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._due = False
        self.held: frozenset[int] = frozenset()
        """Offsets of the shard's trials that were stored before this lease."""
        # Whether anything was stored since the last connection: if not, the next try comes later.
        self._acknowledged = False
        # Refused results that another one was sent for, which says so.
        self._replaced: set[tuple[int, int]] = set()
        self.rejections: list[result_pb2.Rejection] = []
        """Results that the scorer refused, and would not take the refusal of instead."""

    @property
    def outstanding(self) -> int:
        """How many results are not acknowledged."""
        return len(self._pending) + sum(len(batch) for batch in self._unacknowledged.values())

    def add(self, result: result_pb2.TrialResult) -> None:
        """Send a result with the next batch."""
        self._idle.clear()
        self._pending.append(result)
        if len(self._pending) >= _FULL_ENOUGH:
            self._flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_LINGER_S, self._flush)

    async def drained(self) -> None:
        """Wait until everything is acknowledged."""
        self._flush()
        await self._idle.wait()

    def _flush(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = True
        self._changed.set()

    async def connect(self) -> _Call:
        """Open the stream and learn what is held.

        :raises BenchgenError: the scorer refuses, or cannot be reached.
        """
        call = self._stub.RecordResults()
        answer: Any = grpc.aio.EOF
        try:
            # A stream that has ended takes nothing and gives nothing: its status says why.
            with suppress(grpc.RpcError, asyncio.InvalidStateError):
                await call.write(result_pb2.RecordResultsRequest(lease=self._lease))
                answer = await call.read()
            if answer is grpc.aio.EOF:
                raise await _end_of(call)
        except asyncio.CancelledError:
            call.cancel()
            raise
        self.held = frozenset(answer.held.offsets)
        return call

    async def carry(self, call: _Call) -> None:
        """Carry batches up and acknowledgements down, over as many connections as it takes.

        :raises BenchgenError: the scorer refuses for good: the lease is not good any more.
        """
        delay = _FIRST_PAUSE_S
        failures = 0
        while True:
            try:
                end = await self._until_cut(call)
            finally:
                call.cancel()
            if self._acknowledged:
                delay, failures = _FIRST_PAUSE_S, 0
            self._acknowledged = False
            if not isinstance(end, Unavailable):
                failures += 1
                # A server that breaks may say anything; one that breaks on the same results each time means it.
                if end.reason != BenchgenError.reason or failures > _MOST_FAILURES:
                    raise end
            log.info("record.cut", error=end.message)
            # What was not acknowledged goes again; the scorer knows what it has.
            self._requeue()
            while True:
                await asyncio.sleep(delay)
                delay = min(delay * 2, _LONGEST_PAUSE_S)
                try:
                    call = await self.connect()
                except Unavailable:
                    continue
                break

    async def _until_cut(self, call: _Call) -> BenchgenError:
        """Carry until the stream ends; returns why it did."""
        directions = {asyncio.create_task(self._write(call)), asyncio.create_task(self._read(call))}
        try:
            ended, _ = await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for direction in directions:
                direction.cancel()
            await asyncio.gather(*directions, return_exceptions=True)
        for direction in ended:
            with suppress(grpc.RpcError, asyncio.InvalidStateError):
                direction.result()
        return await _end_of(call)

    def _requeue(self) -> None:
        again = [result for batch in self._unacknowledged.values() for result in batch]
        self._unacknowledged.clear()
        self._sequence = 0
        self._pending[:0] = again
        if self._pending:
            self._flush()

    async def _write(self, call: _Call) -> None:
        while True:
            await self._changed.wait()
            self._changed.clear()
            while self._pending and self._due and len(self._unacknowledged) < MAX_UNACKNOWLEDGED:
                batch = self._take()
                self._sequence += 1
                self._unacknowledged[self._sequence] = batch
                message = result_pb2.RecordResultsRequest(
                    batch=result_pb2.ResultBatch(sequence=self._sequence, results=batch)
                )
                await call.write(message)
            if not self._pending:
                self._due = False

    def _take(self) -> list[result_pb2.TrialResult]:
        """The next batch, bounded by count and by bytes."""
        size = 0
        for place, result in enumerate(self._pending[:MAX_RESULTS]):
            size += result.ByteSize() + 8
            if size > MAX_BYTES and place:
                batch, self._pending = self._pending[:place], self._pending[place:]
                return batch
        batch, self._pending = self._pending[:MAX_RESULTS], self._pending[MAX_RESULTS:]
        return batch

    async def _read(self, call: _Call) -> None:
        while True:
            answer: Any = await call.read()
            if answer is grpc.aio.EOF:
                return
            batch = self._unacknowledged.pop(answer.ack.sequence)
            self._changed.set()
            again = self._replacements(batch, answer.ack.rejections) if answer.ack.rejections else []
            self._on_stored(len(batch) - len(again))
            self._acknowledged = True
            for result in again:
                self.add(result)
            if not self._pending and not self._unacknowledged:
                self._idle.set()

    def _replacements(
        self, batch: Sequence[result_pb2.TrialResult], rejections: Iterable[result_pb2.Rejection]
    ) -> list[result_pb2.TrialResult]:
        """What is sent instead of refused results: that they were refused. Once for each."""
        by_key = {(result.position, result.trial): result for result in batch}
        again = []
        for rejection in rejections:
            key = (rejection.position, rejection.trial)
            log.error("record.rejected", position=key[0], trial=key[1], reason=rejection.reason)
            refused = by_key.get(key)
            if refused is None or key in self._replaced:
                self.rejections.append(rejection)
                continue
            self._replaced.add(key)
            again.append(
                result_pb2.TrialResult(
                    position=refused.position,
                    trial=refused.trial,
                    case_id=refused.case_id,
                    outcome=result_pb2.OUTCOME_HARNESS_ERROR,
                    error=f"the scorer refused the result: {rejection.reason}"[:2000],
                    calls=min(refused.calls, 10_000),
                )
            )
        return again


async def _end_of(call: _Call) -> BenchgenError:
    """Why a stream ended."""
    code = await call.code()
    if code in (grpc.StatusCode.OK, grpc.StatusCode.CANCELLED):
        return Unavailable("the scorer closed the stream")
    details, trailing = await call.details(), await call.trailing_metadata()
    return error_of(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details))


@asynccontextmanager
async def recording(
    stub: result_pb2_grpc.RecordServiceAsyncStub,
    lease: lease_pb2.SignedLease,
    on_stored: Callable[[int], None],
    wanted: Callable[[], bool],
) -> AsyncIterator[tuple[RecordStream, asyncio.Task[None]]]:
    """An open stream and the task that carries it, which ends only by failing.

    :param wanted: the scorer is waited for as long as this holds.
    """
    stream = RecordStream(stub, lease, on_stored)
    call = await until_available(stream.connect, wanted)
    carrier = asyncio.create_task(stream.carry(call), name="record")
    try:
        yield stream, carrier
    finally:
        carrier.cancel()
        await asyncio.gather(carrier, return_exceptions=True)
