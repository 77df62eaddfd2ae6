"""Runs and shards as values, and every change of state that they can make. Nothing here waits.

::

    QUEUED ──leased──▶ RUNNING ──shards ended──▶ SCORING ──reported──▶ SUCCEEDED
       │                 │  ╲──paused──▶ PAUSED     │
       ├─────failed──────┴──▶ FAILED        │       │
       └──────────────cancelled─────────────┴───────┴──▶ CANCELLING ──reported──▶ CANCELLED

    PAUSED, SUCCEEDED, FAILED, CANCELLED ──resumed──▶ RUNNING   (──requeued──▶ QUEUED, if nothing was ever leased)
    SUCCEEDED, FAILED, CANCELLED ──removed──▶ gone

A shard goes PENDING ▶ QUEUED (rung) ▶ RUNNING (leased) ▶ DONE or ABANDONED, and from RUNNING back to PENDING when its
lease ends without result; after two faults it is split there into shards of fewer trials. When its run is resumed, one
with trials that have no final result goes back to PENDING.
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

FAULTS_BEFORE_SPLIT = 2
"""A shard of several trials whose lease ended in a fault this often is split."""
MOST_FAULTS = 3
"""A single trial whose lease ended in a fault this often is given up."""
ATTEMPTS_EXCUSED = 20
"""From this attempt on it is a fault also when a lease runs out under a runner that lives."""
_MOST_PARTS = 16

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
_NUMBER_DIGITS = 6
#: Numbers are int4 in the tables.
_HIGHEST_NUMBER = 2**31 - 1
_MOST_DIGITS = len(str(_HIGHEST_NUMBER))


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
    """Somebody asked to stop it for now, the provider refuses for good, or a budget is used up."""
    RESUMED = "resumed"
    """Somebody asked to run what is missing."""
    REQUEUED = "requeued"
    """The same, of a run that nothing was ever leased of."""
    FAILED = "failed"
    """It cannot be carried out."""
    CANCELLED = "cancelled"
    """Somebody asked to stop it."""


#: There is nothing to resume.
_UNDER_WAY = {state: state for state in (RunState.QUEUED, RunState.RUNNING, RunState.SCORING)}

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
    RunEvent.PAUSED: {
        RunState.QUEUED: RunState.PAUSED,
        RunState.RUNNING: RunState.PAUSED,
        RunState.PAUSED: RunState.PAUSED,
    },
    RunEvent.RESUMED: {
        RunState.PAUSED: RunState.RUNNING,
        RunState.SUCCEEDED: RunState.RUNNING,
        RunState.FAILED: RunState.RUNNING,
        RunState.CANCELLED: RunState.RUNNING,
        **_UNDER_WAY,
    },
    RunEvent.REQUEUED: {
        RunState.PAUSED: RunState.QUEUED,
        RunState.SUCCEEDED: RunState.QUEUED,
        RunState.FAILED: RunState.QUEUED,
        RunState.CANCELLED: RunState.QUEUED,
        **_UNDER_WAY,
    },
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
ENDS_EPOCH = frozenset({RunEvent.CANCELLED, RunEvent.FAILED, RunEvent.RESUMED, RunEvent.REQUEUED})
"""After these, leases that were given before are good no more."""

_ADVICE: Mapping[tuple[RunEvent, RunState], str] = {
    (RunEvent.RESUMED, RunState.CANCELLING): "wait until it is cancelled, then resume it",
    (RunEvent.REQUEUED, RunState.CANCELLING): "wait until it is cancelled, then resume it",
    (RunEvent.PAUSED, RunState.SCORING): "its trials have all ended",
    (RunEvent.PAUSED, RunState.SUCCEEDED): "it has ended",
    (RunEvent.PAUSED, RunState.FAILED): "it has ended",
    (RunEvent.PAUSED, RunState.CANCELLED): "it has ended",
}


def transition(state: RunState, event: RunEvent) -> RunState:
    """The state that follows; the same one where the event changes nothing.

    :raises FailedPrecondition: this cannot happen in that state.
    """
    following = _TRANSITIONS[event].get(state)
    if following is None:
        advice = _ADVICE.get((event, state))
        raise FailedPrecondition(
            f"a run that is {state} cannot be {event}" + (f": {advice}" if advice else "")
        )
    return following


def check_removable(state: RunState) -> None:
    """:raises FailedPrecondition: a run in this state cannot be removed."""
    if state not in ENDED:
        advice = "wait until it is cancelled" if state is RunState.CANCELLING else "cancel it first"
        raise FailedPrecondition(f"a run that is {state} cannot be removed: {advice}")


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


class ShardEvent(StrEnum):
    """What can happen to a shard; each is one statement of ``queries.sql``, by compare-and-set."""

    RUNG = "rung"
    """It entered the window."""
    LEASED = "leased"
    """A runner took it: attempt + 1."""
    KEPT = "kept"
    """Its holder renewed, be it late: nobody else had taken it."""
    RETURNED = "returned"
    """Its lease ended without result; it waits, whole or in parts."""
    WITHDRAWN = "withdrawn"
    """Its run was paused: it leaves the window."""
    COMPLETED = "completed"
    """Its holder says that every trial is stored."""
    GIVEN_UP = "given up"
    """It had too many faults, or its run was stopped for good."""
    REOPENED = "reopened"
    """Its run was resumed, and it has trials without a final result."""


SHARD_TRANSITIONS: Mapping[ShardEvent, Mapping[ShardState, ShardState]] = {
    ShardEvent.RUNG: {ShardState.PENDING: ShardState.QUEUED},
    ShardEvent.LEASED: {ShardState.PENDING: ShardState.RUNNING, ShardState.QUEUED: ShardState.RUNNING},
    ShardEvent.KEPT: {
        ShardState.PENDING: ShardState.RUNNING,
        ShardState.QUEUED: ShardState.RUNNING,
        ShardState.RUNNING: ShardState.RUNNING,
    },
    ShardEvent.RETURNED: {ShardState.RUNNING: ShardState.PENDING},
    ShardEvent.WITHDRAWN: {ShardState.QUEUED: ShardState.PENDING},
    ShardEvent.COMPLETED: {
        ShardState.PENDING: ShardState.DONE,
        ShardState.QUEUED: ShardState.DONE,
        ShardState.RUNNING: ShardState.DONE,
    },
    ShardEvent.GIVEN_UP: {
        ShardState.PENDING: ShardState.ABANDONED,
        ShardState.QUEUED: ShardState.ABANDONED,
        ShardState.RUNNING: ShardState.ABANDONED,
    },
    ShardEvent.REOPENED: {ShardState.DONE: ShardState.PENDING, ShardState.ABANDONED: ShardState.PENDING},
}
"""Every change of a shard's state. A test compares the statements with it, and every test that runs on a database."""


class ShardId(NamedTuple):
    """A shard's name, written ``r7k2m9qd4x1c-000003``, with more digits from a million on."""

    run: RunId
    number: int

    def __str__(self) -> str:
        return f"{self.run}-{self.number:0{_NUMBER_DIGITS}d}"

    @staticmethod
    def parse(text: str) -> ShardId:
        """:raises NotFound: no shard can have this name."""
        run, _, digits = text.partition("-")
        if _NUMBER_DIGITS <= len(digits) <= _MOST_DIGITS and digits.isascii() and digits.isdigit():
            shard = ShardId(RunId(run), int(digits))
            if shard.number <= _HIGHEST_NUMBER and str(shard) == text:
                return shard
        raise NotFound(f"no shard {text[:80]!r}")


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
    worked_seconds: float
    working_since: datetime | None
    worked_until: datetime | None
    ended_at: datetime | None
    budgeted: bool = False
    """Whether it has a budget of its own."""

    @property
    def seconds(self) -> float:
        """From the first lease to the end of the last shard, without the time in which the run stood still."""
        if self.working_since is None or self.worked_until is None:
            return self.worked_seconds
        return self.worked_seconds + max(0.0, (self.worked_until - self.working_since).total_seconds())


class Company(NamedTuple):
    """What else a runner holds that has had faults: how many shards, and the most faults of a single trial."""

    suspects: int = 0
    most_faults: int = 0


NO_COMPANY = Company()


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
    company: Company = NO_COMPANY
    """Of the runner that asks."""

    @property
    def compromised(self) -> bool:
        """Whether a fault would not tell which shard brought it about.

        Before a trial is given up for killing its runners, it is tried with none beside it that may be to blame. A
        runner that dies takes all that it holds with it: without this, trials that share one with it would be given
        up too.
        """
        last_chance = self.count == 1 and self.faults == MOST_FAULTS - 1
        if last_chance:
            return self.company.suspects > 0
        return self.faults > 0 and self.company.most_faults == MOST_FAULTS - 1

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
    if shard.state not in SHARD_TRANSITIONS[ShardEvent.LEASED]:
        raise LeaseLost(f"the shard is {shard.state}")
    if shard.compromised:
        raise LeaseLost("it has had faults, as has what this runner holds; it is rung for again")
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


def extends(shard: LeaseView, verdict: Verdict) -> bool:
    """Whether a renewal with this verdict lets the lease go on: also to store what came back before a stop."""
    draining = shard.state is ShardState.RUNNING and shard.run_state in (RunState.CANCELLING, RunState.PAUSED)
    return verdict is Verdict.GO_ON or (verdict is Verdict.STOP and draining)


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


def faults_after_expiry(run_state: RunState, faults: int, *, attempt: int, alive: bool) -> int:
    """How many faults a shard has had when its lease ran out.

    A holder of a run that stands is right to let it. One that lives is slow, or was not heard: no trial has killed it.
    Only after many attempts that ended so is something wrong with the shard.
    """
    excused = run_state not in LEASABLE or (alive and attempt < ATTEMPTS_EXCUSED)
    return faults + int(not excused)


class Following(StrEnum):
    """What becomes of a shard whose lease ended without result."""

    WAIT = "wait"
    SPLIT = "split"
    """It waits in parts, so that a trial that does harm ends up alone."""
    GIVE_UP = "give up"


def after_lease(run_state: RunState, faults: int, count: int) -> Following:
    """What becomes of a shard of so many trials that has had so many faults."""
    if run_state in (RunState.CANCELLING, RunState.FAILED):
        return Following.GIVE_UP
    if count > 1:
        return Following.SPLIT if faults >= FAULTS_BEFORE_SPLIT else Following.WAIT
    return Following.GIVE_UP if faults >= MOST_FAULTS else Following.WAIT


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a shard that is split, and how many faults it starts with.

    Several trials stay under suspicion: one more fault splits them further. A single one starts anew.
    """

    first: int
    count: int
    faults: int


def split(first: int, count: int) -> list[Part]:
    """The parts of a shard, of the same size but the last, in order."""
    size = -(-count // _MOST_PARTS)
    faults = FAULTS_BEFORE_SPLIT - 1 if size > 1 else 0
    return [
        Part(start, min(size, first + count - start), faults if first + count - start > 1 else 0)
        for start in range(first, first + count, size)
    ]
