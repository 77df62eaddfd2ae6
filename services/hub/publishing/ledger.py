"""Publications in PostgreSQL. Every change of state is a compare-and-set on the claim's token."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import orjson

from benchgen.bundle.problems import Problem
from benchgen.errors import NotFound
from services.common.claims import ClaimLost
from services.hub.publishing import store
from services.hub.publishing.domain import (
    MOST_DEATHS,
    Claim,
    Publication,
    State,
    Verification,
    Version,
    VersionContent,
    Wanted,
    precedence,
)
from services.hub.publishing.store import SQL
from services.hub.registry.store import Conn, Queryable

_NOTHING_WANTED = Wanted("", "")
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


async def add(
    conn: Queryable, request_id: UUID, upload_sha256: str, upload_bytes: int, wanted: Wanted = _NOTHING_WANTED
) -> Publication:
    """Enter an upload; the publication of an earlier request with the same id is returned as it is."""
    ident = "p" + "".join(secrets.choice(_ALPHABET) for _ in range(12))
    await conn.execute(SQL["insert_publication"], ident, request_id, upload_sha256, upload_bytes, *wanted)
    publication = await of_request(conn, request_id)
    assert publication is not None
    return publication


async def of_request(conn: Queryable, request_id: UUID) -> Publication | None:
    """The publication that a request made, if it did."""
    row = await conn.fetchrow(SQL["publication_of_request"], request_id)
    return None if row is None else _read(row)


async def wanted_uploads(conn: Queryable, uploads: Iterable[str]) -> set[str]:
    """Those of these uploads, by sha256, whose publication is under way."""
    rows = await conn.fetch(SQL["wanted_uploads"], list(uploads))
    return {row["upload_sha256"] for row in rows}


async def get(conn: Queryable, ident: str) -> Publication:
    """:raises NotFound: there is no such publication."""
    row = await conn.fetchrow(SQL["publication"], ident)
    if row is None:
        raise NotFound(f"no publication {ident[:80]!r}")
    return _read(row)


async def claim(conn: Queryable, seconds: float) -> Claim | None:
    """Take the publication that has waited longest, for so many seconds; None when there is nothing to do."""
    token = uuid4()
    row = await conn.fetchrow(SQL["claim"], token, timedelta(seconds=seconds))
    return None if row is None else _claim(row, token)


def _claim(row: asyncpg.Record, token: UUID) -> Claim:
    return Claim(row["id"], token, row["upload_sha256"], Wanted(row["wanted_name"], row["wanted_version"]))


async def renew(conn: Queryable, held: Claim, seconds: float) -> bool:
    """Hold on to a claim; False when somebody else has it."""
    return (
        await conn.fetchval(SQL["renew"], held.publication, held.token, timedelta(seconds=seconds))
        is not None
    )


async def release(conn: Queryable, held: Claim, *, pause: float) -> None:
    """Hand a publication back, to be taken again after a pause in seconds; does nothing without the claim."""
    await conn.execute(SQL["release"], held.publication, held.token, timedelta(seconds=pause))


async def advance(
    conn: Queryable,
    held: Claim,
    state: State,
    *,
    digest: str | None = None,
    environment_version: str | None = None,
    cases: int | None = None,
) -> None:
    """Enter a state, and what has become known with it.

    :raises ClaimLost: somebody else works on it.
    """
    row = (held.publication, held.token, state, digest, environment_version, cases)
    _expect(await conn.fetchval(SQL["advance"], *row))


async def count_death(conn: Queryable, held: Claim, *, pause: float) -> bool:
    """Hand a publication back after its work ended without an answer; False when that was once too often."""
    row = (held.publication, held.token, timedelta(seconds=pause), MOST_DEATHS)
    return await conn.fetchval(SQL["count_death"], *row) is not None


async def reject(
    conn: Queryable, held: Claim, problems: Sequence[Problem], verification: Verification | None = None
) -> None:
    """End a publication with what is wrong.

    :raises ClaimLost: somebody else works on it.
    """
    stored = None if verification is None else _dump(verification)
    # Names in a bad bundle can hold what PostgreSQL cannot.
    listed = orjson.dumps(list(problems[:100])).replace(rb"\u0000", rb"\ufffd")
    _expect(await conn.fetchval(SQL["reject"], held.publication, held.token, listed.decode(), stored))


async def finish_known(conn: Queryable, held: Claim, version: Version) -> None:
    """End a publication of content that was published before.

    :raises ClaimLost: somebody else works on it.
    """
    await _finish(conn, held, version, version.verification, already=True)


async def publish(conn: Conn, held: Claim, content: VersionContent, verification: Verification) -> str | None:
    """Make the version, point its environment at the latest, and end the publication: all or nothing.

    :returns: the digest that the name and version were taken with meanwhile, if so; nothing was done then.
    :raises ClaimLost: somebody else works on it.
    """
    async with conn.transaction():
        await conn.execute(SQL["insert_environment"], content.environment)
        await conn.execute(SQL["lock_environment"], content.environment)
        already = not await _insert_version(conn, content, verification)
        if already:
            taken = await store.digest_of(conn, content.environment, content.version)
            if taken != content.digest:
                return taken
        await conn.execute(SQL["point_at_latest"], content.environment)
        await _finish(conn, held, content, verification, already=already)
    return None


async def _insert_version(conn: Conn, content: VersionContent, verification: Verification) -> bool:
    row = await conn.fetchval(
        SQL["insert_version"],
        content.digest,
        content.environment,
        content.version,
        precedence(content.version),
        content.inputs_digest,
        content.targets_digest,
        content.solutions_digest,
        content.scoring_digest,
        content.scoring_json,
        content.materialiser,
        content.cases,
        content.primary_rule,
        content.split,
        content.title,
        content.description,
        content.category,
        list(content.tags),
        content.license,
        _dump(content.generation),
        _dump(verification),
        content.manifest_yaml,
        content.harness_json,
        content.competition_run,
        content.competition_about,
    )
    return row is not None


async def _finish(
    conn: Queryable, held: Claim, content: VersionContent, verification: Verification, *, already: bool
) -> None:
    values = (content.digest, content.name, content.cases, _dump(verification), already)
    _expect(await conn.fetchval(SQL["finish"], held.publication, held.token, *values))


def _expect(changed: bool | None) -> None:
    if changed is None:
        raise ClaimLost


def _dump(value: object) -> str:
    return orjson.dumps(value).decode()


def _read(row: asyncpg.Record) -> Publication:
    return Publication(
        id=row["id"],
        state=State(row["state"]),
        problems=tuple(Problem(**problem) for problem in orjson.loads(row["problems"])),
        digest=row["digest"] or "",
        environment_version=row["environment_version"] or "",
        cases=row["cases"] or 0,
        verification=None if row["verification"] is None else store.read_verification(row["verification"]),
        already_published=row["already_published"],
        created_at=row["created_at"],
    )
