"""Environments and versions in PostgreSQL: how they are found, and how they are listed.

Uploads on their way to being versions are in ``services.hub.publishing.ledger``.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import asyncpg
import orjson

from benchgen.errors import FailedPrecondition, InvalidInput, NotFound
from services.common.queries import load_queries
from services.hub.publishing.domain import (
    Environment,
    Reference,
    SolutionScores,
    Verdict,
    Verification,
    Version,
    parse_reference,
)
from services.hub.registry.store import Conn, Queryable, read_generation

SQL = load_queries(Path(__file__).with_name("queries.sql"))


async def find_version(conn: Conn, ref: str) -> Version:
    """The version that a new run means: ``name@version``, ``name`` (the latest not yanked), or a digest.

    :raises NotFound: there is none; says what there is.
    :raises FailedPrecondition: it was yanked, and is named otherwise than by its digest.
    """
    version = await get_version(conn, ref)
    if version.yanked and ref != version.digest:
        raise FailedPrecondition(
            f"{version.name} was yanked; it can still be run by its digest, {version.digest}"
        )
    return version


async def get_version(conn: Conn, ref: str) -> Version:
    """The same for reading: a yanked version is found by its full name, too.

    :raises NotFound: there is none; says what there is.
    """
    reference = parse_reference(ref)
    row = await _version_row(conn, reference)
    if row is None:
        raise NotFound(await _missing(conn, reference))
    return read_version(row)


async def known_version(conn: Queryable, digest: str) -> Version | None:
    """The version with this digest, if it is published."""
    row = await conn.fetchrow(SQL["version_by_digest"], digest)
    return None if row is None else read_version(row)


async def digest_of(conn: Queryable, environment: str, version: str) -> str | None:
    """The digest that is published under a name and version, if any."""
    row = await conn.fetchrow(SQL["version_by_name"], environment, version)
    return None if row is None else row["digest"]


async def next_version(conn: Queryable, environment: str) -> str:
    """The version that an upload becomes which names none: a minor version after the highest there is."""
    row = await conn.fetchrow(SQL["highest_version"], environment)
    if row is None:
        return "1.0.0"
    major, minor, _ = row["version"].partition("+")[0].partition("-")[0].split(".")
    return f"{major}.{int(minor) + 1}.0"


async def _version_row(conn: Conn, reference: Reference) -> asyncpg.Record | None:
    if reference.digest:
        return await conn.fetchrow(SQL["version_by_digest"], reference.digest)
    if reference.version:
        return await conn.fetchrow(SQL["version_by_name"], reference.environment, reference.version)
    return await conn.fetchrow(SQL["latest_version"], reference.environment)


async def _missing(conn: Conn, reference: Reference) -> str:
    """What to say of a version that is not there."""
    if reference.digest:
        return f"no version has the digest {reference.digest}"
    environment = reference.environment
    if await conn.fetchrow(SQL["environment"], environment) is None:
        return await _no_environment(conn, environment)
    known = [row["version"] for row in await conn.fetch(SQL["version_numbers"], environment)]
    if not known:
        return f"every version of `{environment}` was yanked"
    return f"`{environment}` has no version {reference.version[:80]!r}; the newest are {', '.join(known)}"


async def _no_environment(conn: Conn, name: str) -> str:
    names = [row["name"] for row in await conn.fetch(SQL["environment_names"])]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"no environment `{name[:120]}`{hint}"


async def get_environment(conn: Conn, name: str) -> Environment:
    """:raises NotFound: there is none; names one that is spelled alike."""
    row = await conn.fetchrow(SQL["environment"], name)
    if row is None:
        raise NotFound(await _no_environment(conn, name))
    return _read_environment(row)


async def list_environments(conn: Conn, after: str | None, limit: int) -> list[Environment]:
    """Environments by name, after a name."""
    return [_read_environment(row) for row in await conn.fetch(SQL["list_environments"], after, limit)]


async def list_versions(
    conn: Conn, environment: str, after: tuple[str, str] | None, limit: int
) -> list[Version]:
    """Versions that are not yanked, the highest first.

    :param after: precedence and version of the last one before.
    :raises NotFound: there is no such environment.
    """
    await get_environment(conn, environment)
    precedence, version = after or (None, None)
    rows = await conn.fetch(SQL["list_versions"], environment, precedence, version, limit)
    return [read_version(row) for row in rows]


async def yank(conn: Conn, ref: str) -> Version:
    """Hide the version ``name@version``.

    :raises NotFound: there is no such version.
    :raises InvalidInput: the version is not named in full.
    """
    if not parse_reference(ref).version:
        raise InvalidInput(f"name: expected name@version, found {ref[:120]!r}")
    async with conn.transaction():
        version = await get_version(conn, ref)
        # Publishing of the same environment waits, so that both agree on which version is the latest.
        await conn.execute(SQL["lock_environment"], version.environment)
        await conn.execute(SQL["yank"], version.environment, version.version)
        await conn.execute(SQL["point_at_latest"], version.environment)
        return await get_version(conn, version.digest)


def read_version(row: asyncpg.Record) -> Version:
    """A row of ``versions``."""
    return Version(
        digest=row["digest"],
        environment=row["environment"],
        version=row["version"],
        inputs_digest=row["inputs_digest"],
        targets_digest=row["targets_digest"],
        solutions_digest=row["solutions_digest"],
        scoring_digest=row["scoring_digest"],
        scoring_json=row["scoring_json"],
        materialiser=row["materialiser"],
        cases=row["cases"],
        primary_rule=row["primary_rule"],
        split=row["split"],
        title=row["title"],
        description=row["description"],
        category=row["category"],
        tags=tuple(row["tags"]),
        license=row["license"],
        generation=read_generation(row["generation"]),
        manifest_yaml=row["manifest_yaml"],
        harness_json=row["harness_json"],
        competition_run=row["competition_run"],
        competition_about=row["competition_about"],
        verification=read_verification(row["verification"]),
        created_at=row["created_at"],
        yanked=row["yanked_at"] is not None,
    )


def read_verification(stored: str) -> Verification:
    """A verification as it is stored."""
    fields: dict[str, Any] = orjson.loads(stored)
    solutions = tuple(SolutionScores(**scores) for scores in fields.get("solutions", ()))
    return Verification(**{**fields, "verdict": Verdict(fields["verdict"]), "solutions": solutions})


def _read_environment(row: asyncpg.Record) -> Environment:
    return Environment(
        name=row["name"],
        latest=row["latest_version"],
        title=row["title"] or "",
        description=row["description"] or "",
        category=row["category"] or "",
        tags=tuple(row["tags"] or ()),
        cases=row["cases"] or 0,
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
