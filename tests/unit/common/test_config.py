"""Settings: all that is wrong is said at once, and no secret with it."""

from __future__ import annotations

import pytest
from pydantic import SecretStr

from benchgen.errors import InvalidInput
from services.common.auth import hash_token
from services.common.config import RpcSettings
from services.runner.config import RunnerSettings
from services.scorer.config import ScorerSettings

KEY = "A" * 43 + "="
GOOD = {
    "BENCHGEN_GRPC_LISTEN": "127.0.0.1:9001",
    "BENCHGEN_POSTGRES_DSN": "postgresql://scorer:hunter2@db/benchgen",
    "BENCHGEN_LEASE_PUBLIC_KEY": KEY,
    "BENCHGEN_PRINCIPAL_PUBLIC_KEY": KEY,
    "BENCHGEN_S3_ENDPOINT": "s3:8333",
    "BENCHGEN_S3_ACCESS_KEY": "scorer",
    "BENCHGEN_S3_SECRET_KEY": "hunter3",
    "BENCHGEN_S3_SECURE": "1",
    "BENCHGEN_SERVICE_TOKEN": "hunter4",
    "BENCHGEN_PEER_TOKENS": f"hub={hash_token('a')}, runner = {hash_token('b').upper()},",
}


def test_settings_that_are_right() -> None:
    settings = ScorerSettings.from_environ(GOOD | {"BENCHGEN_HUB_ADDRESS": "of another service", "HOME": "/"})
    assert settings.grpc_listen == "127.0.0.1:9001"
    assert settings.postgres_dsn.get_secret_value() == "postgresql://scorer:hunter2@db/benchgen"
    assert settings.s3_secure is True
    assert settings.peers() == {hash_token("a"): "hub", hash_token("b"): "runner"}
    # What is not set, or set to nothing, has its default.
    assert ScorerSettings.from_environ(GOOD | {"BENCHGEN_LOG_LEVEL": ""}).log_level == "info"
    assert settings.bucket_prefix == "benchgen-"


def test_secrets_are_not_shown() -> None:
    shown = repr(ScorerSettings.from_environ(GOOD))
    assert "hunter" not in shown


def test_everything_that_is_wrong_is_said_at_once() -> None:
    wrong = {
        "BENCHGEN_GRPC_LISTEN": "hunter5",
        "BENCHGEN_HTTP_LISTEN": "here:70000",
        "BENCHGEN_LOG_LEVEL": "hunter6",
        "BENCHGEN_S3_SECURE": "hunter7",
        "BENCHGEN_POSTGRES_CONNECTIONS": "hunter8",
        "BENCHGEN_PEER_TOKENS": "hub:hunter9",
        "BENCHGEN_LEASE_PUBLIC_KEY": "hunter10",
    }
    given = {name: value for name, value in GOOD.items() if name != "BENCHGEN_POSTGRES_DSN"} | wrong
    with pytest.raises(InvalidInput) as caught:
        ScorerSettings.from_environ(given)
    first, *lines = caught.value.message.splitlines()
    assert first == "settings cannot be used:"
    assert sorted(line.split(":")[0].strip() for line in lines) == sorted([*wrong, "BENCHGEN_POSTGRES_DSN"])
    # Any of them may hold what was meant for another.
    assert "hunter" not in caught.value.message


@pytest.mark.parametrize("address", ["", "host", ":80", "host:", "host:x", "host:65536", "host:-1"])
def test_what_is_no_address(address: str) -> None:
    with pytest.raises(InvalidInput, match="BENCHGEN_S3_ENDPOINT: "):
        ScorerSettings.from_environ(GOOD | {"BENCHGEN_S3_ENDPOINT": address})


@pytest.mark.parametrize(
    "peers", ["hub", "hub=", "=" + "a" * 64, "hub=" + "a" * 63, f"hub={'a' * 64};runner={'b' * 64}"]
)
def test_what_are_no_peers(peers: str) -> None:
    with pytest.raises(InvalidInput, match="BENCHGEN_PEER_TOKENS: "):
        RpcSettings.from_environ({"BENCHGEN_PEER_TOKENS": peers})
    with pytest.raises(ValueError, match="expected identity="):
        RpcSettings(peer_tokens=peers, service_token=SecretStr(""))


@pytest.mark.parametrize("calls", ["0", "100001", "many"])
def test_bounds(calls: str) -> None:
    with pytest.raises(InvalidInput, match="BENCHGEN_RUNNER_CALLS"):
        RunnerSettings.from_environ({"BENCHGEN_RUNNER_CALLS": calls})
