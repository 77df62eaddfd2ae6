"""The state machine of runs, and what is decided about a lease."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import FailedPrecondition, LeaseLost, NotFound
from services.hub.runs.domain import (
    ATTEMPTS_EXCUSED,
    ENDED,
    ENDS_EPOCH,
    FAULTS_BEFORE_SPLIT,
    LEASABLE,
    MOST_FAULTS,
    Company,
    Following,
    LeaseKind,
    LeaseView,
    RunEvent,
    RunId,
    RunnerId,
    RunState,
    ShardId,
    ShardState,
    Verdict,
    after_lease,
    check_removable,
    complete,
    extends,
    faults_after_expiry,
    lease,
    new_run_id,
    renew,
    split,
    transition,
)

A, B = RunnerId("a"), RunnerId("b")
STATES = st.sampled_from(RunState)
EVENTS = st.sampled_from(RunEvent)

VIEW = LeaseView(
    id=ShardId(RunId("r7k2m9qd4x1c"), 3),
    first=768,
    count=256,
    state=ShardState.RUNNING,
    attempt=2,
    faults=0,
    epoch=1,
    runner=A,
    request_id="one",
    remaining=20.0,
    run_state=RunState.RUNNING,
    run_epoch=1,
    trials=1,
    selected=None,
)


def follow(state: RunState, events: list[RunEvent]) -> list[RunState]:
    """The states that a run goes through; events that cannot happen are left out."""
    states = [state]
    for event in events:
        try:
            states.append(transition(states[-1], event))
        except FailedPrecondition:
            continue
    return states


RESUMES = frozenset({RunEvent.RESUMED, RunEvent.REQUEUED})


@given(st.lists(EVENTS.filter(lambda event: event not in RESUMES), max_size=30))
def test_an_end_is_final_unless_the_run_is_resumed(events: list[RunEvent]) -> None:
    states = follow(RunState.QUEUED, events)
    ended = next((index for index, state in enumerate(states) if state in ENDED), len(states))
    assert len(set(states[ended:])) <= 1


@given(STATES, st.sampled_from(sorted(RESUMES)))
def test_resuming_starts_what_stands_and_leaves_the_rest(state: RunState, event: RunEvent) -> None:
    begun = RunState.RUNNING if event is RunEvent.RESUMED else RunState.QUEUED
    if state is RunState.CANCELLING:
        with pytest.raises(FailedPrecondition, match="wait until it is cancelled, then resume it"):
            transition(state, event)
    else:
        stands = state is RunState.PAUSED or state in ENDED
        assert transition(state, event) is (begun if stands else state)
        assert transition(transition(state, event), event) is transition(state, event)


@given(STATES)
def test_only_what_has_shards_to_run_can_be_paused(state: RunState) -> None:
    if state in (RunState.QUEUED, RunState.RUNNING, RunState.PAUSED):
        assert transition(state, RunEvent.PAUSED) is RunState.PAUSED
        assert transition(RunState.PAUSED, RunEvent.RESUMED) in LEASABLE
    else:
        with pytest.raises(FailedPrecondition):
            transition(state, RunEvent.PAUSED)


@given(st.lists(EVENTS, max_size=30))
def test_no_state_is_a_trap(events: list[RunEvent]) -> None:
    """Whatever happened: from every state the run can be brought to an end, and from there on again."""
    state = follow(RunState.QUEUED, events)[-1]
    ended = follow(state, [RunEvent.CANCELLED, RunEvent.REPORTED])[-1]
    assert ended in ENDED
    check_removable(ended)
    assert transition(ended, RunEvent.RESUMED) is RunState.RUNNING


@given(STATES, EVENTS)
def test_what_takes_leases_back_ends_the_epoch(state: RunState, event: RunEvent) -> None:
    """A run that can be leased of again, or for the last time, is in a new epoch: no lease from before counts."""
    try:
        following = transition(state, event)
    except FailedPrecondition:
        return
    leasable_again = following in LEASABLE and state not in LEASABLE
    given_up = following in (RunState.CANCELLING, RunState.FAILED) and state != following
    if event is RunEvent.SHARDS_ENDED:
        return
    assert (event in ENDS_EPOCH) >= (leasable_again or given_up)


@given(STATES)
def test_only_what_has_ended_can_be_removed(state: RunState) -> None:
    if state in ENDED:
        check_removable(state)
    else:
        advice = "wait until it is" if state is RunState.CANCELLING else "cancel it first"
        with pytest.raises(FailedPrecondition, match=advice):
            check_removable(state)


@given(STATES, st.integers(0, 5))
def test_a_lease_that_runs_out_counts_while_the_run_goes_on(state: RunState, faults: int) -> None:
    found = faults_after_expiry(state, faults, attempt=1, alive=False) - faults
    assert found == (state in (RunState.QUEUED, RunState.RUNNING))


@given(st.integers(0, 5))
def test_a_runner_that_lives_was_not_killed_by_a_trial(faults: int) -> None:
    assert faults_after_expiry(RunState.RUNNING, faults, attempt=3, alive=True) == faults
    assert faults_after_expiry(RunState.RUNNING, faults, attempt=ATTEMPTS_EXCUSED, alive=True) == faults + 1


@given(STATES, EVENTS)
def test_an_event_that_happened_may_happen_again(state: RunState, event: RunEvent) -> None:
    try:
        following = transition(state, event)
    except FailedPrecondition:
        return
    if event is not RunEvent.REPORTED and event is not RunEvent.SHARDS_ENDED and event is not RunEvent.FAILED:
        assert transition(following, event) is following


@given(STATES)
def test_cancelling_is_always_possible_and_never_brings_back(state: RunState) -> None:
    following = transition(state, RunEvent.CANCELLED)
    assert following is (state if state in ENDED else RunState.CANCELLING)


@given(STATES)
def test_every_state_but_an_end_leads_to_one(state: RunState) -> None:
    assert transition(transition(state, RunEvent.CANCELLED), RunEvent.CANCELLED) in {
        RunState.CANCELLING,
        *ENDED,
    }
    assert transition(RunState.CANCELLING, RunEvent.REPORTED) is RunState.CANCELLED


def test_the_way_of_a_run_without_trouble() -> None:
    events = [RunEvent.LEASED, RunEvent.LEASED, RunEvent.SHARDS_ENDED, RunEvent.REPORTED]
    assert follow(RunState.QUEUED, events) == [
        RunState.QUEUED,
        RunState.RUNNING,
        RunState.RUNNING,
        RunState.SCORING,
        RunState.SUCCEEDED,
    ]


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.CANCELLING, RunState.SCORING, *sorted(ENDED)])
def test_nothing_is_leased_of_a_run_that_stands(state: RunState) -> None:
    with pytest.raises(LeaseLost):
        lease(replace(VIEW, state=ShardState.QUEUED, run_state=state), A, "two")


@pytest.mark.parametrize("state", [ShardState.PENDING, ShardState.QUEUED])
def test_what_waits_can_be_leased(state: ShardState) -> None:
    assert lease(replace(VIEW, state=state), B, "two") is LeaseKind.NEW


@pytest.mark.parametrize("state", [ShardState.RUNNING, ShardState.DONE, ShardState.ABANDONED])
def test_what_does_not_wait_cannot(state: ShardState) -> None:
    with pytest.raises(LeaseLost):
        lease(replace(VIEW, state=state), B, "two")


@pytest.mark.parametrize("state", [ShardState.PENDING, ShardState.QUEUED, ShardState.RUNNING])
def test_the_same_request_gets_the_same_lease(state: ShardState) -> None:
    assert lease(replace(VIEW, state=state), A, "one") is LeaseKind.AGAIN


def test_a_request_of_an_older_epoch_is_a_new_one() -> None:
    assert lease(replace(VIEW, state=ShardState.QUEUED, run_epoch=2), A, "one") is LeaseKind.NEW


@given(
    st.sampled_from(ShardState),
    STATES,
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([A, B]),
)
def test_a_renewal(
    state: ShardState, run_state: RunState, attempt: int, epoch: int, runner: RunnerId
) -> None:
    verdict = renew(replace(VIEW, state=state, run_state=run_state, run_epoch=epoch), runner, attempt)
    still_its_own = (
        attempt == VIEW.attempt and runner == A and state not in (ShardState.DONE, ShardState.ABANDONED)
    )
    wanted = run_state in (RunState.QUEUED, RunState.RUNNING) and epoch == VIEW.epoch
    assert verdict is ((Verdict.GO_ON if wanted else Verdict.STOP) if still_its_own else Verdict.LOST)


def test_completing_twice_is_the_same_as_once() -> None:
    assert complete(VIEW, A, 2)
    assert not complete(replace(VIEW, state=ShardState.DONE), A, 2)


def test_a_late_completion_counts_while_nobody_else_has_the_shard() -> None:
    assert complete(replace(VIEW, state=ShardState.PENDING), A, 2)
    with pytest.raises(LeaseLost):
        complete(replace(VIEW, attempt=3, runner=B), A, 2)
    with pytest.raises(LeaseLost):
        complete(replace(VIEW, state=ShardState.ABANDONED), A, 2)


@pytest.mark.parametrize(
    ("faults", "count", "company", "leased"),
    [
        # A trial that has one chance left is tried without others that may be to blame ...
        (2, 1, Company(), True),
        (2, 1, Company(suspects=1, most_faults=1), False),
        # ... and nobody joins it who may be.
        (1, 16, Company(suspects=1, most_faults=2), False),
        (0, 16, Company(suspects=1, most_faults=2), True),
        (1, 16, Company(suspects=3, most_faults=1), True),
    ],
)
def test_a_last_chance_is_given_alone(faults: int, count: int, company: Company, leased: bool) -> None:
    shard = replace(VIEW, state=ShardState.QUEUED, faults=faults, count=count, company=company)
    if leased:
        assert lease(shard, B, "new") is LeaseKind.NEW
    else:
        with pytest.raises(LeaseLost):
            lease(shard, B, "new")


@given(STATES, st.integers(0, 5), st.integers(1, 256))
def test_what_becomes_of_a_shard_after_faults(state: RunState, faults: int, count: int) -> None:
    over = state in (RunState.CANCELLING, RunState.FAILED) or (count == 1 and faults >= MOST_FAULTS)
    parted = count > 1 and faults >= FAULTS_BEFORE_SPLIT
    expected = Following.GIVE_UP if over else Following.SPLIT if parted else Following.WAIT
    assert after_lease(state, faults, count) is expected


@given(st.integers(0, 10_000_000), st.integers(2, 256))
def test_the_parts_of_a_shard_are_all_of_it(first: int, count: int) -> None:
    parts = split(first, count)
    assert len(parts) > 1
    assert [part.first for part in parts] == [first, *(part.first + part.count for part in parts[:-1])]
    assert sum(part.count for part in parts) == count
    for part in parts:
        # One more fault splits what holds several, and a single one has all its chances.
        assert part.faults == (FAULTS_BEFORE_SPLIT - 1 if part.count > 1 else 0)


def test_a_trial_that_does_harm_is_alone_after_a_few_faults() -> None:
    faults, count = 0, 256
    for _ in range(3):
        while after_lease(RunState.RUNNING, faults, count) is Following.WAIT:
            faults += 1
        if count > 1:
            part = split(0, count)[0]
            count, faults = part.count, part.faults
    assert count == 1


@given(st.integers(0, 2**31 - 1) | st.integers(999_990, 1_000_010))
def test_a_shard_id_is_read_as_it_is_written(number: int) -> None:
    shard = ShardId(new_run_id(), number)
    assert ShardId.parse(str(shard)) == shard


@pytest.mark.parametrize(
    "text",
    [
        "",
        "r7k2m9qd4x1c",
        "r7k2m9qd4x1c-3",
        "r7k2m9qd4x1c-00000x",
        "r-0-000001",
        "r-٠٠٠٠٠١",
        "r-0000001",
        "r-2147483648",
        "r-99999999999999999999",
    ],
)
def test_other_texts_name_no_shard(text: str) -> None:
    with pytest.raises(NotFound):
        ShardId.parse(text)


@given(STATES, st.sampled_from(ShardState))
def test_a_renewal_keeps_what_goes_on_and_what_is_wound_up(run_state: RunState, state: ShardState) -> None:
    view = replace(VIEW, run_state=run_state, state=state)
    verdict = renew(view, A, 2)
    kept = extends(view, verdict)
    assert kept >= (verdict is Verdict.GO_ON)
    if kept and verdict is not Verdict.GO_ON:
        assert verdict is Verdict.STOP
        assert state is ShardState.RUNNING
        assert run_state in (RunState.CANCELLING, RunState.PAUSED)
    assert not extends(replace(view, runner=B), renew(replace(view, runner=B), A, 2))
