"""Permits: the sum never passes the cap, shares are fair, and in the end everything is dealt."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.hub.runs.dealing import Holder, Settlement, Table, deal, leave, settle
from services.hub.runs.domain import RunnerId

CAPS = st.integers(1, 300)
WANTS = st.lists(st.integers(1, 200), min_size=1, max_size=20)


@given(CAPS, WANTS, st.integers(0, 20), st.integers(0, 1_000))
def test_no_deal_passes_the_cap(cap: int, wants: list[int], kept: int, turn: int) -> None:
    dealt = deal(cap, wants, kept=kept, turn=turn)
    assert sum(dealt) <= cap
    assert all(0 <= got <= want for got, want in zip(dealt, wants, strict=True))


@given(CAPS, WANTS, st.integers(0, 20))
def test_everyone_gets_one_where_there_are_enough(cap: int, wants: list[int], kept: int) -> None:
    if cap >= len(wants):
        assert min(deal(cap, wants, kept=kept)) >= 1


@given(CAPS, st.integers(1, 20), st.integers(0, 20))
def test_shares_differ_by_one_at_most(cap: int, holders: int, kept: int) -> None:
    dealt = deal(cap, [cap] * holders, kept=kept)
    assert max(dealt) - min(dealt) <= 1


@given(CAPS, WANTS)
def test_what_is_wanted_is_dealt_to_the_last(cap: int, wants: list[int]) -> None:
    assert sum(deal(cap, wants)) == min(cap, sum(wants))


@given(CAPS, WANTS)
def test_who_gets_less_than_another_wanted_no_more(cap: int, wants: list[int]) -> None:
    if cap < len(wants):
        return
    dealt = deal(cap, wants)
    assert all(got == want or got >= max(dealt) - 1 for got, want in zip(dealt, wants, strict=True))


@given(st.integers(1, 8), st.integers(1, 20))
def test_holders_take_turns_where_there_are_too_few(cap: int, holders: int) -> None:
    if cap < holders:
        turns = [deal(cap, [cap] * holders, turn=turn) for turn in range(holders)]
        assert all(sum(turn) == cap for turn in turns)
        assert all(sum(turn[index] for turn in turns) >= 1 for index in range(holders))


def test_a_share_is_kept_free_for_each_runner_that_has_something_to_take() -> None:
    table = Table(cap=64, holders=(), idle=3, waiting=1, turn=0)
    assert settle(table, RunnerId("a"), 0, in_use=None).permits == 32


def test_a_number_that_was_not_heard_yet_counts() -> None:
    # Told 20; then the share fell to 10. A report of 5 from before says nothing about the 20.
    holders = (Holder(RunnerId("a"), 20, 20, 0), Holder(RunnerId("b"), 0, 0, 0))
    settled = settle(Table(20, holders, 0, 0, 0), RunnerId("a"), 0, in_use=5)
    assert settled.own == Holder(RunnerId("a"), 20, 10, 0)
    again = settle(Table(20, (settled.own, holders[1]), 0, 0, 0), RunnerId("a"), 0, in_use=5)
    assert again.own == Holder(RunnerId("a"), 10, 10, 0)
    assert again.ring == (RunnerId("b"),)


@dataclass
class Runner:
    """A runner as it should behave: starts calls up to what it was told last, and says what it has."""

    leases: int = 0
    permits: int = 0
    in_flight: int = 0

    @property
    def in_use(self) -> int:
        return max(self.permits, self.in_flight)


@dataclass
class Hub:
    """The hub's side: rows and nothing else."""

    cap: int
    rows: dict[RunnerId, Holder] = field(default_factory=dict)

    def table(self, turn: int = 0) -> Table:
        return Table(self.cap, tuple(self.rows.values()), 0, 0, turn)

    def save(self, runner: RunnerId, settled: Settlement) -> int:
        if settled.own is None:
            self.rows.pop(runner, None)
        else:
            self.rows[runner] = settled.own
        return settled.permits


NAMES = [RunnerId(name) for name in "abcde"]
RUNNERS = st.sampled_from(NAMES)


class Dealing(RuleBasedStateMachine):
    """Runners that come, work, and go in any order."""

    @initialize(cap=st.integers(1, 40))
    def begin(self, cap: int) -> None:
        self.hub = Hub(cap)
        self.runners = {name: Runner() for name in NAMES}

    @rule(name=RUNNERS, turn=st.integers(0, 9))
    def lease(self, name: RunnerId, turn: int) -> None:
        runner = self.runners[name]
        runner.leases += 1
        runner.permits = self.hub.save(name, settle(self.hub.table(turn), name, 0, in_use=None))

    @rule(name=RUNNERS, turn=st.integers(0, 9))
    def renew(self, name: RunnerId, turn: int) -> None:
        runner = self.runners[name]
        if runner.leases:
            settled = settle(self.hub.table(turn), name, 0, in_use=runner.in_use)
            runner.permits = self.hub.save(name, settled)

    @rule(name=RUNNERS)
    def complete(self, name: RunnerId) -> None:
        runner = self.runners[name]
        if not runner.leases:
            return
        runner.leases -= 1
        if runner.leases:
            settled = settle(self.hub.table(), name, 0, in_use=runner.in_use)
        else:
            # Its last trials are stored, so nothing is in flight.
            runner.in_flight = 0
            settled = leave(self.hub.table(), name)
        runner.permits = self.hub.save(name, settled)

    @rule(name=RUNNERS, calls=st.integers(1, 40))
    def start_calls(self, name: RunnerId, calls: int) -> None:
        runner = self.runners[name]
        runner.in_flight = max(runner.in_flight, min(runner.permits, runner.in_flight + calls))

    @rule(name=RUNNERS, calls=st.integers(1, 40))
    def end_calls(self, name: RunnerId, calls: int) -> None:
        runner = self.runners[name]
        runner.in_flight = max(0, runner.in_flight - calls)

    @rule()
    def everyone_hears(self) -> None:
        """All calls end and rings are answered: then everything is dealt, and fairly."""
        holders = [name for name, runner in self.runners.items() if runner.leases]
        for name in [*holders, *holders, *holders]:
            self.runners[name].in_flight = 0
            self.renew(name, 0)
        told = [self.runners[name].permits for name in holders]
        if holders:
            assert sum(told) == self.hub.cap
            assert max(told) - min(told) <= 1

    @invariant()
    def the_cap_holds(self) -> None:
        assert sum(row.granted for row in self.hub.rows.values()) <= self.hub.cap
        assert sum(runner.in_flight for runner in self.runners.values()) <= self.hub.cap

    @invariant()
    def what_is_granted_covers_what_is_used(self) -> None:
        for name, runner in self.runners.items():
            row = self.hub.rows.get(name)
            assert runner.in_use <= (row.granted if row is not None else 0)


Dealing.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestDealing = Dealing.TestCase
