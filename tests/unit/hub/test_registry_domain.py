"""What makes a model acceptable, and secrets at rest."""

from __future__ import annotations

import base64
import secrets
from dataclasses import replace

import pytest
from pydantic import SecretStr

from benchgen.errors import FailedPrecondition, InvalidInput
from services.hub.registry.domain import Generation, ModelRow, Price, checked_model
from services.hub.registry.secrets import Vault

MODEL = ModelRow(
    name="gpt",
    base_url="http://127.0.0.1:8000/v1",
    model_id="m",
    price=Price(),
    max_concurrency=0,
    generation=Generation(),
    description="",
    has_secret=False,
)


def vault() -> Vault:
    return Vault(SecretStr(base64.b64encode(secrets.token_bytes(32)).decode()))


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("http://127.0.0.1:8000/v1//", "http://127.0.0.1:8000/v1"),
        ("https://host", "https://host"),
        ("https://host/v1/?api-version=2", "https://host/v1?api-version=2"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1"),
    ],
)
def test_addresses_are_kept_without_a_trailing_slash(given: str, kept: str) -> None:
    assert checked_model(replace(MODEL, base_url=given), "").base_url == kept


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host/v1",
        "ftp://host/v1",
        "https:///v1",
        "https://host/v1#part",
        "https://host/v1#",
        "https://host:99999/v1",
        "https://host:0/v1",
        "https://host/a b",
        "https://host/\n",
        "https://[::1/v1",
        "https://höst/v1",
        "https://host/v1/chat/completions/",
        "https://host/" + "x" * 2_000,
    ],
)
def test_other_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidInput, match="base_url"):
        checked_model(replace(MODEL, base_url=address), "")


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidInput, match="no user or password") as caught:
        checked_model(replace(MODEL, base_url="https://me:hunter2@host/v1"), "")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "GPT", "-gpt", "gpt/4", "gpt 4", "builtin/echo", "x" * 101, "gpt\n"])
def test_names(name: str) -> None:
    with pytest.raises(InvalidInput, match="name: expected"):
        checked_model(replace(MODEL, name=name), "")


@pytest.mark.parametrize("price", ["0", "0.15", "1000", "0.000001"])
def test_prices(price: str) -> None:
    assert Price(price).problems() == []


@pytest.mark.parametrize("price", ["-1", "1e3", "NaN", "inf", ".5", "1.", "1,5", "$1", "", "٣"])
def test_other_prices_are_refused(price: str) -> None:
    assert len(Price(price, price, price).problems()) == 3


def test_a_secret_opens_for_its_model_and_key_only() -> None:
    one = vault()
    sealed = one.encrypt("gpt", "sk-1")
    assert one.decrypt("gpt", sealed) == "sk-1"
    assert one.encrypt("gpt", "sk-1") != sealed
    with pytest.raises(FailedPrecondition, match="another master key"):
        vault().decrypt("gpt", sealed)
    damaged = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for name, blob in (("other", sealed), ("gpt", damaged), ("gpt", sealed[:10])):
        with pytest.raises(FailedPrecondition) as caught:
            one.decrypt(name, blob)
        assert "sk-1" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "not base64!", base64.b64encode(b"short").decode()])
def test_a_wrong_master_key_is_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(InvalidInput, match="32 bytes in base64") as caught:
        Vault(SecretStr(key))
    assert not key or key not in str(caught.value)
