"""``python -m services.hub.rekey``: seal every secret with the master key that is sealed with the old one.

Reads ``BENCHGEN_POSTGRES_DSN``, ``BENCHGEN_MASTER_KEY`` and ``BENCHGEN_MASTER_KEY_OLD``. Hubs may run meanwhile, and it
may be run again: what is sealed with the master key already is left alone.
"""

from __future__ import annotations

import asyncio
import sys
from typing import NamedTuple

import asyncpg
from pydantic import SecretStr

from benchgen.errors import BenchgenError, FailedPrecondition
from services.common import db
from services.common.config import Settings
from services.hub.registry import store
from services.hub.registry.secrets import Vault

_PAGE = 500


class RekeySettings(Settings):
    """Where the secrets are, and the two keys."""

    postgres_dsn: SecretStr
    master_key: SecretStr
    master_key_old: SecretStr


class Rekeyed(NamedTuple):
    """What became of the secrets; ``lost`` are the models whose secret neither key opens."""

    sealed: int
    current: int
    lost: list[str]


async def rekey(conn: store.Conn, vault: Vault) -> Rekeyed:
    """Seal anew, one by one; whatever is registered meanwhile is sealed with the master key by the hubs."""
    sealed = current = 0
    lost: list[str] = []
    last = ""
    while page := await store.secrets_after(conn, last, _PAGE):
        for secret in page:
            if vault.is_current(secret.sealed):
                current += 1
                continue
            try:
                opened = vault.decrypt(secret.model, secret.sealed)
            except FailedPrecondition:
                lost.append(secret.model)
                continue
            sealed += await store.replace_secret(conn, secret, vault.encrypt(secret.model, opened))
        last = page[-1].model
    return Rekeyed(sealed, current, lost)


async def _run(settings: RekeySettings) -> Rekeyed:
    vault = Vault(settings.master_key, settings.master_key_old)
    # Whoever does it need not be the hub: a superuser does not find its schema by itself.
    connection = await asyncpg.connect(
        settings.postgres_dsn.get_secret_value(), timeout=10, server_settings={"search_path": "hub"}
    )
    try:
        return await rekey(connection, vault)
    finally:
        await connection.close()


def main() -> int:
    """The exit code: 0 when the old key is not needed any more, 1 when some secret is lost, 2 for bad settings."""
    try:
        done = asyncio.run(_run(RekeySettings.from_environ()))
    except BenchgenError as error:
        print(f"rekey: {error}", file=sys.stderr)
        return 2
    except (*db.TRANSIENT, TimeoutError) as error:
        print(f"rekey: PostgreSQL: {error or type(error).__name__}; run it again", file=sys.stderr)
        return 1
    print(f"sealed anew: {done.sealed}; sealed with the master key already: {done.current}")
    for model in done.lost:
        print(f"neither key opens the secret of `{model}`: register the model again", file=sys.stderr)
    return 1 if done.lost else 0


if __name__ == "__main__":
    sys.exit(main())
