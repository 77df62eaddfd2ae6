"""The order of versions, against the rules of semver 2.0 spelled out."""

from __future__ import annotations

from functools import cmp_to_key
from itertools import pairwise, zip_longest

from hypothesis import given
from hypothesis import strategies as st

from services.hub.publishing.domain import Reference, parse_reference, precedence

NUMBERS = st.integers(0, 10**20).map(str)
WORDS = st.from_regex(r"[0-9]*[a-zA-Z-][0-9a-zA-Z-]{0,5}", fullmatch=True)
PRE = st.lists(NUMBERS | WORDS, max_size=4).map(".".join)
VERSIONS = st.tuples(st.tuples(NUMBERS, NUMBERS, NUMBERS).map(".".join), PRE).map(
    lambda parts: "-".join(part for part in parts if part)
)


def compare(a: str, b: str) -> int:
    """https://semver.org/#spec-item-11, word for word: negative where ``a`` comes first."""
    core_a, _, pre_a = a.partition("-")
    core_b, _, pre_b = b.partition("-")
    numbers_a, numbers_b = ([int(part) for part in core.split(".")] for core in (core_a, core_b))
    if numbers_a != numbers_b:
        return -1 if numbers_a < numbers_b else 1
    if not pre_a or not pre_b:
        return bool(pre_b) - bool(pre_a)
    for one, other in zip_longest(pre_a.split("."), pre_b.split(".")):
        if one == other:
            continue
        if one is None or other is None:
            return -1 if one is None else 1
        if one.isdigit() and other.isdigit():
            return -1 if int(one) < int(other) else 1
        if one.isdigit() != other.isdigit():
            return -1 if one.isdigit() else 1
        return -1 if one < other else 1
    return 0


@given(VERSIONS, VERSIONS)
def test_the_key_sorts_as_semver_does(a: str, b: str) -> None:
    key_a, key_b = precedence(a).encode(), precedence(b).encode()
    assert (key_a > key_b) - (key_a < key_b) == compare(a, b)


def test_the_example_of_the_specification() -> None:
    pre = ["alpha", "alpha.1", "alpha.beta", "beta", "beta.2", "beta.11", "rc.1"]
    ordered = [*(f"1.0.0-{name}" for name in pre), "1.0.0", "2.0.0", "2.1.0", "2.1.1"]
    shuffled = sorted(ordered, key=hash)
    assert sorted(shuffled, key=precedence) == ordered
    assert all(compare(a, b) < 0 for a, b in pairwise(ordered))
    assert sorted(shuffled, key=cmp_to_key(compare)) == ordered


def test_build_metadata_does_not_count() -> None:
    assert precedence("1.0.0+b-1") == precedence("1.0.0") != precedence("1.0.0-b+1")


def test_references() -> None:
    assert parse_reference("org/sums@1.0.0+a") == Reference("org/sums", "1.0.0+a", "")
    assert parse_reference("sums") == Reference("sums", "", "")
    assert parse_reference("a" * 64) == Reference("", "", "a" * 64)
    assert parse_reference("A" * 64) == Reference("A" * 64, "", "")
