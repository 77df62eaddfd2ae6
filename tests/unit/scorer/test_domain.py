"""Which of two attempts counts, and what a batch adds to a run's progress."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.eval.v1 import result_pb2
from benchgen.scoring.rules import RuleScore
from services.scorer.domain import (
    Merge,
    Outcome,
    Record,
    ScoredRecord,
    Totals,
    merge,
    model_key,
    normal_address,
    request_key,
)


def test_outcomes_are_those_of_the_contract() -> None:
    contract = {
        name.removeprefix("OUTCOME_"): number
        for name, number in result_pb2.Outcome.items()
        if number != result_pb2.OUTCOME_UNSPECIFIED
    }
    assert {outcome.name: outcome.value for outcome in Outcome} == contract
    assert [outcome.name for outcome in Outcome if outcome.final] == [
        "OK",
        "TRUNCATED",
        "REFUSED",
        "EMPTY",
        "LIMIT",
    ]


@pytest.mark.parametrize(
    ("held_final", "held_attempt", "final", "attempt", "expected"),
    [
        # The same one again.
        (True, 1, True, 1, Merge.SAME),
        (False, 2, False, 2, Merge.SAME),
        # A final one stays, whatever comes.
        (True, 1, True, 2, Merge.FILE),
        (True, 2, True, 1, Merge.FILE),
        (True, 1, False, 2, Merge.FILE),
        (True, 2, False, 1, Merge.FILE),
        # A fault gives way to a final one, however old it is.
        (False, 1, True, 2, Merge.REPLACE),
        (False, 2, True, 1, Merge.REPLACE),
        # And to a later fault, not to an earlier one.
        (False, 1, False, 2, Merge.REPLACE),
        (False, 2, False, 1, Merge.FILE),
    ],
)
def test_merge(held_final: bool, held_attempt: int, final: bool, attempt: int, expected: Merge) -> None:
    assert merge(held_final=held_final, held_attempt=held_attempt, final=final, attempt=attempt) is expected


@pytest.mark.parametrize(("held", "new"), [(True, False), (False, True)])
def test_an_answer_from_the_cache_and_one_of_a_call_are_not_the_same_sent_twice(
    held: bool, new: bool
) -> None:
    standing = {"held_final": True, "held_attempt": 1, "final": True, "attempt": 1}
    assert merge(**standing, held_cached=held, cached=new) is Merge.FILE  # type: ignore[arg-type]
    assert merge(**standing, held_cached=held, cached=held) is Merge.SAME  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "normal"),
    [
        ("http://Host.EXAMPLE/v1/", "http://host.example/v1"),
        ("HTTPS://host:443/v1", "https://host/v1"),
        ("http://host:80", "http://host"),
        ("http://host:443/v1", "http://host:443/v1"),
        ("https://[::1]:8443/V1?api-version=1", "https://[::1]:8443/V1?api-version=1"),
    ],
)
def test_one_address_has_one_spelling(address: str, normal: str) -> None:
    assert normal_address(address) == normal == normal_address(normal)


def test_answers_are_told_apart_by_whose_they_are_and_which() -> None:
    models = {
        model_key(api, url, model)
        for api in (1, 3)
        for url in ("http://h/v1", "https://h/v1", "http://h/v2")
        for model in ("m", "m-2")
    }
    assert len(models) == 12
    assert model_key(1, "http://h", '/v1", "m') != model_key(1, "http://h/v1", "m")
    requests = {request_key(digest * 64, trial) for digest in "ab" for trial in range(3)}
    assert len(requests) == 6


def arrive(attempts: list[tuple[int, Outcome]]) -> tuple[tuple[int, Outcome], set[int]]:
    """What stands after these attempts came in this order, and which of them were counted."""
    held, *others = attempts
    counted = {held[0]}
    for number, outcome in others:
        verdict = merge(held_final=held[1].final, held_attempt=held[0], final=outcome.final, attempt=number)
        if verdict is Merge.SAME:
            assert number in counted
            continue
        # An attempt that is filed already is found there: it does not count again.
        counted.add(number)
        if verdict is Merge.REPLACE:
            held = (number, outcome)
    return held, counted


_ATTEMPTS = st.dictionaries(
    st.integers(min_value=1, max_value=6), st.sampled_from(list(Outcome)), min_size=1, max_size=6
)


@given(_ATTEMPTS, st.data())
def test_the_order_and_repetition_of_arrivals_do_not_matter(
    outcomes: dict[int, Outcome], data: st.DataObject
) -> None:
    attempts = list(outcomes.items())
    repeated = data.draw(st.lists(st.sampled_from(attempts), max_size=12))
    order = data.draw(st.permutations([*attempts, *repeated]))
    (number, outcome), counted = arrive(list(order))
    assert counted == set(outcomes)
    finals = {number for number, each in outcomes.items() if each.final}
    if finals:
        # The first of them to arrive; where there is one, it is that one.
        assert number == next(number for number, each in order if each.final)
    else:
        assert number == max(outcomes)
    assert outcome is outcomes[number]


def record(outcome: Outcome = Outcome.OK, **fields: object) -> Record:
    return Record(0, 0, 1, outcome, "case", **fields)  # type: ignore[arg-type]


PASSED = RuleScore(1.0, True, "4", "", None)
FAILED = RuleScore(0.0, False, "5", "", None)
BROKEN = RuleScore(None, None, None, "", "rule_error: no")


@pytest.mark.parametrize(
    ("item", "expected"),
    [
        (ScoredRecord(record(), (PASSED, FAILED)), Totals(recorded=1, scored=1, passed=1)),
        # It is the primary rule that counts.
        (ScoredRecord(record(), (PASSED, FAILED), 1), Totals(recorded=1, scored=1)),
        (ScoredRecord(record(), (BROKEN,)), Totals(recorded=1)),
        (ScoredRecord(record(Outcome.EMPTY), (FAILED,)), Totals(recorded=1, scored=1)),
        (ScoredRecord(record(Outcome.CANCELLED), ()), Totals(recorded=1, faults=1)),
    ],
)
def test_what_a_result_adds(item: ScoredRecord, expected: Totals) -> None:
    totals = Totals()
    item.count_in(totals)
    assert totals == expected


def test_what_is_replaced_is_taken_back_and_its_spend_is_not() -> None:
    totals = Totals()
    fault = record(Outcome.PROVIDER_ERROR, calls=2, cost_picousd=50)
    totals.add_standing(fault.outcome, None, None)
    totals.add_spend(fault)
    totals.add_standing(fault.outcome, None, None, sign=-1)
    assert totals == Totals(calls=2, cost_picousd=50)


@given(
    st.sampled_from(list(Outcome)),
    st.sampled_from([(None, None), (0.0, False), (0.5, False), (1.0, True), (1.0, None)]),
)
def test_in_and_out_again_is_nothing(outcome: Outcome, score: tuple[float | None, bool | None]) -> None:
    totals = Totals()
    totals.add_standing(outcome, *score)
    totals.add_standing(outcome, *score, sign=-1)
    assert totals == Totals()


def test_spend_counts_every_call_and_every_token() -> None:
    totals = Totals()
    failed = [{"input_tokens": 5, "output_tokens": None}, {"input_tokens": None, "output_tokens": 2}, {}]
    totals.add_spend(record(calls=4, input_tokens=10, output_tokens=20, cost_picousd=7, failed_calls=failed))
    # Of three calls two have a cost that is known.
    totals.add_spend(record(calls=3, known_picousd=4, calls_of_unknown_cost=1))
    totals.add_spend(record(calls=0))
    assert totals == Totals(
        calls=7, input_tokens=15, output_tokens=22, cost_picousd=11, calls_of_unknown_cost=1
    )
