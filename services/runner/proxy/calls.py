"""The calls of one trial: stored answers first, then the model, and each committed before the program sees it."""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import orjson
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.errors import BenchgenError
from benchgen.eval.v1 import result_pb2
from services.common.models.meter import Tally, tallied
from services.common.models.replies import valid
from services.common.models.retry import Conversation
from services.common.models.seeds import derive_seed
from services.common.models.types import ChatRequest, Fault, FaultKind, Reply
from services.runner.harness.chat import MAX_ERROR, Subject, Trial, failed_call, known_usage, usage_message
from services.runner.lanes import CallLimit
from services.runner.proxy.wire import MAX_BYTES, Asked, Refused, answer_of, with_defaults

log = structlog.get_logger()

Answer = Mapping[str, Any]
Record = Callable[[result_pb2.ModelCall], Coroutine[Any, Any, result_pb2.RecordCallResponse]]

#: Faults of which the request itself is the reason: the program's doing, or the model's.
_OWN_DOING = frozenset({FaultKind.BAD_REQUEST, FaultKind.CONTEXT_LENGTH})


@dataclass(frozen=True, slots=True)
class CallSettings:
    """What all trials of a shard have in common.

    ``most_calls`` is how many calls one trial may make; ``defaults`` are the parameters that a request does not say.
    """

    model: str
    most_calls: int
    defaults: Mapping[str, Any]
    seed: int
    metered: bool = False
    """Whether calls say what they count for against budgets."""


class TrialCalls:
    """What one trial asks and is answered.

    :param record: stores a call, and answers with what stands: see RecordService.RecordCall.
    :param stored: the answers that earlier attempts at the trial were given, in order.
    :param failed: is told what ends the work on the whole shard: a fault that is permanent for the run, or that calls
        cannot be stored any more.
    """

    def __init__(
        self,
        trial: Trial,
        settings: CallSettings,
        subject: Subject,
        limit: CallLimit,
        record: Record,
        stored: Iterable[result_pb2.ModelCall],
        failed: Callable[[Fault | BenchgenError], None],
    ) -> None:
        self.trial = trial
        self.token = secrets.token_urlsafe(32)
        """Known to this trial's program alone; good until the trial is closed."""
        self.used = 0
        """How many requests were taken up, those that had a stored answer included."""
        self.limit_reached = False
        self.reported_model = ""
        """What the endpoint called its model last."""
        self._settings = settings
        self._subject = subject
        self._limit = limit
        self._record = record
        self._failed = failed
        self._stored: dict[str, deque[tuple[int, str]]] = defaultdict(deque)
        for call in stored:
            self._stored[call.request_digest].append((call.occurrence, call.answer_json))
        self._taken: dict[str, set[int]] = defaultdict(set)
        self._faults: dict[str, str] = {}
        self._tasks: dict[asyncio.Task[str], float] = {}
        self._dropped: set[asyncio.Task[str]] = set()
        """Those that were broken off with a try under way."""
        self.tries = 0
        """How many tries the calls took that have ended."""
        self._recordings: set[asyncio.Task[result_pb2.RecordCallResponse]] = set()
        self._waited = 0.0
        self._closed = False

    @property
    def fault(self) -> str:
        """Why a request has no answer although neither the program nor the model is to blame; empty if all have."""
        return next(iter(self._faults.values()), "")

    def waited_seconds(self) -> float:
        """How long calls have waited for permits, for the endpoint to take them, and for tries that failed."""
        now = monotonic()
        waiting = (now - began for task, began in self._tasks.items() if not self._limit.is_calling(task))
        return self._waited + sum(waiting)

    async def close(self) -> None:
        """Answer nothing more, drop what is under way, and see that what came back is stored."""
        self._closed = True
        # Those that wait will say nothing of it any more.
        self._waited = self.waited_seconds()
        tasks = list(self._tasks)
        self._dropped.update(task for task in tasks if self._limit.is_calling(task))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*self._recordings, return_exceptions=True)

    async def answer(self, asked: Asked) -> Answer:
        """Answer one request.

        :raises Refused: there is no answer; says why.
        """
        self._admit()
        self.used += 1
        if stored := self._stored[asked.digest]:
            occurrence, answer = stored.popleft()
            self._taken[asked.digest].add(occurrence)
            return _read(answer)
        # In a task of its own: a program that hangs up does not undo what is being paid for.
        task = asyncio.create_task(self._call(asked), name=f"call {self.trial.case_id}")
        self._tasks[task] = monotonic()
        task.add_done_callback(self._forget)
        try:
            return _read(await asyncio.shield(task))
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise Refused(503, "the trial has ended", "trial_ended") from None

    def _forget(self, task: asyncio.Task[str]) -> None:
        self._tasks.pop(task, None)
        if not task.cancelled():
            # Whoever asked may have hung up: then nobody else looks at it.
            task.exception()

    def hand_back(self, asked: Asked, answer: Answer) -> None:
        """Keep an answer that could not be delivered for the next request that is the same."""
        self._stored[asked.digest].appendleft((0, orjson.dumps(answer).decode()))

    def _admit(self) -> None:
        """Whether one more call may be made. What a lease grants is reserved behind the subject, try by try.

        :raises Refused: it may not.
        """
        if self._closed:
            raise Refused(401, "the trial that this key was for has ended", "invalid_api_key")
        if self.used >= self._settings.most_calls:
            self.limit_reached = True
            message = f"this trial may make {self._settings.most_calls} model calls, and has made them"
            raise Refused(429, message, "call_limit_reached")

    async def _call(self, asked: Asked) -> str:
        """Ask the model, store the answer, and say which one stands."""
        taken = self._taken[asked.digest]
        occurrence = next(number for number in range(len(taken) + 1) if number not in taken)
        taken.add(occurrence)
        answered = False
        try:
            with tallied() as tally:
                conversation, began = await self._asked(asked, occurrence, tally)
            self.tries += len(conversation.calls)
            self._waited += max(0.0, monotonic() - began - _answering_seconds(conversation))
            call, fault = self._described(asked, occurrence, conversation)
            self._charge(call, tally)
            # Faults, too: a call that failed may cost.
            stands = await self._stored_answer(call)
            if fault is not None:
                raise self._refusal(asked, fault)
            answered = True
            self._faults.pop(asked.digest, None)
            return stands
        finally:
            if not answered:
                taken.discard(occurrence)

    async def _asked(self, asked: Asked, occurrence: int, tally: Tally) -> tuple[Conversation, float]:
        """Ask the model; a try that is broken off is recorded, since nobody knows what it cost."""
        try:
            return await self._ask(asked, occurrence)
        except asyncio.CancelledError:
            if asyncio.current_task() in self._dropped:
                call = self._call_of(asked, occurrence)
                call.calls, call.error = 1, "dropped: the program ended before the answer came"
                self._charge(call, tally)
                self._begin_recording(call)
            raise

    def _charge(self, call: result_pb2.ModelCall, tally: Tally) -> None:
        if self._settings.metered:
            call.charge.picousd, call.charge.tokens = tally.charge

    async def _ask(self, asked: Asked, occurrence: int) -> tuple[Conversation, float]:
        """Ask the model; answers also with when that began."""
        params = with_defaults(asked.params, self._settings.defaults)
        if "seed" not in params:
            # The same question again is drawn anew, and in the same way in every attempt.
            case = self.trial.case_id + (f"#{occurrence}" if occurrence else "")
            params["seed"] = derive_seed(self._settings.seed, case, self.trial.trial)
        request = ChatRequest(asked.messages, params)
        task = asyncio.current_task()
        assert task is not None
        began = monotonic()
        while True:
            try:
                return await self._subject.ask(self.trial, request), began
            except asyncio.CancelledError:
                # Called off for want of a lease: made again when there is one.
                if self._closed or not self._limit.was_called_off(task):
                    raise

    def _described(
        self, asked: Asked, occurrence: int, conversation: Conversation
    ) -> tuple[result_pb2.ModelCall, Fault | None]:
        """A call as it is stored, and why it failed if it did."""
        result, tries = conversation.result, conversation.calls
        began = conversation.began_ns
        call = self._call_of(asked, occurrence)
        call.calls = len(tries)
        call.failed_calls.extend(failed_call(one) for one in tries[:-1])
        if began:
            call.start_time.CopyFrom(Timestamp(seconds=began // 10**9, nanos=began % 10**9))
        if isinstance(result, Fault):
            call.no_cost = result.no_cost
            if (usage := known_usage(result.usage)) is not None:
                call.usage.CopyFrom(usage)
            call.latency_ms = result.latency_ms
            call.error = _said(result)
            return call, result
        call.usage.CopyFrom(usage_message(result.usage))
        call.no_cost = result.no_cost
        call.latency_ms, call.first_byte_ms = result.latency_ms, result.first_byte_ms
        call.reported_model = self.reported_model = result.model or ""
        answer = answer_of(
            asked, result, model=self._settings.model, call_id=call.call_id, created=int(time.time())
        )
        data, fault = _written(answer)
        call.answer_json = data
        call.error = _said(fault) if fault is not None else ""
        return call, fault

    def _call_of(self, asked: Asked, occurrence: int) -> result_pb2.ModelCall:
        """A call of which nothing has come back yet."""
        return result_pb2.ModelCall(
            position=self.trial.position,
            trial=self.trial.trial,
            call_id=uuid.uuid4().hex,
            endpoint=asked.endpoint,
            request_digest=asked.digest,
            occurrence=occurrence,
            request_json=asked.request_json,
        )

    def _refusal(self, asked: Asked, fault: Fault) -> Refused:
        """What the program hears of a fault; it is noted."""
        if fault.permanent_for_run:
            self._failed(fault)
            return Refused(503, "the run was paused: its model refuses for good", "model_refuses")
        if fault.kind in _OWN_DOING:
            return Refused(400, fault.message, fault.kind)
        self._faults[asked.digest] = _said(fault)
        return Refused(502, f"the model's endpoint failed: {_said(fault)}", "provider_error")

    def _begin_recording(self, call: result_pb2.ModelCall) -> asyncio.Task[result_pb2.RecordCallResponse]:
        """Store a call. It was paid for: whoever is not wanted any more does not keep it from being stored."""
        recording = asyncio.create_task(self._record(call))
        self._recordings.add(recording)
        recording.add_done_callback(self._recordings.discard)
        return recording

    async def _stored_answer(self, call: result_pb2.ModelCall) -> str:
        """Store a call and say which answer stands.

        :raises Refused: it could not be stored: nothing of the trial counts any more.
        """
        try:
            stored = await asyncio.shield(self._begin_recording(call))
        except BenchgenError as error:
            self._failed(error)
            raise Refused(503, f"the call could not be stored: {error.message}", "not_stored") from None
        return stored.answer_json if stored.HasField("answer_json") else call.answer_json


def _said(fault: Fault) -> str:
    return valid(f"{fault.kind}: {fault.message}")[:MAX_ERROR]


def _written(answer: Answer) -> tuple[str, Fault | None]:
    """An answer as JSON, or why it cannot be passed on."""
    try:
        data = orjson.dumps(answer)
    except TypeError as error:
        return "", Fault(FaultKind.BAD_REPLY, f"the reply cannot be written as JSON: {error}")
    if len(data) > MAX_BYTES:
        return "", Fault(FaultKind.TOO_LARGE, f"the reply is larger than {MAX_BYTES} bytes")
    return data.decode(), None


def _answering_seconds(conversation: Conversation) -> float:
    """How long the try took that was answered."""
    result = conversation.result
    return result.latency_ms / 1000 if isinstance(result, Reply) else 0.0


def _read(answer_json: str) -> Answer:
    answer: Answer = orjson.loads(answer_json)
    return answer
