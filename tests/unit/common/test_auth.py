"""Tokens of services, and principals that the gateway vouches for."""

from __future__ import annotations

import base64
import secrets
import time

import orjson
import pytest

from benchgen.errors import PermissionDenied, Unauthenticated
from services.common import auth
from services.common.auth import Principal, Scope, hash_token, identify, open_principal, seal_principal
from services.common.signing import Signer, Verifier


def new_key() -> Signer:
    return Signer(base64.b64encode(secrets.token_bytes(32)).decode())


GATEWAY = new_key()
ADA = Principal("key-1", frozenset({Scope.READ, Scope.RUN}))


def opened(sealed: bytes) -> Principal:
    return open_principal(sealed, Verifier(GATEWAY.public_key))


def sealed(expires: float) -> bytes:
    body = orjson.dumps({"key": "key-1", "scopes": ["read"], "expires": expires})
    return GATEWAY.sign(body) + body


def test_a_principal_arrives_as_it_was_sealed() -> None:
    assert opened(seal_principal(ADA, GATEWAY)) == ADA


def test_a_principal_does_not_last() -> None:
    assert opened(sealed(time.time() + 5)).key_id == "key-1"
    # Clocks differ; not by as much as this.
    with pytest.raises(PermissionDenied, match="expired"):
        opened(sealed(time.time() - 600))
    body = orjson.loads(seal_principal(ADA, GATEWAY)[64:])
    assert 0 < body["expires"] - time.time() <= 60


def test_a_principal_of_somebody_else() -> None:
    with pytest.raises(PermissionDenied, match="principal"):
        opened(seal_principal(ADA, new_key()))


@pytest.mark.parametrize("place", [0, 63, 64, 80, -1])
def test_a_principal_with_a_bit_changed(place: int) -> None:
    forged = bytearray(seal_principal(ADA, GATEWAY))
    forged[place] ^= 1
    with pytest.raises(PermissionDenied):
        opened(bytes(forged))


@pytest.mark.parametrize("size", [0, 10, 64, 65])
def test_a_principal_that_was_cut(size: int) -> None:
    with pytest.raises(PermissionDenied):
        opened(seal_principal(ADA, GATEWAY)[:size])


def test_scopes() -> None:
    ADA.require(Scope.READ)
    with pytest.raises(PermissionDenied, match="lacks the scope `admin`") as caught:
        ADA.require(Scope.ADMIN)
    assert caught.value.metadata == {"scope": "admin"}


async def test_the_principal_behind_a_call() -> None:
    assert not auth.has_scope(Scope.READ)
    with pytest.raises(PermissionDenied, match="carries no principal"):
        auth.require(Scope.READ)
    token = auth.principal.set(ADA)
    try:
        auth.require(Scope.RUN)
        assert auth.has_scope(Scope.READ)
        assert not auth.has_scope(Scope.ANSWERS)
        with pytest.raises(PermissionDenied):
            auth.require(Scope.ANSWERS)
    finally:
        auth.principal.reset(token)


def test_identities_by_token() -> None:
    peers = {hash_token("hub's"): "hub", hash_token("runner's"): "runner", hash_token("old"): "hub"}
    assert [identify(token, peers) for token in ("hub's", "runner's", "old")] == ["hub", "runner", "hub"]
    for token in ("", "hub", "hub's ", hash_token("hub's")):
        with pytest.raises(Unauthenticated):
            identify(token, peers)
    with pytest.raises(Unauthenticated):
        identify("", {})
