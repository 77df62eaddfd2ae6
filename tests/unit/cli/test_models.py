"""`benchgen model`."""

from __future__ import annotations

import pytest

from tests.unit.cli.conftest import Command
from tests.unit.cli.platform import Platform

SECRET = "sk-very-secret-indeed"
ADD = ("model", "add", "gpt", "--base-url", "https://models.example/v1", "--model", "gpt-4.1-mini")


def test_a_model_with_everything(
    benchgen: Command, platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THE_KEY", SECRET)
    ended = benchgen(
        *ADD, "--api-key-env", "THE_KEY", "--price-in", "0.40", "--price-out", "1.6", "--max-concurrency", "8"
    )
    assert ended.code == 0
    assert ended.out == "added gpt: gpt-4.1-mini at https://models.example/v1\n"
    assert "benchgen model test gpt" in ended.err
    assert platform.secrets["gpt"] == SECRET
    shown = benchgen("model", "show", "gpt")
    assert "input $0.40, output $1.6 per million tokens" in shown.out
    listed = benchgen("model", "list")
    assert "stored" in listed.out
    assert SECRET not in shown.out + listed.out + ended.out + ended.err
    document = benchgen("model", "show", "gpt", "--json").json()
    assert document["price_usd_per_mtok"] == {"input": "0.40", "output": "1.6", "cached": None}
    assert document["max_concurrency"] == 8


def test_unknown_prices_stay_unknown(benchgen: Command) -> None:
    document = benchgen(*ADD, "--json").json()
    assert document["price_usd_per_mtok"]["input"] is None
    assert document["has_secret"] is False
    assert "unknown per million tokens" in benchgen("model", "show", "gpt").out


@pytest.mark.parametrize("given", [SECRET, "gsk_0123456789abcdef"])
def test_a_key_in_place_of_a_variable_is_not_repeated(benchgen: Command, given: str) -> None:
    ended = benchgen(*ADD, "--api-key-env", given)
    assert ended.code == 2
    assert given not in ended.err
    assert "takes the name of an environment variable" in ended.err


def test_a_variable_that_is_not_set(benchgen: Command) -> None:
    assert "the variable NO_KEY is not set" in benchgen(*ADD, "--api-key-env", "NO_KEY").err


@pytest.mark.parametrize(
    ("url", "warned"),
    [
        ("http://models.example/v1", True),
        ("https://models.example/v1", False),
        ("http://127.0.0.1:8000/v1", False),
        ("http://[::1]:8000/v1", False),
        ("http://localhost:8000/v1", False),
    ],
)
def test_keys_in_the_clear_are_warned_of(
    benchgen: Command, monkeypatch: pytest.MonkeyPatch, url: str, warned: bool
) -> None:
    monkeypatch.setenv("THE_KEY", SECRET)
    ended = benchgen("model", "add", "m", "--base-url", url, "--model", "m", "--api-key-env", "THE_KEY")
    assert ended.code == 0
    assert ("unencrypted" in ended.err) == warned


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--price-in", "-1"), "expected dollars per million tokens"),
        (("--price-out", "cheap"), "expected dollars per million tokens"),
        (("--base-url", "models.example"), "expected http://... or https://..."),
        (("--base-url", "https://me:pw@models.example"), "expected no user or password"),
        (("--max-concurrency", "0"), "not in the range"),
    ],
)
def test_wrong_input(benchgen: Command, arguments: tuple[str, ...], message: str) -> None:
    ended = benchgen(*ADD, *arguments)
    assert ended.code == 2
    assert message in ended.err


def test_a_taken_name(benchgen: Command) -> None:
    benchgen(*ADD)
    ended = benchgen(*ADD)
    assert ended.code == 2
    assert 'there is a model "gpt" already' in ended.err


def test_a_model_is_tested(benchgen: Command) -> None:
    benchgen(*ADD)
    ended = benchgen("model", "test", "gpt")
    assert ended.code == 0
    assert "pong" in ended.out
    assert "7 in, 1 out" in ended.out
    benchgen("model", "add", "dead", "--base-url", "http://127.0.0.1:9/v1", "--model", "m")
    ended = benchgen("model", "test", "dead")
    assert ended.code == 3
    assert "dead does not answer: connection refused" in ended.err
    assert benchgen("model", "test", "dead", "--json").json()["ok"] is False


def test_a_model_is_removed(benchgen: Command) -> None:
    benchgen(*ADD)
    assert benchgen("model", "rm", "gpt").code == 0
    ended = benchgen("model", "rm", "gpt")
    assert ended.code == 2
    assert 'there is no model "gpt"' in ended.err
