"""Grants, dealt to holders who promise, spend, fall silent and come back: what all may spend never passes a budget."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import date

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from services.common.amounts import NOTHING, Amount
from services.hub.runs import budgets
from services.hub.runs.budgets import Budget, Deal, Grant, GrantState, Limits, Purse, Word, deal, usd

CENT = 10**10


def purse(limit: int | None, held: int = 0, spent: int | None = None, tokens: int | None = None) -> Purse:
    return Purse(
        "budget", Limits(limit, tokens), Amount(held, 0), Amount(held if spent is None else spent, 0)
    )


def word(
    sequence: int = 1, *, spent: int = 0, held: int | None = None, needs: int = 10, wants: int | None = None
) -> Word:
    return Word(
        sequence=sequence,
        spent=Amount(spent),
        held=Amount(spent if held is None else held),
        next=Amount(needs),
        wanted=Amount(needs if wants is None else wants),
    )


def granted(dealt: Deal) -> int:
    return dealt.grant.granted.picousd


def test_a_lease_gets_what_it_wants_where_there_is_plenty() -> None:
    dealt = deal([purse(1000)], Grant(), word(wants=100), leases=1)
    assert (granted(dealt), dealt.used_up) == (100, None)


def test_the_last_of_a_budget_is_dealt_in_small_pieces_and_never_less_than_a_call() -> None:
    assert granted(deal([purse(1000)], Grant(), word(wants=10_000), leases=5)) == 100
    assert granted(deal([purse(30)], Grant(), word(needs=10, wants=10_000), leases=5)) == 10


def test_what_a_holder_does_not_need_is_there_for_others() -> None:
    had = Grant(Amount(500), Amount(0), GrantState.OPEN, 1)
    dealt = deal([purse(1000, held=500, spent=0)], had, word(2, spent=20, held=30, wants=40), leases=1)
    assert granted(dealt) == 70
    assert dealt.grant.counted == Amount(70)


def test_a_word_that_was_overtaken_changes_nothing() -> None:
    had = Grant(Amount(500), Amount(40), GrantState.OPEN, 7)
    assert deal([purse(1000, held=500, spent=40)], had, word(7, spent=20), leases=1) == Deal(had)
    assert budgets.stop(had, word(3, spent=20)) == had


def test_a_budget_is_used_up_when_nothing_can_come_back() -> None:
    own = Grant(Amount(990), Amount(0), GrantState.OPEN, 1)
    last = word(2, spent=99 * CENT // 100, needs=CENT // 5)
    limit = purse(CENT, held=990, spent=0)
    assert deal([limit], own, last, leases=1).used_up == (
        "budget: $0.0099 of $0.01 spent, the next call may cost $0.002"
    )


@pytest.mark.parametrize(
    ("others_held", "others_spent", "in_flight"), [(60, 30, 0), (60, 60, 20)], ids=["others", "own"]
)
def test_a_holder_waits_where_something_may_come_back(
    others_held: int, others_spent: int, in_flight: int
) -> None:
    own = Grant(Amount(40), Amount(20), GrantState.OPEN, 1)
    held = purse(100, held=others_held + 40, spent=others_spent + 20)
    dealt = deal([held], own, word(2, spent=20, held=20 + in_flight, needs=50), leases=2)
    assert (dealt.used_up, granted(dealt)) == (None, 20 + in_flight)


def test_the_day_of_an_api_key_is_used_up_by_all_its_runs() -> None:
    key = budgets.key_purse("k1", date(2026, 11, 27), Limits(tokens=100), Amount(0, 95), Amount(0, 95))
    said = Word(sequence=1, spent=NOTHING, held=NOTHING, next=Amount(0, 10), wanted=Amount(0, 10))
    dealt = deal([budgets.run_purse(Budget(), NOTHING, NOTHING), key], Grant(), said, leases=1)
    assert dealt.used_up == (
        "budget of the API key k1 for 2026-11-27 (UTC): 95 of 100 tokens used, the next call may use 10"
    )


def test_a_call_of_a_free_model_always_fits() -> None:
    assert deal([purse(0)], Grant(), word(needs=0), leases=1).used_up is None


def test_what_is_known_to_be_spent_only_grows() -> None:
    grant = Grant(Amount(100), Amount(40), GrantState.LOST, 3)
    assert budgets.close(grant, Amount(30)).counted == Amount(40)
    assert budgets.close(grant, Amount(60)).counted == Amount(60)
    late = budgets.heard_late(budgets.close(grant, Amount(30)), word(9, spent=70))
    assert late.counted == Amount(70)


def test_time_and_errors_say_why() -> None:
    budget = Budget(seconds=90, errors=5)
    assert budgets.overdue(budget, 89.9) is None
    assert budgets.overdue(budget, 90) == "budget: its working time of 90 s is over"
    assert budgets.too_many_errors(budget, 5, 0) is None
    assert budgets.too_many_errors(budget, 8, 2) == "budget: 6 results stand at a fault, and 5 are allowed"
    assert budgets.overdue(Budget(), 1e9) is None
    assert budgets.too_many_errors(Budget(), 10**6, 0) is None


@given(st.integers(0, 10**20))
def test_money_for_people_is_exact(picousd: int) -> None:
    text = usd(picousd).removeprefix("$").replace(",", "")
    whole, _, part = text.partition(".")
    assert len(part) >= 2
    assert int(whole) * 10**12 + int(part.ljust(12, "0")) == picousd


@dataclass
class Holder:
    """A runner's side of one lease, by the book: what it uses never passes what it was told last, and between a word
    and an answer to it what the word promised."""

    sequence: int = 0
    allowed: int = 0
    spent: int = 0
    in_flight: list[int] = field(default_factory=list)
    alive: bool = True
    recorded: int = 0

    @property
    def used(self) -> int:
        return self.spent + sum(self.in_flight)


class Dealing(RuleBasedStateMachine):
    """A hub with one run and one key, and holders whose words and answers are lost, late and repeated."""

    LIMIT = 1000
    KEY_LIMIT = 800

    def __init__(self) -> None:
        super().__init__()
        self.grants: list[Grant] = []
        self.holders: list[Holder] = []
        self.on_the_way: list[tuple[int, Word]] = []

    def purses(self) -> list[Purse]:
        held = spent = NOTHING
        for grant in self.grants:
            held, spent = held.plus(grant.counted), spent.plus(grant.spent)
        return [Purse("run", Limits(limit), held, spent) for limit in (self.LIMIT, self.KEY_LIMIT)]

    def hear(self, who: int, said: Word) -> Grant:
        leases = sum(grant.state is GrantState.OPEN for grant in self.grants)
        self.grants[who] = deal(self.purses(), self.grants[who], said, leases).grant
        return self.grants[who]

    @precondition(lambda self: len(self.grants) < 5)
    @rule()
    def lease(self) -> None:
        self.grants.append(Grant())
        self.holders.append(Holder())

    def living(self, pick: int) -> int | None:
        alive = [place for place, holder in enumerate(self.holders) if holder.alive]
        return alive[pick % len(alive)] if alive else None

    @rule(
        pick=st.integers(0, 4),
        needs=st.integers(1, 120),
        wants=st.integers(0, 900),
        fate=st.sampled_from(["heard", "heard", "answer lost", "lost", "late"]),
    )
    def say(self, pick: int, needs: int, wants: int, fate: str) -> None:
        who = self.living(pick)
        if who is None:
            return
        holder = self.holders[who]
        holder.sequence += 1
        said = word(holder.sequence, spent=holder.spent, held=holder.used, needs=needs, wants=needs + wants)
        holder.allowed = holder.used
        match fate:
            case "heard":
                holder.allowed = self.hear(who, said).granted.picousd
            case "answer lost":
                self.hear(who, said)
            case "late":
                self.on_the_way.append((who, said))

    @precondition(lambda self: self.on_the_way)
    @rule(pick=st.integers(0, 100), again=st.booleans())
    def arrive_late(self, pick: int, again: bool) -> None:
        place = pick % len(self.on_the_way)
        who, said = self.on_the_way[place] if again else self.on_the_way.pop(place)
        if self.grants[who].state is GrantState.OPEN:
            self.hear(who, said)

    @rule(pick=st.integers(0, 4), cost=st.integers(1, 120))
    def start_a_call(self, pick: int, cost: int) -> None:
        who = self.living(pick)
        if who is not None and self.holders[who].used + cost <= self.holders[who].allowed:
            self.holders[who].in_flight.append(cost)

    @rule(pick=st.integers(0, 4), share=st.floats(0, 1), stored=st.booleans())
    def end_a_call(self, pick: int, share: float, stored: bool) -> None:
        who = self.living(pick)
        if who is not None and self.holders[who].in_flight:
            holder = self.holders[who]
            cost = int(holder.in_flight.pop() * share)
            holder.spent += cost
            holder.recorded += cost if stored else 0

    @rule(pick=st.integers(0, 4))
    def hand_back(self, pick: int) -> None:
        who = self.living(pick)
        if who is not None and self.grants[who].state is GrantState.OPEN:
            holder = self.holders[who]
            holder.spent, holder.in_flight, holder.alive = holder.used, [], False
            self.grants[who] = budgets.close(self.grants[who], Amount(holder.spent))

    @rule(pick=st.integers(0, 4))
    def run_out(self, pick: int) -> None:
        """The lease ends without a word; the holder is gone, and all it had is stored or was never paid."""
        who = self.living(pick)
        if who is not None and self.grants[who].state is GrantState.OPEN:
            holder = self.holders[who]
            holder.alive, holder.in_flight = False, []
            holder.spent = max(holder.recorded, self.grants[who].spent.picousd)
            self.grants[who] = replace(self.grants[who], state=GrantState.LOST)

    @rule(pick=st.integers(0, 4))
    def audit(self, pick: int) -> None:
        if self.grants:
            who = pick % len(self.grants)
            if self.grants[who].state is GrantState.LOST:
                recorded = Amount(self.holders[who].recorded)
                self.grants[who] = budgets.close(self.grants[who], recorded)

    @invariant()
    def no_more_is_used_than_there_is(self) -> None:
        assert sum(holder.used for holder in self.holders) <= self.KEY_LIMIT
        assert sum(grant.counted.picousd for grant in self.grants) <= self.KEY_LIMIT
        for grant, holder in zip(self.grants, self.holders, strict=True):
            assert holder.used <= grant.counted.picousd or not holder.alive
            if grant.state is GrantState.CLOSED:
                assert grant.counted.picousd == holder.spent, "it leaks, or counts twice"


Dealing.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestDealing = Dealing.TestCase
