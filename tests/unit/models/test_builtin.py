"""The built-in subjects and the parameters behind their names."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchgen.errors import InvalidInput
from services.common.models.builtin import BUILTINS, is_builtin, parse_builtin
from services.common.models.types import ChatRequest, Outcome, classify


def question(text: str = "2 + 2?", **params: Any) -> ChatRequest:
    return ChatRequest(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text}], params
    )


async def test_constant() -> None:
    assert (await parse_builtin("builtin/constant").chat(question())).text == "42"
    reply = await parse_builtin("builtin/constant?text=Answer%3A+B").chat(question())
    assert (reply.text, reply.model, classify(reply)) == ("Answer: B", "builtin/constant", Outcome.OK)
    assert (reply.usage.input, reply.usage.output) == (0, 0)


async def test_echo_says_the_users_last_message() -> None:
    echo = parse_builtin("builtin/echo")
    assert (await echo.chat(question("hello"))).text == "hello"
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    assert (await echo.chat(ChatRequest(parts))).text == "ab"
    assert (await echo.chat(ChatRequest([{"role": "system", "content": "x"}]))).text == ""


async def test_random_choice_repeats_itself_and_is_even() -> None:
    chooser = parse_builtin("builtin/random-choice?choices=ABC&seed=3")
    again = parse_builtin("builtin/random-choice?choices=ABC&seed=3")
    texts = [(await chooser.chat(question(seed=seed))).text for seed in range(900)]
    assert texts == [(await again.chat(question(seed=seed))).text for seed in range(900)]
    counts = Counter(texts)
    assert set(counts) == set("ABC")
    assert min(counts.values()) > 240


async def test_random_choice_differs_by_seed_and_question() -> None:
    chooser = parse_builtin("builtin/random-choice")
    assert len({(await chooser.chat(question(f"q{number}", seed=1))).text for number in range(50)}) == 4


@pytest.mark.parametrize("name", ["oracle", "empty", "simulated"])
async def test_who_does_not_answer_here_says_who_does(name: str) -> None:
    with pytest.raises(InvalidInput, match=BUILTINS[name].answered_by):
        await parse_builtin(f"builtin/{name}").chat(question())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("builtin/nonsense", "there are: builtin/oracle"),
        ("gpt-4", "no built-in model"),
        ("builtin/constant?txt=1", "unknown parameter 'txt'; allowed: text"),
        ("builtin/echo?x=1", "allowed: none"),
        ("builtin/simulated?accuracy=1.5", "accuracy: expected a number from 0 to 1, found '1.5'"),
        ("builtin/simulated?accuracy=nan", "accuracy"),
        ("builtin/simulated?seed=1.5", "seed: expected an integer"),
        ("builtin/simulated?seed=1&seed=2", "seed is given twice"),
        ("builtin/simulated?accuracy", "expected key=value"),
        ("builtin/random-choice?choices=", "choices: expected a text of 1 to 26"),
    ],
)
def test_clear_refusals(model: str, words: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_builtin(model)
    assert words in caught.value.message


def test_all_problems_at_once() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_builtin("builtin/simulated?accuracy=2&latency=5&seed=x")
    assert [name in caught.value.message for name in ("accuracy:", "'latency'", "seed:")] == [True] * 3


def test_defaults_and_values() -> None:
    values = parse_builtin("builtin/simulated?latency_ms=50").values
    assert (values["latency_ms"], values["accuracy"], values["seed"]) == (50.0, 0.8, 0)
    assert "in_tokens" not in values


def test_names() -> None:
    assert is_builtin("builtin/echo")
    assert not is_builtin("echo")
    assert set(BUILTINS) == {"oracle", "empty", "constant", "random-choice", "echo", "simulated"}
    assert all(spec.description for spec in BUILTINS.values())


@given(st.text())
def test_no_name_breaks_the_reading(query: str) -> None:
    with suppress(InvalidInput):
        parse_builtin("builtin/simulated?" + query)
