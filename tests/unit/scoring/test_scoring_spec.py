"""Rule specs: what is accepted, what is refused, and that a stored rule means what it meant."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from pydantic import ValidationError

from benchgen.scoring.patterns import PATTERN_MAX_CHARS
from benchgen.scoring.spec import F1, MAX_RULES, Numeric, RegexExtract, dump_rules, parse_rules

ALL_TYPES: list[dict[str, Any]] = [
    {"name": "a", "type": "exact_match", "normalise": {"remove": [r"\s*USD$"], "nfkc": True}},
    {"name": "b", "type": "includes", "mode": "all", "words": True, "target": "{{ keyword }}"},
    {"name": "c", "type": "regex", "pattern": "^yes", "match": "fullmatch", "flags": ["ignore_case"]},
    {"name": "d", "type": "choice", "choices": "options", "extract": {"boxed": True}},
    {"name": "e", "type": "numeric", "extract": {"regex": r"#### (\d+)", "take": "last"}, "rel_tol": 1},
    {
        "name": "f",
        "type": "f1",
        "threshold": 0.5,
        "think": "keep",
        "extract": [{"tag": "answer"}, {"line": "last"}],
    },
    {"name": "g", "type": "json_match", "fields": ["a", "/b/0"], "ignore_order": True, "primary": True},
    {"name": "h", "type": "exact_match", "extract": [{"json_pointer": "/answer"}, {"after": "####"}]},
]


def test_every_type_survives_storage() -> None:
    rules = parse_rules(ALL_TYPES)
    stored = orjson.dumps(dump_rules(rules), option=orjson.OPT_SORT_KEYS)
    assert parse_rules(orjson.loads(stored)) == rules
    assert orjson.dumps(dump_rules(parse_rules(orjson.loads(stored))), option=orjson.OPT_SORT_KEYS) == stored


def test_stored_rules_have_their_defaults_written_out() -> None:
    (stored,) = dump_rules(parse_rules([{"name": "n", "type": "numeric"}]))
    assert stored["abs_tol"] == 0.0
    assert stored["normalise"]["strip"] is True
    assert stored["think"] == "strip"


def test_normalisation_that_is_not_given_keeps_the_default_of_the_type() -> None:
    (rule,) = parse_rules([{"name": "n", "type": "f1", "normalise": {"case_fold": False}}])
    assert isinstance(rule, F1)
    assert not rule.normalise.case_fold
    assert rule.normalise.strip_articles


def test_the_rule_of_the_documented_example() -> None:
    (rule,) = parse_rules(
        [{"name": "correct", "type": "numeric", "extract": {"regex": r"####\s*(-?[\d.,]+)", "take": "last"}}]
    )
    assert isinstance(rule, Numeric)
    assert rule.extract == (RegexExtract(regex=r"####\s*(-?[\d.,]+)", take="last"),)


@pytest.mark.parametrize(
    ("rule", "location", "message"),
    [
        ({"extract": {"regex": "a(b"}}, "extract", "bad pattern: missing ) at position 3"),
        ({"extract": {"regex": "(" * 500 + ")" * 500}}, "extract", "nested too deeply"),
        (
            {"extract": {"regex": "a" * (PATTERN_MAX_CHARS + 1)}},
            "extract",
            "expected at most 2000 characters",
        ),
        ({"extract": {"regex": "a", "group": 1}}, "extract", "expected a group of the pattern, found 1"),
        ({"extract": {"regex": "a", "group": "x"}}, "extract", "expected a group of the pattern, found 'x'"),
        ({"extract": {"regex": ""}}, "extract", "at least 1 character"),
        ({"extract": {"regexp": "a"}}, "extract", "expected one of the keys regex, json_pointer"),
        ({"extract": {"regex": "a", "tag": "b"}}, "extract", "Extra inputs"),
        ({"extract": {"json_pointer": "answer"}}, "extract", "should match pattern"),
        ({"extract": {"boxed": False}}, "extract", "True"),
        ({"extract": "A: (.*)"}, "extract", "expected one of the keys"),
        ({"normalise": {"remove": ["["]}}, "normalise", "bad pattern"),
        ({"normalise": {"upper": True}}, "normalise", "Extra inputs"),
        ({"normalise": {"strip": "yes"}}, "normalise", "boolean"),
        ({"abs_tol": -1}, "abs_tol", "greater than or equal to 0"),
        ({"abs_tol": float("nan")}, "abs_tol", "finite"),
        ({"abs_tol": "0.1"}, "abs_tol", "number"),
        ({"threshold": 0.5}, "threshold", "Extra inputs"),
        ({"primary": "yes"}, "primary", "boolean"),
        ({"name": "two words"}, "name", "should match pattern"),
        ({"name": "1st"}, "name", "should match pattern"),
    ],
)
def test_a_bad_rule_is_refused_with_its_place(rule: dict[str, Any], location: str, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse_rules([{"name": "n", "type": "numeric", **rule}])
    (error,) = caught.value.errors()
    assert location in error["loc"]
    assert message in error["msg"]


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ValidationError) as caught:
        parse_rules(
            [
                {"name": "n", "type": "numeric", "x": 1, "extract": {"regex": "("}},
                {"name": "m", "type": "nope"},
            ]
        )
    assert len(caught.value.errors()) == 3


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([], "expected 1 to 32 rules, found 0"),
        ([{"name": f"n{i}", "type": "numeric"} for i in range(MAX_RULES + 1)], "found 33"),
        ([{"name": "n", "type": "numeric"}, {"name": "n", "type": "f1"}], "found twice: n"),
        (
            [{"name": "n", "type": "f1", "primary": True}, {"name": "m", "type": "f1", "primary": True}],
            "expected at most one primary rule, found n, m",
        ),
    ],
)
def test_rules_must_fit_together(rules: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        parse_rules(rules)
