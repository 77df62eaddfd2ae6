"""From results as runners send them to records as they are stored, checked on the way."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import lease_pb2, model_pb2, result_pb2
from benchgen.scoring.cost import Usage, cost_picousd
from services.common.amounts import Amount
from services.common.models.bounds import prices_of
from services.scorer.domain import CacheKey, Outcome, Record, model_key, request_key

#: Of an answer, and of the reasoning that came with it, in bytes.
MAX_RESPONSE = 64 * 1024
MAX_ERROR = 2_000
MAX_CALLS = 10_000
#: Of what a program asks in one call, and of what it is answered, in bytes.
MAX_CALL = 4 * 1024 * 1024
#: Longer answers are not judged: a rule looks at the end of a response only.
MAX_PAYLOAD = 64 * 1024 * 1024
#: A zip of predictions is not judged by rules, but looked into by programs.
MAX_PREDICTIONS = 2 * 1024**3

_MAX_NAME = 200
_MAX_TOKENS = 2**31 - 1
_MAX_COST = 2**63 - 1
#: Sums of a whole run stay within 64 bits.
_MOST_CHARGE = 2**50
_MAX_MILLISECONDS = 1e10
#: A sha256 as the contracts write it.
DIGEST = re.compile(r"[0-9a-f]{64}")


class _Spend(NamedTuple):
    """What calls cost: the sum of what is known, and how many calls it is not known of."""

    known_picousd: int
    unknown: int


_NO_USAGE = Usage()

_ENDPOINTS = frozenset({"chat.completions", "completions"})


@dataclass(frozen=True, slots=True)
class CallRecord:
    """One model call of a program as it is stored. Tokens and times are of the last try, cost of all tries."""

    position: int
    trial: int
    attempt: int
    call_id: str
    endpoint: str
    request_digest: bytes
    occurrence: int | None
    """Which of the same requests it answers, from 0; None when it failed."""
    request: str
    answer: str
    error: str | None
    reported_model: str | None
    input_tokens: int | None
    output_tokens: int | None
    cached_tokens: int | None
    reasoning_tokens: int | None
    latency_ms: float | None
    first_byte_ms: float | None
    started_at: datetime | None
    tries: int
    cost_picousd: int | None
    known_picousd: int
    tries_of_unknown_cost: int
    shard: str
    charge: Amount | None
    failed_calls: list[dict[str, Any]] = field(default_factory=list)


class Intake:
    """Checks and converts the results of one lease.

    :param requests: what the runner has to have asked, by digest and offset, for its answers to be kept for others.
    """

    def __init__(self, claims: lease_pb2.LeaseClaims, requests: Mapping[int, str] | None = None) -> None:
        self._requests = requests
        self._model = model_key_of(claims.spec.subject.model) if requests else b""
        self._attempt = claims.attempt
        self._shard = claims.shard
        self._trials = claims.spec.trials
        self._first = claims.first
        self._last = claims.first + claims.count - 1
        first_slot = claims.first // claims.spec.trials
        self._slots = {position: first_slot + place for place, position in enumerate(claims.positions)}
        self._prices = prices_of(claims.spec.subject.model)

    def offset(self, position: int, trial: int) -> int | None:
        """The trial's place in the shard, from 0; None when it is not of this shard."""
        slot = self._slots.get(position)
        if slot is None or not 0 <= trial < self._trials:
            return None
        number = slot * self._trials + trial
        return number - self._first if self._first <= number <= self._last else None

    def record(self, result: result_pb2.TrialResult) -> Record:
        """The record of one result.

        :raises InvalidInput: it is not of this shard, or a field is out of bounds; the message says which.
        """
        offset = self.check(result.position, result.trial)
        try:
            outcome = Outcome(result.outcome)
        except ValueError:
            raise InvalidInput(f"outcome: expected a known one, found {result.outcome}") from None
        if result.calls > MAX_CALLS:
            raise InvalidInput(f"calls: at most {MAX_CALLS}, found {result.calls}")
        usage = result.usage if result.HasField("usage") else None
        payload = result.payload if result.HasField("payload") else None
        if payload is not None:
            check_payload(payload)
        elif result.HasField("predictions"):
            payload = result.predictions
            check_payload(payload, MAX_PREDICTIONS)
        spend = self._spend(usage, result)
        return Record(
            position=result.position,
            trial=result.trial,
            attempt=self._attempt,
            outcome=outcome,
            case_id=result.case_id,
            response=_bounded(result.response, "response"),
            reasoning=_bounded(result.reasoning, "reasoning") or None,
            finish_reason=clean(result.finish_reason[:_MAX_NAME]) or None,
            reported_model=clean(result.reported_model[:_MAX_NAME]) or None,
            error=clean(result.error[:MAX_ERROR]) or None,
            input_digest=_digest(result.input_digest, "input_digest") if result.input_digest else None,
            input_tokens=_tokens(usage, "input_tokens"),
            output_tokens=_tokens(usage, "output_tokens"),
            cached_tokens=_tokens(usage, "cached_tokens"),
            reasoning_tokens=_tokens(usage, "reasoning_tokens"),
            latency_ms=_time(result.latency_ms, "latency_ms") if result.HasField("latency_ms") else None,
            first_byte_ms=(
                _time(result.first_byte_ms, "first_byte_ms") if result.HasField("first_byte_ms") else None
            ),
            started_at=_moment(result),
            calls=result.calls,
            cost_picousd=None if spend.unknown or not result.calls else spend.known_picousd,
            known_picousd=spend.known_picousd,
            calls_of_unknown_cost=spend.unknown,
            failed_calls=[_failed_call(call) for call in result.failed_calls],
            shard=self._shard,
            charge=_charge(result.charge) if result.HasField("charge") else None,
            payload_digest=payload.digest if payload else None,
            payload_bytes=payload.size_bytes if payload else None,
            keep_as=self._keep_as(offset, result) if self._requests else None,
        )

    def _keep_as(self, offset: int, result: result_pb2.TrialResult) -> CacheKey | None:
        """What to keep an answer as: only if it was asked for as its trial says, and has no blemish."""
        assert self._requests is not None
        digest = result.request_digest
        if result.outcome != result_pb2.OUTCOME_OK or not digest or digest != self._requests.get(offset):
            return None
        return CacheKey(self._model, request_key(digest, result.trial))

    def call(self, call: result_pb2.ModelCall) -> CallRecord:
        """The record of one call of a program.

        :raises InvalidInput: it is not of this shard, or a field is out of bounds; the message says which.
        """
        self.check(call.position, call.trial)
        if call.calls > MAX_CALLS:
            raise InvalidInput(f"calls: at most {MAX_CALLS}, found {call.calls}")
        if call.endpoint not in _ENDPOINTS:
            raise InvalidInput(
                f"endpoint: expected one of {sorted(_ENDPOINTS)}, found {call.endpoint[:80]!r}"
            )
        if not 0 < len(call.call_id) <= _MAX_NAME:
            raise InvalidInput("call_id: expected a UUID made by the runner")
        if bool(call.answer_json) == bool(call.error):
            raise InvalidInput("expected an answer or an error, found both or neither")
        for name, text in (("request_json", call.request_json), ("answer_json", call.answer_json)):
            if len(text) * 4 > MAX_CALL and len(text.encode()) > MAX_CALL:
                raise InvalidInput(f"{name}: at most {MAX_CALL} bytes")
        usage = call.usage if call.HasField("usage") else None
        spend = self._spend(usage, call)
        return CallRecord(
            position=call.position,
            trial=call.trial,
            attempt=self._attempt,
            call_id=clean(call.call_id),
            endpoint=call.endpoint,
            request_digest=_digest(call.request_digest, "request_digest"),
            occurrence=None if call.error else call.occurrence,
            request=clean(call.request_json),
            answer=clean(call.answer_json),
            error=clean(call.error[:MAX_ERROR]) or None,
            reported_model=clean(call.reported_model[:_MAX_NAME]) or None,
            input_tokens=_tokens(usage, "input_tokens"),
            output_tokens=_tokens(usage, "output_tokens"),
            cached_tokens=_tokens(usage, "cached_tokens"),
            reasoning_tokens=_tokens(usage, "reasoning_tokens"),
            latency_ms=_time(call.latency_ms, "latency_ms") if call.HasField("latency_ms") else None,
            first_byte_ms=(
                _time(call.first_byte_ms, "first_byte_ms") if call.HasField("first_byte_ms") else None
            ),
            started_at=_moment(call),
            tries=call.calls,
            cost_picousd=None if spend.unknown else spend.known_picousd,
            known_picousd=spend.known_picousd,
            tries_of_unknown_cost=spend.unknown,
            shard=self._shard,
            charge=_charge(call.charge) if call.HasField("charge") else None,
            failed_calls=[_failed_call(one) for one in call.failed_calls],
        )

    def check(self, position: int, trial: int) -> int:
        """The trial's place in the shard.

        :raises InvalidInput: the trial is not of this shard.
        """
        offset = self.offset(position, trial)
        if offset is None:
            raise InvalidInput("the trial is not of this shard")
        return offset

    def _spend(
        self, usage: result_pb2.Usage | None, result: result_pb2.TrialResult | result_pb2.ModelCall
    ) -> _Spend:
        """What the calls of a result cost, call by call. A call of which nothing is said has an unknown cost."""
        if not result.calls:
            return _Spend(0, 0)
        costs = [self._cost(usage, result.no_cost)]
        for call in result.failed_calls:
            costs.append(self._cost(call.usage if call.HasField("usage") else None, call.no_cost))
        known = sum(cost for cost in costs if cost is not None)
        if known > _MAX_COST:
            raise InvalidInput("usage: so many tokens cannot be")
        unknown = costs.count(None) + max(0, result.calls - len(costs))
        return _Spend(known, min(unknown, result.calls))

    def _cost(self, usage: result_pb2.Usage | None, no_cost: bool) -> int | None:
        """What one call cost: what its tokens do, where they are reported; None when that is unknown."""
        tokens = _usage(usage)
        if no_cost and tokens == _NO_USAGE:
            return 0
        return cost_picousd(tokens, self._prices)


def model_key_of(model: model_pb2.Model) -> bytes:
    """Whose answers those of a registered model are, whatever it is called here."""
    return endpoint_key(model.api, model.base_url, model.model_id)


def endpoint_key(api: model_pb2.Model.Api.ValueType, base_url: str, model_id: str) -> bytes:
    """Whose answers those of a model at an endpoint are."""
    return model_key(int(api or model_pb2.Model.API_OPENAI_CHAT), base_url, model_id)


def clean(text: str) -> str:
    """Text as Postgres takes it: it has no place for NUL."""
    return text.replace("\x00", "\ufffd") if "\x00" in text else text


def check_payload(payload: result_pb2.PayloadRef, most: int = MAX_PAYLOAD) -> None:
    """:raises InvalidInput: it refers to nothing that a runner stores."""
    _digest(payload.digest, "payload.digest")
    if payload.size_bytes > most:
        raise InvalidInput(f"payload: at most {most} bytes, found {payload.size_bytes}")


def _charge(charge: result_pb2.Charge) -> Amount:
    if not 0 <= charge.picousd <= _MOST_CHARGE or charge.tokens > _MOST_CHARGE:
        raise InvalidInput(
            f"charge: expected 0 to {_MOST_CHARGE}, found {charge.picousd} and {charge.tokens}"
        )
    return Amount(charge.picousd, charge.tokens)


def _bounded(text: str, field: str) -> str:
    # A character takes at most 4 bytes: counting characters first spares encoding almost always.
    if len(text) * 4 > MAX_RESPONSE and len(text.encode()) > MAX_RESPONSE:
        raise InvalidInput(f"{field}: at most {MAX_RESPONSE} bytes; put longer ones in a payload")
    return clean(text)


def _digest(text: str, field: str) -> bytes:
    if not DIGEST.fullmatch(text):
        raise InvalidInput(f"{field}: expected a sha256, 64 lower-case hex digits, found {text[:80]!r}")
    return bytes.fromhex(text)


def _time(milliseconds: float, field: str) -> float:
    if not (math.isfinite(milliseconds) and 0 <= milliseconds <= _MAX_MILLISECONDS):
        raise InvalidInput(f"{field}: expected milliseconds from 0, found {milliseconds}")
    return milliseconds


def _tokens(usage: result_pb2.Usage | None, name: str) -> int | None:
    if usage is None or not usage.HasField(name):  # type: ignore[arg-type]
        return None
    count: int = getattr(usage, name)
    if count > _MAX_TOKENS:
        raise InvalidInput(f"usage.{name}: at most {_MAX_TOKENS}, found {count}")
    return count


def _usage(usage: result_pb2.Usage | None) -> Usage:
    return Usage(
        input_total=_tokens(usage, "input_tokens"),
        input_cached=_tokens(usage, "cached_tokens"),
        output_total=_tokens(usage, "output_tokens"),
        # Reasoning has no price of its own here, so it is part of the output.
    )


def _moment(result: result_pb2.TrialResult | result_pb2.ModelCall) -> datetime | None:
    if not result.HasField("start_time"):
        return None
    try:
        return result.start_time.ToDatetime(tzinfo=UTC)
    except ValueError as error:
        raise InvalidInput(f"start_time: {error}") from None


def _failed_call(call: result_pb2.FailedCall) -> dict[str, Any]:
    """A failed try as it is kept in the row, by the field names of the contract."""
    usage = call.usage if call.HasField("usage") else None
    return {
        "http_status": call.http_status,
        "error": clean(call.error[:MAX_ERROR]),
        "latency_ms": _time(call.latency_ms, "failed_calls.latency_ms"),
        "wait_ms": _time(call.wait_ms, "failed_calls.wait_ms"),
        "input_tokens": _tokens(usage, "input_tokens"),
        "output_tokens": _tokens(usage, "output_tokens"),
        "no_cost": call.no_cost,
    }
