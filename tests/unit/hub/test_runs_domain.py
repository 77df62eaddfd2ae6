"""The state machine of runs, and what is decided about a lease."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import FailedPrecondition, LeaseLost, NotFound
from services.hub.runs.domain import (
    ENDED,
    MOST_FAULTS,
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
    complete,
    lease,
    new_run_id,
    renew,
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


@given(st.lists(EVENTS, max_size=30))
def test_an_end_is_final(events: list[RunEvent]) -> None:
    states = follow(RunState.QUEUED, events)
    ended = next((index for index, state in enumerate(states) if state in ENDED), len(states))
    assert len(set(states[ended:])) <= 1


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


@pytest.mark.parametrize("state", [RunState.PAUSED, RunState.CANCELLING, RunState.SCORING, *ENDED])
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


@given(STATES, st.integers(0, 5))
def test_a_shard_is_given_up_after_faults_or_with_its_run(state: RunState, faults: int) -> None:
    over = state in (RunState.CANCELLING, RunState.FAILED) or faults >= MOST_FAULTS
    assert after_lease(state, faults) is (ShardState.ABANDONED if over else ShardState.PENDING)


@given(st.integers(0, 999_999))
def test_a_shard_id_is_read_as_it_is_written(number: int) -> None:
    shard = ShardId(new_run_id(), number)
    assert ShardId.parse(str(shard)) == shard


@pytest.mark.parametrize(
    "text", ["", "r7k2m9qd4x1c", "r7k2m9qd4x1c-3", "r7k2m9qd4x1c-00000x", "r-0-000001", "r-٠٠٠٠٠١"]
)
def test_other_texts_name_no_shard(text: str) -> None:
    with pytest.raises(NotFound):
        ShardId.parse(text)
