"""Numbers in text."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.scoring.numbers import as_number, last_number, within


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("18", "18"),
        ("18.", "18"),
        ("is 18, then", "18"),
        ("**18**", "18"),
        ("(18)", "18"),
        ("...18", "18"),
        ("A:18\n\n", "18"),
        ("7\nnone here\n", "7"),
        ("18kg", "18"),
        ("答案是18", "18"),
        ("１８", "18"),
        (".5", "0.5"),
        ("72.0", "72"),
        ("007", "7"),
        ("$1,234.50.", "1234.50"),
        ("€18", "18"),
        ("US$5", "5"),
        ("1\u202f234\u00a0567", "1234567"),
        ("1,2,3", "3"),
        ("1,450,000", "1450000"),
        ("-3", "-3"),
        ("−3", "-3"),
        ("+5", "5"),
        ("=-5", "-5"),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("- 3", "3"),
        ("10-5", "5"),
        ("GPT-4", "4"),
        ("(2)-3", "3"),
        ("50%", "50"),
        (r"50\%", "50"),
        ("1/2", "0.5"),
        ("-1/2", "-0.5"),
        ("1 / 4", "0.25"),
        ("1 1/2 cups", "1.5"),
        (r"\frac{1}{4}", "0.25"),
        (r"-\dfrac{1}{4}", "-0.25"),
        ("10/2=5", "5"),
        ("1.5e3", "1500"),
        ("2E-3", "0.002"),
        ("1.5 × 10^3", "1500"),
        (r"1.5 \times 10^{-3}", "0.0015"),
        ("2x 3", "3"),
        ("1.2.3", "1.2"),
        ("3 + 4 = <<3+4=7>>7", "7"),
    ],
)
def test_the_last_number(text: str, value: str) -> None:
    found = last_number(text)
    assert found is not None
    assert found.value == Decimal(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no",
        "x2",
        "Q3",
        "1/0",
        r"\frac{1}{0}",
        "1" * 500,
        "1e99999999999999999999",
        "Infinity",
        "nan",
        "²",
    ],
)
def test_no_number(text: str) -> None:
    assert last_number(text) is None


@given(
    st.integers(-(10**30), 10**30),
    st.sampled_from(["{}", "{:,}", "${:,}", "A: {}.", "**{:,}** eggs", "#### {}\n"]),
)
def test_integers_survive_formatting(number: int, form: str) -> None:
    found = last_number(form.format(number))
    assert found is not None
    assert found.value == number


@given(st.decimals(allow_nan=False, allow_infinity=False, min_value=-(10**12), max_value=10**12, places=6))
def test_decimals_are_exact(number: Decimal) -> None:
    found = last_number(f"so it is {number:f}")
    assert found is not None
    assert found.value == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_target_equals_what_it_prints(number: float) -> None:
    found = last_number(f"= {number!r}")
    target = as_number(number)
    assert found is not None
    assert target is not None
    assert within(found.value, target, 0, 0)


@given(st.integers(-1000, 1000), st.integers(1, 1000), st.integers(1, 50))
def test_equal_fractions_are_equal(over: int, under: int, times: int) -> None:
    first, second = last_number(f"{over}/{under}"), last_number(f"{over * times}/{under * times}")
    assert first is not None
    assert second is not None
    assert first.value == second.value
    assert abs(Fraction(first.value) - Fraction(over, under)) < Fraction(1, 10**60)


@given(st.text(alphabet="0123456789.,/-+eE^x×10$%\\frac{} \n\u00a0−"))
def test_any_soup_gives_a_finite_number_or_none(text: str) -> None:
    found = last_number(text)
    assert found is None or found.value.is_finite()


@pytest.mark.parametrize(
    ("answer", "target", "abs_tol", "rel_tol", "passed"),
    [
        ("72.0", "72", 0, 0, True),
        ("0.3", "0.30", 0, 0, True),
        ("0.30000000000000004", "0.3", 0, 0, False),
        ("1.1", "1", 0.1, 0, True),
        ("1.11", "1", 0.1, 0, False),
        ("101", "100", 0, 0.01, True),
        ("-101", "-100", 0, 0.01, True),
        ("102", "100", 0, 0.01, False),
        ("102", "100", 2, 0.01, True),
        ("1e999999", "1e999998", 1, 0.1, False),
        ("0", "1e-999999", 0, 0.1, False),
    ],
)
def test_tolerance(answer: str, target: str, abs_tol: float, rel_tol: float, passed: bool) -> None:
    assert within(Decimal(answer), Decimal(target), abs_tol, rel_tol) is passed


@pytest.mark.parametrize("value", [True, None, [], {}, "none", float("inf"), float("nan")])
def test_what_is_no_number(value: object) -> None:
    assert as_number(value) is None


@pytest.mark.parametrize(
    "piece",
    ["1", "1,", "1/", "1 ", "-", ".1", "\n", "1e", "a1", "1,234,", "\\frac{", "1.5×10^", "1 1/", "\u00a0123"],
)
def test_any_length_is_read_in_linear_time(piece: str) -> None:
    text = piece * (500_000 // len(piece))
    started = time.process_time()
    last_number(text)
    assert time.process_time() - started < 2
