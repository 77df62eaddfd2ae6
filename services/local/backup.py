"""``python -m services.local.backup save|restore DIR``: PostgreSQL together with the objects.

Of a local stack with ``--data-dir``; of any other with ``BENCHGEN_POSTGRES_DSN`` and ``BENCHGEN_S3_*`` in the
environment, of a role that may read, or write, all schemas and an identity that may do so with all buckets.

Rows name objects, and objects come before the rows that name them and never change. So a backup takes the database
first: every object that the dump names was there before it. A restore puts the objects back first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from benchgen.errors import BenchgenError, FailedPrecondition, Unavailable
from services.common.config import ObjectSettings
from services.common.objects import Bucket
from services.local.credentials import POSTGRES_ADMIN
from services.local.errors import LocalStackError
from services.local.files import private_folder, write_private
from services.local.servers.postgres import binaries
from services.local.servers.seaweed import REGION, access_key
from services.local.settings import BUCKET_PREFIX
from services.local.state import DataDir

if TYPE_CHECKING:
    from minio import Minio

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stack keeps what it knows."""

    dsn: str
    endpoint: str
    access_key: str
    secret_key: str
    secure: bool
    region: str
    prefix: str

    def run(self, program: str, *arguments: str) -> str:
        """Run a program of PostgreSQL's on the database; the password is not on its command line.

        :raises Unavailable: it failed; the message has its words.
        """
        parts = urlsplit(self.dsn)
        address = f"postgresql://{parts.username}@{parts.hostname}:{parts.port or 5432}{parts.path}"
        done = subprocess.run(
            [_program(program), f"--dbname={address}", *arguments],
            env={**os.environ, "PGPASSWORD": unquote(parts.password or "")},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise Unavailable(f"{program}: {done.stderr.strip()}")
        return done.stdout

    def objects(self) -> Minio:
        """A client of the object store."""
        from minio import Minio

        return Minio(
            self.endpoint,
            access_key=self.access_key,
            secret_key=self.secret_key,
            secure=self.secure,
            region=self.region,
        )


def _program(name: str) -> str:
    """Those of the wheel, which fit its server; without it, those of this machine."""
    try:
        return str(binaries() / name)
    except LocalStackError:
        return shutil.which(name) or name


def local_place(data: DataDir) -> Place:
    """The stack of a data directory.

    :raises FailedPrecondition: its servers do not run.
    """
    if data.state() is None:
        raise FailedPrecondition(
            f"nothing runs in {data.path}: start it, or `up --servers-only` for a restore"
        )
    settings = data.settings()
    return Place(
        settings.postgres().dsn(POSTGRES_ADMIN),
        settings.address("seaweed.s3"),
        access_key("admin"),
        settings.credentials.objects["admin"],
        secure=False,
        region=REGION,
        prefix=BUCKET_PREFIX,
    )


def place_of_environ() -> Place:
    """The stack that the environment names.

    :raises InvalidInput: settings are missing.
    """
    s3 = ObjectSettings.from_environ()
    dsn = os.environ.get("BENCHGEN_POSTGRES_DSN", "")
    if not dsn:
        raise FailedPrecondition("BENCHGEN_POSTGRES_DSN: expected the address of the database, found nothing")
    secret = s3.s3_secret_key.get_secret_value()
    return Place(dsn, s3.s3_endpoint, s3.s3_access_key, secret, s3.s3_secure, s3.s3_region, s3.bucket_prefix)


def save(place: Place, folder: Path) -> str:
    """Back up into a folder; objects that it has from an earlier backup are not fetched again."""
    private_folder(folder)
    marker = folder / "backup.json"
    marker.unlink(missing_ok=True)
    began = time.time()
    place.run("pg_dump", "--format=custom", f"--file={folder / 'database.dump'}")
    (folder / "database.dump").chmod(0o600)
    client = place.objects()
    counts: dict[str, int] = {}
    fetched = 0

    def fetch(bucket: str, key: str, size: int, path: Path) -> bool:
        if path.exists() and path.stat().st_size == size:
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        # Fetched beside its place and renamed: a file that is there is whole.
        client.fget_object(bucket, key, str(path))
        return True

    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for bucket in Bucket:
            name = place.prefix + bucket
            there = [
                (entry.object_name, entry.size)
                for entry in client.list_objects(name, recursive=True)
                if not entry.is_dir
            ]
            work = [
                threads.submit(fetch, name, key, size, folder / "objects" / bucket / key)
                for key, size in there
            ]
            fetched += sum(future.result() for future in work)
            counts[bucket] = len(there)
    document = {"began_at": began, "ended_at": time.time(), "objects": counts}
    write_private(marker, json.dumps(document, indent=1) + "\n")
    size = (folder / "database.dump").stat().st_size
    return f"saved {size:,} bytes of database and {sum(counts.values()):,} objects, {fetched:,} of them new"


def restore(place: Place, folder: Path) -> str:
    """Put a backup into a stack without runs, whose services are stopped and whose roles are there.

    :raises FailedPrecondition: the backup is not complete, or there are runs already.
    """
    if not (folder / "backup.json").exists():
        raise FailedPrecondition(f"{folder}: expected a complete backup, found no backup.json")
    if _has_runs(place):
        raise FailedPrecondition("the database has runs already: restore into an empty one")
    client = place.objects()
    put = 0
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        for bucket in Bucket:
            name = place.prefix + bucket
            if not client.bucket_exists(name):
                client.make_bucket(name)
            work = [
                threads.submit(client.fput_object, name, key, str(path))
                for key, path in _files(folder / "objects" / bucket)
            ]
            for future in work:
                future.result()
            put += len(work)
    place.run(
        "pg_restore",
        "--clean",
        "--if-exists",
        "--exit-on-error",
        "--single-transaction",
        str(folder / "database.dump"),
    )
    return f"restored the database and {put:,} objects"


def _has_runs(place: Place) -> bool:
    def holds(condition: str) -> bool:
        answer = place.run(
            "psql", "--no-psqlrc", "--tuples-only", "--no-align", f"--command=SELECT {condition}"
        )
        return answer.strip() == "t"

    return holds("to_regclass('hub.runs') IS NOT NULL") and holds("EXISTS (SELECT FROM hub.runs)")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        # What an interrupted fetch left is no object.
        if path.is_file() and not path.name.endswith(".part.minio"):
            yield str(path.relative_to(folder)), path


def main(arguments: list[str]) -> int:
    """The exit code: 0 done, 1 when it failed; nothing half-done counts as a backup."""
    parser = argparse.ArgumentParser(
        prog="backup", description="Back up PostgreSQL together with the objects."
    )
    parser.add_argument("command", choices=["save", "restore"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data-dir", type=Path, help="of a local stack whose servers run")
    options = parser.parse_args(arguments)
    # Here, because it takes a quarter of a second.
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    try:
        place = local_place(DataDir(options.data_dir)) if options.data_dir else place_of_environ()
        print((save if options.command == "save" else restore)(place, options.folder))
    except (BenchgenError, MinioException, HTTPError, OSError) as error:
        print(f"backup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
