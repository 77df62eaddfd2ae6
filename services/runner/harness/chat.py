"""The chat harness: rendered messages in, one reply out."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import orjson
import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from benchgen.eval.v1 import environment_pb2, result_pb2
from services.common.models.asking import Asking
from services.common.models.replies import valid
from services.common.models.retry import CallRecord, Conversation
from services.common.models.types import (
    UNKNOWN_USAGE,
    ChatRequest,
    Fault,
    Outcome,
    Reply,
    Usage,
    classify,
)

log = structlog.get_logger()

#: A longer answer is cut in the result and kept whole as a payload.
MAX_INLINE = 64 * 1024
#: Of an error, in characters.
MAX_ERROR = 2_000

_OUTCOMES: Mapping[Outcome, result_pb2.Outcome.ValueType] = {
    outcome: result_pb2.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome
}


@dataclass(frozen=True, slots=True)
class Trial:
    """One repeat of one case, ready to be asked."""

    position: int
    trial: int
    case_id: str
    messages: Sequence[Mapping[str, Any]]
    input_digest: str
    fields: Mapping[str, Any] | None = None
    """What a program sees of the case beside the messages; None where no program runs."""
    task: Mapping[str, Any] | None = None
    """For competitions: the programs and data of the prediction step."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes that are stored before the result that names them."""

    digest: str
    data: bytes


class Subject(Protocol):
    """Whoever answers: an endpoint over HTTP, or a built-in one in this process."""

    async def ask(self, trial: Trial, request: ChatRequest) -> Conversation:
        """Make the calls that one answer takes."""
        ...


class ChatHarness:
    """Asks one subject in the way that a run's specification says.

    :param names_requests: whether results say by digest what was asked, so that their answers can be kept for others.
    """

    def __init__(
        self,
        subject: Subject,
        generation: environment_pb2.Generation,
        seed: int,
        *,
        names_requests: bool = False,
    ) -> None:
        self._subject = subject
        self._asking = Asking(generation, seed)
        self._stop = self._asking.stop
        self._names_requests = names_requests

    def request_digest(self, trial: Trial) -> str:
        """What would be asked, by digest."""
        return self._asking.digest(self._asking.request(trial.messages, trial.case_id, trial.trial))

    def request(self, trial: Trial) -> ChatRequest:
        """What is asked for a trial."""
        return self._asking.request(trial.messages, trial.case_id, trial.trial)

    async def run(self, trial: Trial) -> tuple[result_pb2.TrialResult, Payload | None] | Fault:
        """Ask once; a fault that is permanent for the whole run comes back as it is."""
        request = self.request(trial)
        conversation = await self._subject.ask(trial, request)
        answer = conversation.result
        # Where an earlier call may have cost something that has to be recorded; the next trial hears the same.
        if (
            isinstance(answer, Fault)
            and answer.permanent_for_run
            and all(c.no_cost for c in conversation.calls)
        ):
            return answer
        try:
            result, payload = self._result(trial, conversation)
        except Exception as error:
            # An answer that nobody can write down is lost; that it was paid for is not.
            log.exception("harness.broke", case=trial.case_id)
            return broken(trial, said(error), calls=len(conversation.calls)), None
        if self._names_requests and result.outcome == result_pb2.OUTCOME_OK:
            result.request_digest = self._asking.digest(request)
        return result, payload

    def _result(
        self, trial: Trial, conversation: Conversation
    ) -> tuple[result_pb2.TrialResult, Payload | None]:
        answer = conversation.result
        began = conversation.began_ns
        # All at once: setting field after field takes twice as long, and this is done for every trial.
        result = result_pb2.TrialResult(
            position=trial.position,
            trial=trial.trial,
            case_id=trial.case_id,
            input_digest=trial.input_digest,
            calls=len(conversation.calls),
            start_time=Timestamp(seconds=began // 10**9, nanos=began % 10**9) if began else None,
            **(_fault_fields(answer) if isinstance(answer, Fault) else self._reply_fields(answer)),
        )
        if len(conversation.calls) > 1:
            result.failed_calls.extend(failed_call(call) for call in conversation.calls[:-1])
        return result, shorten(result)

    def _reply_fields(self, reply: Reply) -> dict[str, Any]:
        outcome = classify(reply)
        text = _cut_at_stop(reply.text, self._stop) if self._stop else reply.text
        if len(text) < len(reply.text):
            # An endpoint that obeyed would have ended here: what it said further on does not count.
            finish = "stop" if outcome is Outcome.TRUNCATED else reply.finish_reason
            outcome = classify(replace(reply, text=text, finish_reason=finish))
        return {
            "outcome": _OUTCOMES[outcome],
            # What a model says instead of an answer is its answer to read, and scores as such.
            "response": text or reply.refusal or "",
            "reasoning": reply.reasoning,
            "finish_reason": reply.finish_reason,
            "latency_ms": reply.latency_ms,
            "first_byte_ms": reply.first_byte_ms,
            "reported_model": reply.model,
            "usage": usage_message(reply.usage),
            "no_cost": reply.no_cost,
        }


def broken(trial: Trial, reason: str, *, calls: int) -> result_pb2.TrialResult:
    """The result of a trial that the harness could not bring to an end.

    :param calls: how many calls it had made; what they cost is not known any more.
    """
    return result_pb2.TrialResult(
        position=trial.position,
        trial=trial.trial,
        case_id=trial.case_id,
        input_digest=trial.input_digest,
        outcome=result_pb2.OUTCOME_HARNESS_ERROR,
        error=valid(reason)[:MAX_ERROR],
        calls=calls,
    )


def said(error: Exception) -> str:
    """An error in words."""
    return f"{type(error).__name__}: {error}"


def _fault_fields(fault: Fault) -> dict[str, Any]:
    return {
        "outcome": result_pb2.OUTCOME_PROVIDER_ERROR,
        "error": f"{fault.kind}: {fault.message}",
        "latency_ms": fault.latency_ms,
        "usage": known_usage(fault.usage),
        "no_cost": fault.no_cost,
    }


def shorten(result: result_pb2.TrialResult) -> Payload | None:
    """Cut what is too long for a row; answers with the whole of it."""
    text, reasoning = result.response, result.reasoning
    # A character takes at most 4 bytes: counting characters first spares encoding almost always.
    if (len(text) + len(reasoning)) * 4 <= MAX_INLINE:
        return None
    encoded, thought = text.encode(), reasoning.encode()
    if len(encoded) <= MAX_INLINE and len(thought) <= MAX_INLINE:
        return None
    data = orjson.dumps({"response": text, "reasoning": reasoning})
    payload = Payload(hashlib.sha256(data).hexdigest(), data)
    result.response = encoded[:MAX_INLINE].decode(errors="ignore")
    result.reasoning = thought[:MAX_INLINE].decode(errors="ignore")
    result.payload.digest = payload.digest
    result.payload.size_bytes = len(data)
    return payload


def _cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """What comes before the first stop sequence: not every endpoint obeys all of them."""
    ends = [place for stop in stops if (place := text.find(stop)) >= 0]
    return text[: min(ends)] if ends else text


def usage_message(usage: Usage) -> result_pb2.Usage:
    """The tokens of a call, as they travel."""
    return result_pb2.Usage(
        input_tokens=usage.input,
        output_tokens=usage.output,
        cached_tokens=usage.cached,
        reasoning_tokens=usage.reasoning,
    )


def failed_call(call: CallRecord) -> result_pb2.FailedCall:
    """A try that was made again, as it travels."""
    return result_pb2.FailedCall(
        http_status=call.status or 0,
        error=call.message,
        latency_ms=call.latency_ms,
        wait_ms=call.waited_s * 1000,
        usage=known_usage(call.usage),
        no_cost=call.no_cost,
    )


def known_usage(usage: Usage) -> result_pb2.Usage | None:
    """The same; None where nothing was reported."""
    return None if usage is UNKNOWN_USAGE else usage_message(usage)
