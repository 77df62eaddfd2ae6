"""What a result is, and which of two attempts at a trial counts. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from benchgen.scoring.rules import RuleScore
from services.common.amounts import NOTHING, Amount


class Outcome(IntEnum):
    """How a trial ended; the numbers are those of the contract."""

    OK = 1
    TRUNCATED = 2
    REFUSED = 3
    EMPTY = 4
    LIMIT = 5
    PROVIDER_ERROR = 6
    SANDBOX_ERROR = 7
    HARNESS_ERROR = 8
    JUDGE_ERROR = 9
    CANCELLED = 10
    BUDGET = 11

    @property
    def final(self) -> bool:
        """Whether it is the model's doing: scored, and never replaced."""
        return self <= Outcome.LIMIT


class TrialKey(NamedTuple):
    """Which trial of a run."""

    position: int
    trial: int


class CacheKey(NamedTuple):
    """What an answer in the response cache is found by: whose it is, and what was asked, both as sha256."""

    model: bytes
    request: bytes


def model_key(api: int, base_url: str, model_id: str) -> bytes:
    """Whose answers these are: one model at one endpoint, however its address is written.

    :param api: what the endpoint speaks, by its number in the contract.
    """
    return _sha256([api, normal_address(base_url), model_id])


def request_key(digest: str, trial: int) -> bytes:
    """What was asked, and the how-manieth time: repeats of a case have answers of their own."""
    return _sha256([digest, trial])


_PORTS = {"http": 80, "https": 443}


def normal_address(url: str) -> str:
    """One spelling of an address: lower-case host, no port that goes without saying, no slash at the end."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if ":" in host:
        host = f"[{host}]"
    if parts.port is not None and parts.port != _PORTS.get(parts.scheme):
        host = f"{host}:{parts.port}"
    return urlunsplit((parts.scheme, host, parts.path.rstrip("/"), parts.query, ""))


def _sha256(fields: Sequence[str | int]) -> bytes:
    # As JSON: no two lists of fields are written the same way.
    return hashlib.sha256(json.dumps(fields).encode()).digest()


@dataclass(slots=True)
class Record:
    """One attempt at a trial, as it is stored. Tokens and times are of the last call, cost of all calls."""

    position: int
    trial: int
    attempt: int
    outcome: Outcome
    case_id: str
    response: str = ""
    reasoning: str | None = None
    finish_reason: str | None = None
    reported_model: str | None = None
    error: str | None = None
    input_digest: bytes | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    latency_ms: float | None = None
    first_byte_ms: float | None = None
    started_at: datetime | None = None
    calls: int = 0
    cost_picousd: int | None = None
    known_picousd: int = 0
    """What those calls cost whose cost is known, when that of others is not."""
    calls_of_unknown_cost: int = 0
    failed_calls: list[dict[str, Any]] = field(default_factory=list)
    spend_counted: bool = False
    """Whether what it used is in the run's totals already: a program's calls are counted one by one."""
    shard: str = ""
    """Which lease it came under, together with the attempt."""
    charge: Amount | None = None
    """What its calls count for against budgets; None where there are none."""
    payload_digest: str | None = None
    payload_bytes: int | None = None
    cluster: str | None = None
    slices: dict[str, str] | None = None
    saved: dict[str, int] | None = None
    """For an answer from the response cache: the tokens of the call that it once took, by the names used here, where
    they were reported. What it took now is nothing."""
    keep_as: CacheKey | None = None
    """What to keep it as for others, if it is to be kept."""

    @property
    def key(self) -> TrialKey:
        return TrialKey(self.position, self.trial)


@dataclass(frozen=True, slots=True)
class ScoredRecord:
    """A record with one score per rule: none when there is nothing to judge, None where a slow rule judges later."""

    record: Record
    scores: Sequence[RuleScore | None]
    primary: int = 0
    """The place of the primary rule among the scores."""

    def count_in(self, totals: Totals) -> None:
        """Add what stands in the tables once this is stored."""
        score = self.scores[self.primary] if self.scores else None
        totals.add_standing(
            self.record.outcome, score.value if score else None, score.passed if score else None
        )
        if self.record.saved is not None:
            totals.cache_hits += 1


@dataclass(frozen=True, slots=True)
class Subject:
    """A response that is judged after it was stored."""

    key: TrialKey
    case_id: str
    outcome: Outcome
    response: str
    """All of it, however long."""
    values: Mapping[str, Any]
    """What the environment says for this case and rule: ``target``, and what the rule's type names beside it."""
    run: str = ""
    """The run that it is of; empty while a version is verified."""
    attempt: int = 0


class Merge(Enum):
    """What becomes of an attempt when the trial has a result already."""

    SAME = "same"
    """It is the attempt that is held: it was sent twice."""
    FILE = "file"
    """The held one stays; this one is kept among the attempts, and its spend counts."""
    REPLACE = "replace"
    """It takes the place of the held one, which is kept among the attempts."""


def merge(
    *,
    held_final: bool,
    held_attempt: int,
    final: bool,
    attempt: int,
    held_cached: bool = False,
    cached: bool = False,
) -> Merge:
    """Which of two attempts counts.

    An outcome of the model's doing is final and the first one wins. Any other gives way to a final one, or to one of a
    higher attempt. Within an attempt an answer from the response cache is another one than what a call brought.
    """
    if (attempt, final, cached) == (held_attempt, held_final, held_cached):
        return Merge.SAME
    if held_final:
        return Merge.FILE
    if final or attempt > held_attempt:
        return Merge.REPLACE
    return Merge.FILE


@dataclass(slots=True)
class Totals:
    """What a batch adds to a run's progress. Negative where a result was replaced."""

    recorded: int = 0
    scored: int = 0
    passed: int = 0
    faults: int = 0
    calls: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_picousd: int = 0
    calls_of_unknown_cost: int = 0
    cache_hits: int = 0
    charges: dict[tuple[str, int], Amount] = field(default_factory=dict)
    """By lease: shard and attempt."""

    def add_standing(self, outcome: Outcome, value: float | None, passed: bool | None, sign: int = 1) -> None:
        """Count one row of the table of results in, or out; value and verdict are those of the primary rule."""
        self.recorded += sign
        if not outcome.final:
            self.faults += sign
        if value is not None:
            self.scored += sign
            if passed:
                self.passed += sign

    def add_spend(self, record: Record) -> None:
        """Count what an attempt used. Spend is never taken back."""
        if record.spend_counted:
            return
        self.calls += record.calls
        self.input_tokens += record.input_tokens or 0
        self.output_tokens += record.output_tokens or 0
        for call in record.failed_calls:
            self.input_tokens += call.get("input_tokens") or 0
            self.output_tokens += call.get("output_tokens") or 0
        known = record.known_picousd if record.cost_picousd is None else record.cost_picousd
        self.cost_picousd += known
        self.calls_of_unknown_cost += record.calls_of_unknown_cost
        if record.charge is not None:
            lease = (record.shard, record.attempt)
            self.charges[lease] = self.charges.get(lease, NOTHING).plus(record.charge)
