"""Scores that programs write, columns computed from them, and the order of runs."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.bundle.competition import Dialect, Entry, ScoresUnreadableError, rank, read_scores
from benchgen.bundle.competition.model import Column, Leaderboard
from benchgen.bundle.competition.scores import Scores, compute

A = Column("a", "A", 0)
B = Column("b", "B", 1, sorting="asc")
MEAN = Column("mean", "Mean", 2, computation="avg", computed_from=(0, 1))
TWICE = Column("twice", "Twice", 3, computation="sum", computed_from=(2, 2))
START = datetime(2026, 1, 1, tzinfo=UTC)


def scores(text: str, file: str = "scores.json", dialect: Dialect = Dialect.V2) -> Scores:
    return read_scores({file: text.encode()}, [A, B, MEAN], dialect)


def test_nested_and_extra_keys_are_passed_over() -> None:
    found = scores('{"a": 0.5, "b": 2, "c": 9, "per_class": {"x": [1, NaN]}, "note": "fine"}')
    assert found.values == {"a": 0.5, "b": 2.0, "mean": 1.25}
    assert found.reasons == {}


@pytest.mark.parametrize(
    ("value", "number"),
    [
        ("true", 1.0),
        ("false", 0.0),
        ('"0.25"', 0.25),
        ('" 1e-3 "', 0.001),
        ('"7"', 7.0),
        ("-3", -3.0),
        ("1e400", None),
    ],
)
def test_what_counts_as_a_number(value: str, number: float | None) -> None:
    found = scores(f'{{"a": {value}, "b": 0}}')
    assert found.values.get("a") == number


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("NaN", "expected a number, found NaN, which cannot be ranked"),
        ("Infinity", "expected a number, found Infinity"),
        ("-Infinity", "expected a number, found -Infinity"),
        ('"nan"', "expected a number, found nan"),
        ('"-inf"', "expected a number, found -inf"),
        ("null", "expected a number, found nothing (null)"),
        ('"good"', "expected a number, found the text 'good'"),
        ('{"mean": 1}', "expected a number, found a mapping"),
        ("[1]", "expected a number, found a list"),
        ("1" + "0" * 400, "too large"),
    ],
)
def test_what_is_no_number_is_told_and_never_zero(value: str, reason: str) -> None:
    found = scores(f'{{"a": {value}, "b": 0.5}}')
    assert found.values == {"b": 0.5}
    assert reason in found.reasons["a"]
    assert "a" in found.reasons["mean"]


def test_a_column_without_a_key(tmp_path: object) -> None:
    found = scores('{"A": 1, "b": 2}')
    assert found.reasons["a"] == 'scores.json: expected a key "a", found A, b'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected valid JSON"),
        ("{'a': 1}", "expected valid JSON"),
        ("[1]", "expected an object such as"),
        ("0.5", "expected an object"),
        ("[" * 100_000, "expected valid JSON"),
    ],
)
def test_broken_json(text: str, message: str) -> None:
    with pytest.raises(ScoresUnreadableError, match=message):
        scores(text)


def test_scores_txt_is_yaml() -> None:
    assert scores("a: 1\nb: 2.5\nc: x\n", "scores.txt").values == {"a": 1.0, "b": 2.5, "mean": 1.75}
    assert scores("a: 1e-3\nb: '2'\n", "scores.txt").values["a"] == 0.001
    assert scores("a: .nan\nb: 2\n", "scores.txt").reasons["a"].endswith("found NaN, which cannot be ranked")
    assert scores('{"a": 1, "b": 2}', "scores.txt").values["b"] == 2.0


@pytest.mark.parametrize("text", ["PSNR:27.1", "PSNR:27.1\nSSIM:0.9\n", "a: 1\nPSNR:27.1\n"])
def test_a_colon_without_a_blank(text: str) -> None:
    with pytest.raises(
        ScoresUnreadableError, match=r"expected lines such as `PSNR: 27.1`, found `PSNR:27.1` without a"
    ):
        scores(text, "scores.txt")


def test_old_dialects_read_a_colon_without_a_blank_as_their_original_did() -> None:
    assert scores("a:0.5\nb: 2\n", "scores.txt", Dialect.V15).values == {"a": 0.5, "b": 2.0, "mean": 1.25}
    assert ".nan, which cannot" in scores("a: .nan\nb: 2\n", "scores.txt", Dialect.V15).reasons["a"]
    assert scores("a: 1\nb: {x: 2}\n", "scores.txt", Dialect.V15).values == {"a": 1.0}


@pytest.mark.parametrize("text", ["", "done", "0.5", "a: [\n", "a: *x\n", "- 1\n"])
def test_scores_txt_that_is_none(text: str) -> None:
    with pytest.raises(ScoresUnreadableError, match=r"scores\.txt: expected"):
        scores(text, "scores.txt")


def test_json_goes_first_and_none_is_told() -> None:
    both = {"scores.json": b'{"a": 1, "b": 1}', "scores.txt": b"a: 2\nb: 2\n"}
    assert read_scores(both, [A, B], Dialect.V2).values == {"a": 1.0, "b": 1.0}
    with pytest.raises(ScoresUnreadableError, match="found neither"):
        read_scores({"result.txt": b"1"}, [A], Dialect.V2)
    with pytest.raises(ScoresUnreadableError, match="expected valid JSON"):
        read_scores({"scores.json": b"{", "scores.txt": b"a: 2\n"}, [A], Dialect.V2)


def test_columns_computed_from_computed_columns() -> None:
    found = read_scores({"scores.json": b'{"a": 1, "b": 3, "twice": 99}'}, [TWICE, MEAN, A, B], Dialect.V2)
    assert found.values == {"a": 1.0, "b": 3.0, "mean": 2.0, "twice": 4.0}


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20))
def test_computations(values: list[float]) -> None:
    assert compute("avg", values) == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert compute("sum", values) == pytest.approx(sum(values), abs=1e-6)
    assert compute("min", values) == sorted(values)[0]
    assert compute("max", values) == sorted(values)[-1]
    assert compute("min", values) <= compute("avg", values) + 1e-6 <= compute("max", values) + 2e-6


@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "c"]), st.none() | st.booleans() | st.floats() | st.integers() | st.text()
    )
)
def test_every_column_has_a_finite_value_or_a_reason(written: dict[str, object]) -> None:
    found = scores(json.dumps(written))
    assert set(found.values) | set(found.reasons) == {"a", "b", "mean"}
    assert not set(found.values) & set(found.reasons)
    assert all(math.isfinite(value) for value in found.values.values())


BOARD = Leaderboard("main", "Main", (B, A), primary_index=0)


def places(*rows: tuple[float | None, float | None]) -> list[tuple[int, int]]:
    entries = [
        Entry(
            number,
            {k: v for k, v in zip("ab", row, strict=True) if v is not None},
            START + timedelta(hours=number),
        )
        for number, row in enumerate(rows)
    ]
    return [(ranked.place, int(str(ranked.entry.run))) for ranked in rank(BOARD, entries)]


def test_the_primary_column_then_the_others_then_time() -> None:
    assert places((1, 5), (2, 9), (2, 3), (2, 3)) == [(1, 2), (1, 3), (3, 1), (4, 0)]


def test_a_missing_score_is_last_whichever_way_a_column_sorts() -> None:
    assert places((None, 0), (-9, 7), (5, None), (5, 8)) == [(1, 3), (2, 2), (3, 1), (4, 0)]
    assert places((0, None), (0, 1e9)) == [(1, 1), (2, 0)]


@given(st.lists(st.tuples(st.none() | st.floats(-5, 5), st.none() | st.floats(-5, 5)), max_size=12))
def test_ranking_is_a_total_order(rows: list[tuple[float | None, float | None]]) -> None:
    found = places(*rows)
    assert sorted(number for _, number in found) == list(range(len(rows)))
    ordered = [rows[number] for _, number in found]
    without = [index for index, (a, _) in enumerate(ordered) if a is None]
    assert without == list(range(len(ordered) - len(without), len(ordered)))
    with_score = [a for a, _ in ordered if a is not None]
    assert with_score == sorted(with_score, reverse=True)
    assert [place for place, _ in found] == sorted(place for place, _ in found)
