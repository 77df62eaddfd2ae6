"""What docs/operations.md tells operators to do: backup and restore of a stack, and a new master key."""

from __future__ import annotations

import base64
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from google.protobuf.json_format import MessageToDict
from pydantic import SecretStr

from benchgen.client import Client
from benchgen.errors import FailedPrecondition, PermissionDenied
from benchgen.eval.v1 import model_pb2, run_pb2
from services.common import db
from services.common.signing import Signer, Verifier
from services.hub.app import MIGRATIONS
from services.hub.registry.secrets import Vault
from services.hub.rekey import Rekeyed, rekey
from services.local import credentials
from services.local.backup import Place, restore
from services.local.files import PROGRAM_ROOT
from services.local.state import DataDir
from tests.conftest import Database, local

SLOW = "builtin/simulated?accuracy=0.7&latency_ms=300"


@contextmanager
def running(data_dir: Path, *arguments: str) -> Iterator[None]:
    started = local("up", "--detach", *arguments, data_dir=data_dir)
    try:
        assert started.returncode == 0, started.stdout + started.stderr
        yield
    finally:
        local("down", data_dir=data_dir)


@contextmanager
def client_of(data_dir: Path) -> Iterator[Client]:
    stack = DataDir(data_dir)
    settings = stack.settings()
    with Client(settings.address("gateway.grpc"), settings.credentials.api_key) as client:
        yield client


def backup(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "services.local.backup", *arguments],
        cwd=PROGRAM_ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def ended(client: Client, run: run_pb2.Run) -> run_pb2.Run:
    for latest in client.watch(run.name):
        run = latest
    return run


def known(client: Client, run: str) -> dict[str, Any]:
    """All that a user can learn of a run."""
    return {
        "run": MessageToDict(client.get_run(run)),
        "report": MessageToDict(client.report(run)),
        "results": [MessageToDict(result) for result in client.results(run)],
    }


@pytest.mark.timeout(300)
def test_a_restored_stack_has_every_run_and_goes_on_with_those_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So that the shards of the runners that are gone are free soon.
    monkeypatch.setenv("BENCHGEN_LEASE_SECONDS", "2")
    first, second, saved = tmp_path / "first", tmp_path / "second", tmp_path / "backup"
    with running(first), client_of(first) as client:
        client.create_model(
            model_pb2.Model(name="kept", base_url="http://127.0.0.1:9/v1", model_id="m"), secret="hush"
        )
        done = ended(client, client.run("gsm8k-mini", model="builtin/simulated?accuracy=0.5", trials=2))
        under_way = client.run("gsm8k-mini", model=SLOW, trials=8)
        deadline = time.monotonic() + 60
        while client.get_run(under_way.name).progress.recorded < 64:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        before = known(client, done.name)
        assert client.get_run(under_way.name).state == run_pb2.Run.STATE_RUNNING
        made = backup("save", str(saved), "--data-dir", str(first))
        assert made.returncode == 0, made.stderr
    second.mkdir()
    for kept in ("secrets.json", "ports.json"):
        shutil.copy(first / kept, second)
    shutil.rmtree(first)

    with running(second, "--servers-only"):
        restored = backup("restore", str(saved), "--data-dir", str(second))
        assert restored.returncode == 0, restored.stderr
    with running(second), client_of(second) as client:
        assert known(client, done.name) == before
        assert client.get_model("kept").has_secret
        after = ended(client, under_way)
        assert after.state == run_pb2.Run.STATE_SUCCEEDED
        report = client.report(under_way.name)
        assert (report.coverage.planned, report.coverage.scored) == (800, 800)
        # What the backup holds is not overwritten by mistake.
        refused = backup("restore", str(saved), "--data-dir", str(second))
        assert refused.returncode == 1
        assert "has runs already" in refused.stderr


def test_half_a_backup_is_none(tmp_path: Path) -> None:
    (tmp_path / "backup").mkdir()
    (tmp_path / "backup" / "database.dump").write_bytes(b"PGDMP")
    place = Place("postgresql://nobody@127.0.0.1:9/none", "127.0.0.1:9", "", "", False, "", "")
    with pytest.raises(FailedPrecondition, match=r"found no backup\.json"):
        restore(place, tmp_path / "backup")


def new_key() -> SecretStr:
    return SecretStr(base64.b64encode(secrets.token_bytes(32)).decode())


async def test_every_secret_is_sealed_anew(database: Callable[..., Database]) -> None:
    old, new = new_key(), new_key()
    made = database()
    dsn = made.dsn("hub")
    async with db.pool(dsn, MIGRATIONS) as pool, pool.acquire() as connection:
        names = [f"model-{number}" for number in range(7)]
        for name in names:
            await connection.execute(
                "INSERT INTO models (name, request_id, base_url, model_id, max_concurrency, generation, description)"
                " VALUES ($1, gen_random_uuid(), 'http://h/v1', 'm', 1, '{}', '')",
                name,
            )
            await connection.execute(
                "INSERT INTO model_secrets VALUES ($1, $2)", name, Vault(old).encrypt(name, f"of {name}")
            )
        # Registered by a hub that has the new key already, and one that nobody can open.
        await _put(connection, "model-3", Vault(new).encrypt("model-3", "of model-3"))
        await _put(connection, "model-5", Vault(new_key()).encrypt("model-5", "gone"))
        between = Vault(new, old)

        assert await rekey(connection, between) == Rekeyed(5, 1, ["model-5"])
        assert await rekey(connection, between) == Rekeyed(0, 6, ["model-5"])
        rows = await connection.fetch("SELECT model, sealed FROM model_secrets")
        sealed = {row["model"]: row["sealed"] for row in rows}
        assert {n: Vault(new).decrypt(n, sealed[n]) for n in names if n != "model-5"} == {
            n: f"of {n}" for n in names if n != "model-5"
        }
        with pytest.raises(FailedPrecondition):
            Vault(old).decrypt("model-0", sealed["model-0"])

    environment = {
        **os.environ,
        # As an operator does it, who has another role than the hub.
        "BENCHGEN_POSTGRES_DSN": made.dsn(credentials.POSTGRES_ADMIN),
        "BENCHGEN_MASTER_KEY": new.get_secret_value(),
        "BENCHGEN_MASTER_KEY_OLD": old.get_secret_value(),
    }
    command = [sys.executable, "-m", "services.hub.rekey"]
    done = subprocess.run(command, env=environment, cwd=PROGRAM_ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout == "sealed anew: 0; sealed with the master key already: 6\n"
    assert "`model-5`" in done.stderr
    assert new.get_secret_value() not in done.stdout + done.stderr


async def _put(connection: asyncpg.pool.PoolConnectionProxy, model: str, sealed: bytes) -> None:
    await connection.execute("UPDATE model_secrets SET sealed = $2 WHERE model = $1", model, sealed)


def test_two_lease_keys_are_good_while_one_replaces_the_other() -> None:
    old, new, other = (Signer(base64.b64encode(secrets.token_bytes(32)).decode()) for _ in range(3))
    verifier = Verifier(f"{old.public_key},{new.public_key}")
    for signer in (old, new):
        verifier.verify(b"lease", signer.sign(b"lease"), what="lease")
    with pytest.raises(PermissionDenied):
        verifier.verify(b"lease", other.sign(b"lease"), what="lease")
