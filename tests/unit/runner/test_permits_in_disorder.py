"""Permits between the real functions of both sides, whatever order requests and answers take: the cap holds."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.hub.runs.dealing import Holder, Table, settle
from services.hub.runs.domain import RunnerId
from services.runner.lanes import Lane

NAMES = [RunnerId(name) for name in "ab"]
RUNNERS = st.sampled_from(NAMES)
PLACES = st.integers(0, 5)


@dataclass
class Side:
    """A runner: its lane, what is on its way from it, and to it."""

    lane: Lane = field(default_factory=lambda: Lane("m"))
    in_flight: int = 0
    reports: list[tuple[int, int]] = field(default_factory=list)
    answers: list[tuple[int, int]] = field(default_factory=list)

    @property
    def in_use(self) -> int:
        return max(self.lane.permits_in_use, self.in_flight)


class Disorder(RuleBasedStateMachine):
    """Leases and renewals at once; each is processed and each answer arrives whenever it likes, or never."""

    @initialize(cap=st.integers(1, 6))
    def begin(self, cap: int) -> None:
        self.cap = cap
        self.rows: dict[RunnerId, Holder] = {}
        self.versions: dict[RunnerId, int] = {}
        self.version = 0
        self.sides = {name: Side() for name in NAMES}

    def _settle(self, name: RunnerId, turn: int, report: tuple[int, int] | None) -> None:
        """As ``Leases`` does it."""
        table = Table(self.cap, tuple(self.rows.values()), 0, 0, turn)
        in_use, version = report or (None, 0)
        heard = version in (0, self.versions.get(name, 0))
        settled = settle(table, name, 0, in_use=in_use, heard=heard)
        assert settled.own is not None
        if settled.changed:
            self.version += 1
            self.versions[name] = self.version
        self.rows[name] = settled.own
        self.sides[name].answers.append((settled.permits, self.versions[name]))

    @rule(name=RUNNERS, turn=st.integers(0, 5))
    def lease(self, name: RunnerId, turn: int) -> None:
        self._settle(name, turn, None)

    @rule(name=RUNNERS)
    def report(self, name: RunnerId) -> None:
        side = self.sides[name]
        if side.lane.permits_version:
            side.reports.append((side.in_use, side.lane.permits_version))

    @rule(name=RUNNERS, turn=st.integers(0, 5), place=PLACES)
    def process(self, name: RunnerId, turn: int, place: int) -> None:
        side = self.sides[name]
        if side.reports:
            self._settle(name, turn, side.reports.pop(place % len(side.reports)))

    @rule(name=RUNNERS, place=PLACES)
    def arrive(self, name: RunnerId, place: int) -> None:
        side = self.sides[name]
        if side.answers:
            side.lane.set_permits(*side.answers.pop(place % len(side.answers)))

    @rule(name=RUNNERS, place=PLACES)
    def lose(self, name: RunnerId, place: int) -> None:
        side = self.sides[name]
        if side.answers:
            side.answers.pop(place % len(side.answers))

    @rule(name=RUNNERS, calls=st.integers(1, 20))
    def start_calls(self, name: RunnerId, calls: int) -> None:
        side = self.sides[name]
        side.in_flight = max(side.in_flight, min(side.lane.limit.allowed, side.in_flight + calls))

    @rule(name=RUNNERS, calls=st.integers(1, 20))
    def end_calls(self, name: RunnerId, calls: int) -> None:
        side = self.sides[name]
        side.in_flight = max(0, side.in_flight - calls)

    @rule(name=RUNNERS, turn=st.integers(0, 5))
    def exchange(self, name: RunnerId, turn: int) -> None:
        """One renewal from its start to its end, overtaking all others."""
        side = self.sides[name]
        if side.lane.permits_version:
            self._settle(name, turn, (side.in_use, side.lane.permits_version))
            side.lane.set_permits(*side.answers.pop())

    def teardown(self) -> None:
        """When messages pass again and calls end, everything is dealt, and fairly."""
        if not hasattr(self, "sides"):
            return
        for side in self.sides.values():
            side.reports.clear()
            side.answers.clear()
            side.in_flight = 0
        for name in NAMES * 5:
            side = self.sides[name]
            report = (side.in_use, side.lane.permits_version)
            self._settle(name, 0, report if report[1] else None)
            side.lane.set_permits(*side.answers.pop())
        permits = [self.sides[name].lane.limit.permits for name in NAMES]
        assert sum(permits) == self.cap
        assert max(permits) - min(permits) <= 1

    @invariant()
    def the_cap_holds(self) -> None:
        assert sum(row.granted for row in self.rows.values()) <= self.cap
        assert sum(side.in_flight for side in self.sides.values()) <= self.cap

    @invariant()
    def what_is_used_is_granted(self) -> None:
        for name, side in self.sides.items():
            assert side.in_use <= (self.rows[name].granted if name in self.rows else 0)


Disorder.TestCase.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
TestDisorder = Disorder.TestCase
