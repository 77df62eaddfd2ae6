"""Runs and shards as values, and every change of state that they can make. Nothing here waits.

::

    QUEUED ──leased──▶ RUNNING ──shards ended──▶ SCORING ──reported──▶ SUCCEEDED
       │                 │  ╲──paused──▶ PAUSED     │
       ├─────failed──────┴──▶ FAILED        │       │
       └──────────────cancelled─────────────┴───────┴──▶ CANCELLING ──reported──▶ CANCELLED

A shard goes PENDING ▶ QUEUED (rung) ▶ RUNNING (leased) ▶ DONE or ABANDONED, and from RUNNING back to PENDING when its
lease ends without result.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple, NewType

from benchgen.errors import FailedPrecondition, LeaseLost, NotFound

RunId = NewType("RunId", str)
RunnerId = NewType("RunnerId", str)
NOBODY = RunnerId("")
Pool = NewType("Pool", str)
"""Runs with the same pool share the permits of one model."""

MOST_FAULTS = 3
"""A shard whose lease ended in a fault this often is given up."""

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_NUMBER_DIGITS = 6


class RunState(StrEnum):
    """Where a run stands; see ``Run.State`` in the contract."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SCORING = "SCORING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLING = "CANCELLING"
    CANCELLED = "CANCELLED"
    PAUSED = "PAUSED"


class RunEvent(StrEnum):
    """What can happen to a run."""

    LEASED = "leased"
    """A shard was leased."""
    SHARDS_ENDED = "shards ended"
    """The last open shard is DONE or ABANDONED."""
    REPORTED = "reported"
    """The scorer has sealed the run and stored its report."""
    PAUSED = "paused"
    """The provider refuses for good."""
    FAILED = "failed"
    """It cannot be carried out."""
    CANCELLED = "cancelled"
    """Somebody asked to stop it."""


_TRANSITIONS: Mapping[RunEvent, Mapping[RunState, RunState]] = {
    RunEvent.LEASED: {RunState.QUEUED: RunState.RUNNING, RunState.RUNNING: RunState.RUNNING},
    RunEvent.SHARDS_ENDED: {
        RunState.RUNNING: RunState.SCORING,
        # Nothing is left to resume.
        RunState.PAUSED: RunState.SCORING,
        RunState.CANCELLING: RunState.CANCELLING,
        RunState.FAILED: RunState.FAILED,
    },
    RunEvent.REPORTED: {RunState.SCORING: RunState.SUCCEEDED, RunState.CANCELLING: RunState.CANCELLED},
    RunEvent.PAUSED: {RunState.RUNNING: RunState.PAUSED, RunState.PAUSED: RunState.PAUSED},
    RunEvent.FAILED: {RunState.QUEUED: RunState.FAILED, RunState.RUNNING: RunState.FAILED},
    RunEvent.CANCELLED: {
        RunState.QUEUED: RunState.CANCELLING,
        RunState.RUNNING: RunState.CANCELLING,
        RunState.SCORING: RunState.CANCELLING,
        RunState.PAUSED: RunState.CANCELLING,
        RunState.CANCELLING: RunState.CANCELLING,
        # What has ended stays as it is.
        RunState.SUCCEEDED: RunState.SUCCEEDED,
        RunState.FAILED: RunState.FAILED,
        RunState.CANCELLED: RunState.CANCELLED,
    },
}

ENDED = frozenset({RunState.SUCCEEDED, RunState.FAILED, RunState.CANCELLED})
LEASABLE = frozenset(_TRANSITIONS[RunEvent.LEASED])


def transition(state: RunState, event: RunEvent) -> RunState:
    """The state that follows; the same one where the event changes nothing.

    :raises FailedPrecondition: this cannot happen in that state.
    """
    following = _TRANSITIONS[event].get(state)
    if following is None:
        raise FailedPrecondition(f"a run that is {state} cannot be {event}")
    return following


class ShardState(StrEnum):
    """Where a shard stands."""

    PENDING = "PENDING"
    """Waits for room in the window."""
    QUEUED = "QUEUED"
    """In the window: a ring is out."""
    RUNNING = "RUNNING"
    """Leased."""
    DONE = "DONE"
    """Every trial is stored at the scorer."""
    ABANDONED = "ABANDONED"
    """Given up, with the reason."""


OPEN = frozenset({ShardState.PENDING, ShardState.QUEUED, ShardState.RUNNING})


class ShardId(NamedTuple):
    """A shard's name, written ``r7k2m9qd4x1c-000003``."""

    run: RunId
    number: int

    def __str__(self) -> str:
        return f"{self.run}-{self.number:0{_NUMBER_DIGITS}d}"

    @staticmethod
    def parse(text: str) -> ShardId:
        """:raises NotFound: no shard can have this name."""
        run, _, number = text.partition("-")
        if len(number) != _NUMBER_DIGITS or not (number.isascii() and number.isdigit()):
            raise NotFound(f"no shard {text[:80]!r}")
        return ShardId(RunId(run), int(number))


def new_run_id() -> RunId:
    """A name that no other run has: 60 random bits."""
    return RunId("r" + "".join(secrets.choice(_ALPHABET) for _ in range(12)))


class Subject(StrEnum):
    """Who answers."""

    ENDPOINT = "endpoint"
    BUILTIN = "builtin"
    """A runner by itself, or the simulator."""
    LOADED = "loaded"
    """The scorer, which loads what is there: predictions, reference solutions, the empty answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """A run as it is stored. ``spec`` is a serialised ``RunSpec``."""

    id: RunId
    state: RunState
    state_message: str
    epoch: int
    priority: int
    spec: bytes
    pool: Pool
    planned: int
    shards: int
    shards_open: int
    created_at: datetime
    started_at: datetime | None
    worked_until: datetime | None
    ended_at: datetime | None

    @property
    def seconds(self) -> float:
        """From the first lease to the end of the last shard."""
        if self.started_at is None or self.worked_until is None:
            return 0.0
        return max(0.0, (self.worked_until - self.started_at).total_seconds())


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A shard and what of its run decides about a lease, read under the pool's lock."""

    id: ShardId
    first: int
    count: int
    state: ShardState
    attempt: int
    faults: int
    epoch: int
    runner: RunnerId
    request_id: str
    remaining: float
    """Until the lease runs out, seconds; not above 0 when it has, or when there is none."""
    run_state: RunState
    run_epoch: int
    trials: int
    selected: tuple[int, ...] | None
    """Dataset positions of the cases that the trials are of, in a sample."""

    def held_by(self, runner: RunnerId, attempt: int) -> bool:
        """Whether this runner has the shard, or had it last and nobody took it since: a late word of it counts."""
        return self.attempt == attempt and self.runner == runner and self.state in OPEN


class LeaseKind(StrEnum):
    """What a request for a lease gets."""

    NEW = "new"
    AGAIN = "again"
    """The answer to the same request was lost: the same lease once more."""


def lease(shard: LeaseView, runner: RunnerId, request_id: str) -> LeaseKind:
    """Decide on a request for a shard.

    :raises LeaseLost: it cannot be had.
    """
    if shard.run_state not in LEASABLE:
        raise LeaseLost(f"the run is {shard.run_state}")
    same = shard.request_id == request_id and shard.epoch == shard.run_epoch
    if same and shard.held_by(runner, shard.attempt):
        return LeaseKind.AGAIN
    if shard.state not in (ShardState.PENDING, ShardState.QUEUED):
        raise LeaseLost(f"the shard is {shard.state}")
    return LeaseKind.NEW


class Verdict(StrEnum):
    """What a holder is told when it renews."""

    GO_ON = "GO_ON"
    STOP = "STOP"
    LOST = "LOST"


def renew(shard: LeaseView, runner: RunnerId, attempt: int) -> Verdict:
    """Decide on a renewal. A late one is good as long as nobody else has the shard."""
    if not shard.held_by(runner, attempt):
        return Verdict.LOST
    if shard.run_state not in LEASABLE or shard.epoch != shard.run_epoch:
        return Verdict.STOP
    return Verdict.GO_ON


def complete(shard: LeaseView, runner: RunnerId, attempt: int) -> bool:
    """Decide on the word that every trial is stored.

    :returns: whether that is new.
    :raises LeaseLost: somebody else has the shard, or it was given up.
    """
    if shard.state is ShardState.DONE and shard.attempt == attempt and shard.runner == runner:
        return False
    if not shard.held_by(runner, attempt):
        raise LeaseLost
    return True


def after_lease(run_state: RunState, faults: int) -> ShardState:
    """Where a shard goes whose lease ended without result, having had so many faults."""
    if run_state in (RunState.CANCELLING, RunState.FAILED) or faults >= MOST_FAULTS:
        return ShardState.ABANDONED
    return ShardState.PENDING
