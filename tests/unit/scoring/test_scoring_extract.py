"""Finding answers, bringing texts to one form, and doing both in bounded time."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from benchgen.scoring.extract import compile_extract, last_boxed, strip_thinking
from benchgen.scoring.jsontext import MAX_DEPTH, MISSING, find_json, json_text, parse_json, resolve
from benchgen.scoring.normalise import compile_normalise
from benchgen.scoring.spec import Extract, Normalise

_EXTRACT: TypeAdapter[Extract] = TypeAdapter(Extract)


def extract(text: str, *specs: dict[str, Any]) -> str | None:
    compiled = compile_extract([_EXTRACT.validate_python(spec) for spec in specs])
    assert compiled is not None
    return compiled.find(text)


@pytest.mark.parametrize(
    ("spec", "text", "answer"),
    [
        ({"regex": r"A: (\d+)"}, "A: 1 A: 2", "1"),
        ({"regex": r"A: (\d+)", "take": "last"}, "A: 1 A: 2", "2"),
        ({"regex": r"A: (\d+)", "group": 0}, "A: 1", "A: 1"),
        ({"regex": r"A: (?P<x>\d+)", "group": "x"}, "A: 1", "1"),
        ({"regex": r"\d+"}, "A: 12", "12"),
        ({"regex": r"A: (\d+)|B: (\d+)"}, "B: 7", "7"),
        ({"regex": r"a: (\d+)", "flags": ["ignore_case"]}, "A: 1", "1"),
        ({"regex": r"^(\d+)$", "flags": ["multiline"]}, "x\n5\ny", "5"),
        ({"regex": r"A:(.*)"}, "A:   ", None),
        ({"regex": r"Z"}, "A", None),
        ({"json_pointer": "/answer"}, '{"answer": "x y"}', "x y"),
        ({"json_pointer": "/a/1"}, 'Sure:\n```json\n{"a": [1, 2.5]}\n```\nDone.', "2.5"),
        ({"json_pointer": "/a~1b/m~0n"}, '{"a/b": {"m~n": true}}', "true"),
        ({"json_pointer": ""}, "so {not json} then [1, 2] end", "[1,2]"),
        ({"json_pointer": "/answer"}, '{"answer": null}', None),
        ({"json_pointer": "/answer"}, '{"answer": NaN}', None),
        ({"json_pointer": "/a"}, "no json", None),
        ({"tag": "answer"}, "<answer>1</answer> no, <answer> 2\n</answer>", " 2\n"),
        ({"tag": "answer"}, "<answer>cut by the stop sequence", "cut by the stop sequence"),
        ({"tag": "answer"}, "1</answer>", None),
        ({"line": "last"}, "a\nb\n\n", "b"),
        ({"line": "first"}, "\n a\nb", "a"),
        ({"line": "last"}, " \n ", None),
        ({"boxed": True}, r"\boxed{1} so \boxed{\frac{1}{2}}.", r"\frac{1}{2}"),
        ({"boxed": True}, r"\boxed{a\}b}", r"a\}b"),
        ({"boxed": True}, r"\boxed{outer \boxed{inner}}", r"outer \boxed{inner}"),
        ({"boxed": True}, r"\boxed{whole} \boxed{cut", "whole"),
        ({"boxed": True}, r"\boxed{}", None),
        ({"after": "####"}, "#### 1\n#### 2 eggs\nBye", "2 eggs"),
        ({"after": "Answer:"}, "Answer:\n\nParis\n", "Paris"),
        ({"after": "####"}, "18", None),
    ],
)
def test_extraction(spec: dict[str, Any], text: str, answer: str | None) -> None:
    assert extract(text, spec) == answer


def test_the_first_way_that_finds_something_counts() -> None:
    ways = ({"after": "####"}, {"boxed": True}, {"regex": r"\d+", "take": "last"})
    assert extract(r"#### 1 \boxed{2} 3", *ways) == r"1 \boxed{2} 3"
    assert extract(r"\boxed{2} 3", *ways) == "2"
    assert extract("2 3", *ways) == "3"
    assert extract("none", *ways) is None


@pytest.mark.parametrize(
    ("text", "visible"),
    [
        ("18", "18"),
        ("<think>1</think>18", "18"),
        ("1 so </think>18", "18"),
        ("a<think>b</think>c<think>d</think>e", "ace"),
        ("<think>1", None),
        ("<think>1</think>18<think>again", None),
        ("<think><think>1</think>18", "18"),
        ("<thinking>1</thinking>", "<thinking>1</thinking>"),
    ],
)
def test_reasoning_is_removed(text: str, visible: str | None) -> None:
    assert strip_thinking(text) == visible


@pytest.mark.parametrize(
    ("options", "text", "normal"),
    [
        ({}, " A ", " A "),
        ({"strip": True}, " A\n", "A"),
        ({"collapse_whitespace": True}, " a \n\t b ", " a b "),
        ({"collapse_whitespace": True, "strip": True}, " a \n\t b ", "a b"),
        ({"collapse_whitespace": True}, " \n ", " "),
        ({"case_fold": True}, "STRASSE straße", "strasse strasse"),
        ({"strip_punctuation": True}, "a.b, «c» $1—2!", "ab c 12"),
        (
            {"strip_articles": True, "collapse_whitespace": True, "strip": True},
            "The cat, a dog, another",
            "cat, dog, another",
        ),
        ({"nfkc": True}, "１８ﬁ", "18fi"),
        ({"remove": ["[,$]", "USD"]}, "$1,000 USD", "1000 "),
        ({"remove": ["usd"], "case_fold": True}, "1 USD", "1 usd"),
    ],
)
def test_normalisation(options: dict[str, Any], text: str, normal: str) -> None:
    assert compile_normalise(Normalise.model_validate(options))(text) == normal


@given(st.text())
def test_full_normalisation_is_case_blind_and_tidy(text: str) -> None:
    normalise = compile_normalise(
        Normalise(
            case_fold=True, strip_punctuation=True, strip_articles=True, collapse_whitespace=True, strip=True
        )
    )
    normal = normalise(text)
    assert normal == " ".join(normal.split())
    assert normalise(f"  {text}\n") == normal
    assert normalise(text.casefold()) == normal


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_json_is_found_alone_fenced_and_in_prose(value: Any) -> None:
    text = json_text(value)
    assert find_json(f"  {text}\n") == value
    assert find_json(f"Here:\n```json\n{text}\n```\nThat is all") == value or "```" in text
    if isinstance(value, dict | list):
        assert find_json(f"The result is {text}. Good?") == value


def test_json_beyond_the_bounds_is_not_found() -> None:
    assert parse_json("[" * MAX_DEPTH + "]" * MAX_DEPTH) is not MISSING
    assert parse_json("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2)) is MISSING
    assert parse_json("[" * 100_000 + "]" * 100_000) is MISSING
    assert parse_json("1" * 5_000) is MISSING


@pytest.mark.parametrize("pointer", ["/a", "/0", "/3", "/-1", "/0/a/b", "/01x"])
def test_a_pointer_to_nothing(pointer: str) -> None:
    assert resolve([{"a": 1}][:0] if pointer == "/0" else [{"a": 1}], pointer) is MISSING


@given(st.text(alphabet="\\boxed{}a ", max_size=60))
def test_a_box_has_balanced_braces(text: str) -> None:
    content = last_boxed(text)
    if content is not None:
        bare = content.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
        assert bare.count("{") == bare.count("}")


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "[", "<think>", "</think>", "<answer>", "```json\n", "#### \n", "[1,", '{"a":']
)
def test_extraction_is_linear(piece: str) -> None:
    text = piece * (500_000 // len(piece))
    started = time.process_time()
    strip_thinking(text)
    for spec in (
        {"boxed": True},
        {"json_pointer": "/a"},
        {"tag": "answer"},
        {"after": "####"},
        {"line": "last"},
    ):
        extract(text, spec)
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("    return 1", "    return 1"),
        ("Use this:\n```python\n    return 1\n```\nDone.", "    return 1\n"),
        ("```\na\n```\ntext\n```py\nb\n```", "b\n"),
        ("```python\na\n", "a\n"),
        ("````md\n```python\nx\n```\n````", "```python\nx\n```\n"),
        ("It is `f()` and ```inline``` here", "It is `f()` and ```inline``` here"),
        ("  ```\n  a\n  ```\n", "  a\n"),
        ("```python\r\na\r\n```", "a\n"),
        ("```python\nprint('```')\n```", "print('```')\n"),
    ],
)
def test_code_is_the_last_fenced_block_or_everything(text: str, code: str) -> None:
    extract = compile_extract([_EXTRACT.validate_python({"code": True})])
    assert extract is not None
    assert extract.find(text) == code
