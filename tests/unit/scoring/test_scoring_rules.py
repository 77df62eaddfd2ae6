"""Verdicts of every type of rule."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.scoring.rules import (
    MAX_EXPLANATION_CHARS,
    MAX_RESPONSE_CHARS,
    CompiledRule,
    RuleScore,
    compile_rules,
    word_f1,
)
from benchgen.scoring.spec import parse_rules

GSM8K = Path(__file__).resolve().parents[4] / "shared" / "data" / "gsm8k"


def rule(kind: str, **options: Any) -> CompiledRule:
    (compiled,) = compile_rules(parse_rules([{"name": "r", "type": kind, **options}]))
    assert isinstance(compiled, CompiledRule)
    return compiled


def passed(kind: str, response: str, target: Any, choices: list[str] | None = None, **options: Any) -> bool:
    score = rule(kind, **options).score(response, target, choices)
    assert score.error is None
    assert score.passed is not None
    assert score.value == float(score.passed)
    return score.passed


@pytest.mark.parametrize(
    ("response", "target", "options", "verdict"),
    [
        ("Paris", "Paris", {}, True),
        (" Paris\n", "Paris", {}, True),
        ("paris", "Paris", {}, False),
        ("paris", "Paris", {"normalise": {"case_fold": True}}, True),
        (
            "The  Paris!",
            "paris",
            {"normalise": dict.fromkeys(("case_fold", "strip_punctuation", "strip_articles"), True)},
            True,
        ),
        ("Rome", ["Paris", "Rome"], {}, True),
        ("5", 5, {}, True),
        ("true", True, {}, True),
        ("", "", {}, True),
        ("", "Paris", {}, False),
        ("<think>Rome</think>Paris", "Paris", {}, True),
        ("<think>Rome</think>Paris", "Paris", {"think": "keep"}, False),
    ],
)
def test_exact_match(response: str, target: Any, options: dict[str, Any], verdict: bool) -> None:
    assert passed("exact_match", response, target, **options) is verdict


@pytest.mark.parametrize(
    ("response", "target", "options", "verdict"),
    [
        ("It is PARIS.", "Paris", {}, True),
        ("It is Rome", ["Paris", "Rome"], {}, True),
        ("It is Rome", ["Paris", "Rome"], {"mode": "all"}, False),
        ("Rome, Paris", ["Paris", "Rome"], {"mode": "all"}, True),
        ("concatenate", "cat", {}, True),
        ("concatenate", "cat", {"words": True}, False),
        ("concatenate a cat!", "cat", {"words": True}, True),
        ("C++, not C", "C++", {"words": True}, True),
        ("new\n york", "New York", {}, True),
    ],
)
def test_includes(response: str, target: Any, options: dict[str, Any], verdict: bool) -> None:
    assert passed("includes", response, target, **options) is verdict


@pytest.mark.parametrize(
    ("response", "target", "options", "verdict"),
    [
        ("yes, sure", None, {"pattern": "^yes"}, True),
        ("Yes", None, {"pattern": "^yes"}, False),
        ("Yes", None, {"pattern": "^yes", "flags": ["ignore_case"]}, True),
        ("yes, sure", None, {"pattern": "yes", "match": "fullmatch"}, False),
        ("abc 12", r"\d{2}", {}, True),
        ("abc", [r"\d", "b"], {}, True),
    ],
)
def test_regex(response: str, target: Any, options: dict[str, Any], verdict: bool) -> None:
    assert passed("regex", response, target, **options) is verdict


CITIES = ["Paris", "London", "Rome", "Paris, Texas"]


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("B", "B"),
        ("b", "B"),
        ("(B)", "B"),
        ("B)", "B"),
        ("B.", "B"),
        ("**B**", "B"),
        ("$\\boxed{\\text{B}}$", "B"),
        ("Answer: B", "B"),
        ("Answer:\nD", "D"),
        ("ANSWER: $D$", "D"),
        ("**Answer: B**", "B"),
        ("The answer is B", "B"),
        ("The answer is **B** because C is wrong", "B"),
        ("The correct answer is: (b)", "B"),
        ("The answer is a.", "A"),
        ("The best answer is option C because option A is wrong", "C"),
        ("Option A is wrong. The answer is B, since C fails", "B"),
        ("The answer is A. Wait: the answer is C.", "C"),
        ("B. London", "B"),
        ("I weighed A and C at length.\n\nB", "B"),
        ("B\n\nA is too far away.", "B"),
        ("I choose (C)", "C"),
        ("It must be choice D", "D"),
        ("london", "B"),
        ("I think it is London", "B"),
        ("It is Paris, Texas", "D"),
        ("E", None),
        ("Answer: E", None),
        ("the answer is a number", None),
        ("A dog", None),
        ("(A) or (B)", None),
        ("A. Paris\nB. London", None),
        ("London or Rome", None),
        ("", None),
    ],
)
def test_choice(response: str, letter: str | None) -> None:
    score = rule("choice").score(response, "B", CITIES)
    assert score.answer == letter
    assert score.passed is (letter == "B")
    if letter is None:
        assert score.explanation.startswith("no choice found")


@pytest.mark.parametrize("target", ["B", "b", "(B)", 1, "1", "london", ["C", "B"], ["C", 1]])
def test_choice_targets(target: Any) -> None:
    assert passed("choice", "The answer is B.", target, CITIES)


def test_digits_that_are_an_options_text_are_that_option() -> None:
    assert passed("choice", "C", "1", ["3", "2", "1"])


def test_choice_without_known_options() -> None:
    assert passed("choice", "Answer: J", "J")
    assert passed("choice", "(C)", 2)


@pytest.mark.parametrize("target", ["Berlin", 4, -1, True, None, "E", []])
def test_a_target_that_is_no_choice_is_no_fault_of_the_model(target: Any) -> None:
    score = rule("choice").score("B", target, CITIES)
    assert score.value is None
    assert score.error is not None
    assert score.error.startswith("rule_error: expected a target")


@pytest.mark.parametrize(
    ("response", "target", "options", "verdict"),
    [
        ("She makes $18 a day.", "18", {}, True),
        ("#### 1,000", "1000", {"extract": {"after": "####"}}, True),
        ("about 18.0", 18, {}, True),
        ("0.5", "1/2", {}, True),
        ("−3", -3.0, {}, True),
        ("19", ["18", 19], {}, True),
        ("018", "18", {}, True),
        ("3.14", "3.14159", {}, False),
        ("3.14", "3.14159", {"abs_tol": 0.01}, True),
        ("101", "100", {"rel_tol": 0.01}, True),
        ("I do not know", "18", {}, False),
        ("9" * 100_000, "9", {}, False),
        ("1 000 km", "1", {"normalise": {"remove": [r"\s000 km"]}}, True),
    ],
)
def test_numeric(response: str, target: Any, options: dict[str, Any], verdict: bool) -> None:
    assert passed("numeric", response, target, **options) is verdict


def test_f1_is_the_best_over_the_targets() -> None:
    score = rule("f1", threshold=0.6).score("The black cat", ["a dog", "black cat sat"])
    assert score.value == pytest.approx(0.8)
    assert score.passed
    score = rule("f1").score("The black cat", "black cat sat")
    assert score.value == pytest.approx(0.8)
    assert score.passed is False
    assert score.explanation == "F1 0.80 of 1: expected black cat sat, got The black cat"


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_f1_is_symmetric_and_bounded(one: list[str], other: list[str]) -> None:
    assert word_f1(one, other) == word_f1(other, one)
    assert 0 <= word_f1(one, other) <= 1
    assert word_f1(one, one) == 1


@pytest.mark.parametrize(
    ("response", "target", "options", "explanation"),
    [
        ('{"a": 1}', {"a": 1}, {}, ""),
        ('{"a": 1.0}', '{"a": 1}', {}, ""),
        ('x ```json\n{"a": [1, 2]}\n```', {"a": [1, 2]}, {}, ""),
        ('{"a": true}', {"a": 1}, {}, "at /a: expected 1, got true"),
        ('{"a": {"b/c": 2}}', {"a": {"b/c": 3}}, {}, "at /a/b~1c: expected 3, got 2"),
        ('{"a": 1, "b": 2}', {"a": 1}, {}, "at /b: expected nothing, got 2"),
        ('{"a": 1, "b": 2}', {"a": 1}, {"allow_extra": True}, ""),
        ('{"a": 1}', {"a": 1, "b": None}, {}, "at /b: expected null, got nothing"),
        ('{"a": 1, "b": 2}', {"a": 1, "b": 3}, {"fields": ["a"]}, ""),
        ('{"a": {"b": [7]}}', {"a": {"b": [7, 8]}}, {"fields": ["/a/b/0"]}, ""),
        ("[2, 1]", [1, 2], {}, "at /0: expected 1, got 2"),
        ("[2, 1]", [1, 2], {"ignore_order": True}, ""),
        ("[2.01, 1]", [1, 2], {"ignore_order": True, "abs_tol": 0.1}, ""),
        ('[{"k": 2}, {"k": [3, 1]}]', [{"k": [1, 3]}, {"k": 2.0}], {"ignore_order": True}, ""),
        ('[{"k": 5}, {"k": 2.01}]', [{"k": 2}, {"k": 5}], {"ignore_order": True, "abs_tol": 0.1}, ""),
        ("[1, 1]", [1], {"ignore_order": True}, "at the top: expected 1 items, got 2"),
        ("[1, 2]", [1, 3], {"ignore_order": True}, "at /*: expected 3, got 2"),
        ("1.1", 1, {"abs_tol": 0.1}, ""),
        ('{"a": " Paris"}', {"a": "paris"}, {"normalise": {"strip": True, "case_fold": True}}, ""),
        ("none", {"a": 1}, {}, "no JSON found in the response"),
        ('{"a": 1', {"a": 1}, {}, "no JSON found in the response"),
    ],
)
def test_json_match(response: str, target: Any, options: dict[str, Any], explanation: str) -> None:
    score = rule("json_match", **options).score(response, target)
    assert score.explanation == explanation
    assert score.passed is (not explanation)


@pytest.mark.parametrize(
    ("kind", "response", "target", "options", "explanation"),
    [
        ("numeric", "26", "18", {}, "expected 18, got 26"),
        ("numeric", "26", ["18", "19"], {}, "expected 18 or 1 other, got 26"),
        ("numeric", "dunno", "18", {}, "no number found in dunno"),
        (
            "numeric",
            "26",
            "18",
            {"extract": {"regex": "#### (.*)"}},
            "no answer found: the pattern matched nothing",
        ),
        ("numeric", "26", "18", {"extract": {"tag": "answer"}}, "no answer found: there is no <answer>"),
        (
            "numeric",
            "x",
            "1",
            {"extract": [{"boxed": True}, {"after": "A:"}]},
            "no answer found: none of the 2 ways found one",
        ),
        ("exact_match", "", "x", {}, "expected x, got nothing"),
        ("exact_match", "<think>18", "18", {}, "no answer found: the reasoning never ends"),
        ("includes", "x", ["a", "b"], {"mode": "all"}, "not found in the response: a, b"),
        ("regex", "x", None, {"pattern": "^a"}, "no match for ^a"),
        ("choice", "C", "B", {}, "expected B, got C"),
        ("choice", "(A) or (B)", "B", {}, "no choice found: A and B are both named"),
    ],
)
def test_explanations(
    kind: str, response: str, target: Any, options: dict[str, Any], explanation: str
) -> None:
    score = rule(kind, **options).score(response, target)
    assert (score.value, score.passed, score.explanation) == (0.0, False, explanation)


@pytest.mark.parametrize(
    ("kind", "target", "options", "error"),
    [
        ("regex", None, {"pattern": "(a|aa)+$"}, "rule_error: pattern took longer than 0.25 s"),
        ("regex", "(a|aa)+$", {}, "rule_error: pattern took longer than 0.25 s"),
        (
            "exact_match",
            "x",
            {"extract": {"regex": "(a|aa)+$", "take": "last"}},
            "rule_error: pattern took longer than 0.25 s",
        ),
        (
            "exact_match",
            "x",
            {"normalise": {"remove": ["(a|aa)+$"]}},
            "rule_error: pattern took longer than 0.25 s",
        ),
        ("regex", "(", {}, "rule_error: PatternInvalid: bad pattern: missing ) at position 1"),
        ("exact_match", None, {}, "rule_error: expected a text as target, found none"),
        ("exact_match", {"a": 1}, {}, "rule_error: expected a text as target, found a dict"),
        ("exact_match", [], {}, "rule_error: expected a target, found an empty list"),
        ("includes", " ", {}, "rule_error: expected a target that is not empty after normalisation"),
        ("numeric", "eighteen", {}, "rule_error: expected a number as target, found eighteen"),
        ("json_match", "{", {}, "rule_error: expected a JSON value as target"),
        (
            "json_match",
            {"answer": 1},
            {"fields": ["anser"]},
            "rule_error: expected a target with at least one of the fields of the rule",
        ),
    ],
)
def test_a_rule_that_cannot_judge_gives_no_score(
    kind: str, target: Any, options: dict[str, Any], error: str
) -> None:
    assert rule(kind, **options).score("a" * 60 + "b", target) == RuleScore(None, None, None, "", error)


@pytest.mark.parametrize(
    "response",
    ["[" * 60 + '"\\""' + "]" * 60, "[" + ",".join(["[[[[[[[[[1]]]]]]]]]"] * 5_000) + "]"],
    ids=["deep", "wide"],
)
def test_deep_and_wide_json_is_compared_in_bounded_time(response: str) -> None:
    # Exponential work would run into the time limit of every test.
    assert rule("json_match", ignore_order=True).score(response, json.loads(response)).passed


def test_only_the_end_of_an_endless_response_is_judged() -> None:
    end = " Paris" + "." * (MAX_RESPONSE_CHARS - 6)
    assert passed("includes", "x" * 1000 + end, "Paris")
    assert not passed("includes", "Paris" + "x" * 1000 + end.replace("Paris", "-----"), "Paris")


@pytest.mark.parametrize("response", ['{"answer": "a\\u0000\\ud800"}', "a\0\ud800", "\ud800" * 5000])
def test_answers_can_be_stored_anywhere(response: str) -> None:
    for options in ({}, {"extract": [{"json_pointer": "/answer"}, {"line": "last"}]}):
        score = rule("exact_match", **options).score(response, "b")
        assert score.answer is not None
        assert len(score.answer) <= 2_000
        for text in (score.answer, score.explanation):
            assert "\0" not in text
            text.encode()


@given(
    st.sampled_from(["exact_match", "includes", "choice", "numeric", "f1", "json_match"]),
    st.text(),
    st.text(),
)
def test_no_response_breaks_a_rule(kind: str, response: str, target: str) -> None:
    score = rule(kind).score(response, target, ["x", "y"])
    assert (score.error is None) == (score.value is not None) == (score.passed is not None)
    assert score.value is None or 0 <= score.value <= 1
    assert len(score.explanation) <= MAX_EXPLANATION_CHARS
    assert score.passed is not False or score.explanation


def test_exactly_one_rule_is_primary() -> None:
    both = [{"name": "a", "type": "f1"}, {"name": "b", "type": "f1"}]
    assert [r.primary for r in compile_rules(parse_rules(both))] == [True, False]
    both[1]["primary"] = True  # type: ignore[assignment]
    assert [r.primary for r in compile_rules(parse_rules(both))] == [False, True]


@pytest.mark.skipif(
    not GSM8K.is_dir(), reason="the recorded GSM8K solutions are not here (../shared/data/gsm8k)"
)
@pytest.mark.parametrize("extract", [{"regex": r"A:\s*(.*)", "take": "last"}, {"after": "A:"}, None])
@pytest.mark.parametrize(("model", "correct"), [("6b_finetuning", 286), ("175b_verification", 742)])
def test_recorded_gsm8k_solutions_are_judged_as_recorded(model: str, correct: int, extract: Any) -> None:
    judge = rule("numeric", extract=extract)
    with (GSM8K / "test.jsonl").open(encoding="utf-8") as lines:
        targets = [json.loads(line)["answer"].split("####")[-1].strip() for line in lines]
    with gzip.open(GSM8K / "recorded_solutions.jsonl.gz", "rt", encoding="utf-8") as lines:
        recorded = [json.loads(line)[model] for line in lines]
    verdicts = [judge.score(r["solution"], t).passed for r, t in zip(recorded, targets, strict=True)]
    assert verdicts == [r["is_correct"] for r in recorded]
    assert sum(map(bool, verdicts)) == correct
