"""The work between an upload and a version: one claimed publication at a time.

::

    UPLOADED -> VALIDATING -> MATERIALISING -> VERIFYING -> READY | REJECTED

Objects are stored first and the version's row last, so whatever dies in between leaves nothing that could be
run. Every step can be done again: objects are named by digest.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import structlog

from benchgen.bundle.competition.publish import ASSETS
from benchgen.bundle.problems import Problem
from benchgen.errors import InvalidInput
from services.common.claims import ClaimLost, kept
from services.common.objects import Bucket, ObjectStore
from services.common.process import TRANSIENT
from services.hub import metrics
from services.hub.publishing import domain, ledger, store
from services.hub.publishing.domain import (
    Built,
    Claim,
    State,
    Verdict,
    Verification,
    Version,
    VersionContent,
)
from services.hub.publishing.outcome import BUNDLE_FILE, Checked, Opened, Stage
from services.hub.publishing.sandbox import ChildDiedError, Limits, run_child
from services.hub.publishing.verification import ScorerFailedError, verify

if TYPE_CHECKING:
    from benchgen.eval.v1.result_pb2_grpc import RecordServiceAsyncStub

log = structlog.get_logger()

UPLOADS = "uploads/"

_STORES = ((Bucket.INPUTS, "inputs"), (Bucket.TARGETS, "targets"), (Bucket.SOLUTIONS, "solutions"))
_PARALLEL_UPLOADS = 4


class _RejectedError(Exception):
    """The bundle is refused."""

    def __init__(self, problems: list[Problem], verification: Verification | None = None) -> None:
        super().__init__()
        self.problems = problems
        self.verification = verification


class _KnownError(Exception):
    """The content was published before."""

    def __init__(self, version: Version) -> None:
        super().__init__()
        self.version = version


class Publisher:
    """Carries publications to their end.

    :param scratch: a folder for files under way.
    :param stopping: when set, the work in hand is given back at once.
    :param claim_seconds: how long a claim holds when this process dies.
    :param pause_seconds: how long a publication rests after a fault.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        objects: ObjectStore,
        records: RecordServiceAsyncStub,
        scratch: Path,
        limits: Limits,
        stopping: asyncio.Event,
        *,
        claim_seconds: float = 10.0,
        pause_seconds: float = 2.0,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._records = records
        self._scratch = scratch
        self._limits = limits
        self._stopping = stopping
        self._claim_seconds = claim_seconds
        self._pause_seconds = pause_seconds

    async def step(self) -> None:
        """Work until there is nothing left to do.

        :raises Unavailable: a neighbour is not there; the publication in hand was given back.
        """
        while not self._stopping.is_set():
            claim = await ledger.claim(self._pool, self._claim_seconds)
            if claim is None:
                return
            with structlog.contextvars.bound_contextvars(publication=claim.publication):
                await self._carry(claim)

    async def _carry(self, claim: Claim) -> None:
        """Carry one publication to its end, or give it back."""
        try:
            renew = partial(ledger.renew, self._pool, claim, self._claim_seconds)
            async with kept(renew, seconds=self._claim_seconds, stopping=self._stopping):
                await self._publish(claim)
        except ClaimLost:
            # Ours still when we stop: another hub may take it at once.
            await ledger.release(self._pool, claim, pause=0.0)
            log.info("publishing.given_back")
        except TRANSIENT:
            await ledger.release(self._pool, claim, pause=self._pause_seconds)
            raise
        except (ChildDiedError, ScorerFailedError) as error:
            await self._count_death(claim, str(error))
        except Exception:
            # One upload that we cannot handle must not stop all others, again after each restart.
            log.exception("publishing.failed")
            await self._count_death(claim, "internal error; the server's log has it")

    async def _count_death(self, claim: Claim, reason: str) -> None:
        log.warning("publishing.died", reason=reason)
        if not await ledger.count_death(self._pool, claim, pause=self._pause_seconds):
            with suppress(ClaimLost):
                await ledger.reject(self._pool, claim, [domain.died(reason)])
                metrics.PUBLICATIONS_ENDED.labels(State.REJECTED).inc()

    async def _publish(self, claim: Claim) -> None:
        folder = Path(tempfile.mkdtemp(prefix=f"{claim.publication}-", dir=self._scratch))
        try:
            await self._work(claim, folder)
        except _KnownError as known:
            await ledger.finish_known(self._pool, claim, known.version)
            metrics.PUBLICATIONS_ENDED.labels(State.READY).inc()
            log.info("publishing.known", version=known.version.name)
        except _RejectedError as rejected:
            await ledger.reject(self._pool, claim, rejected.problems, rejected.verification)
            metrics.PUBLICATIONS_ENDED.labels(State.REJECTED).inc()
            log.info("publishing.rejected", problems=len(rejected.problems))
        finally:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)

    async def _work(self, claim: Claim, folder: Path) -> None:
        out = folder / "out"
        built = await self._build(claim, folder / "upload.zip", out)
        content = built.content
        await self._store(out, content.digest)
        await ledger.advance(self._pool, claim, State.VERIFYING, cases=content.cases)
        try:
            verification = await verify(self._records, built)
        except InvalidInput as error:
            raise _RejectedError([Problem("", error.message)]) from None
        if verification.verdict is Verdict.FAILED:
            raise _RejectedError(domain.broken_promises(built, verification), verification)
        content = await self._publish_as(claim, content, verification)
        metrics.PUBLICATIONS_ENDED.labels(State.READY).inc()
        log.info("publishing.ready", version=content.name, cases=content.cases, verdict=verification.verdict)

    async def _publish_as(
        self, claim: Claim, content: VersionContent, verification: Verification
    ) -> VersionContent:
        """Make the version. One that names no number takes the next one that is free."""
        while True:
            numbered = content
            if not content.version:
                numbered = replace(content, version=await store.next_version(self._pool, content.environment))
            async with self._pool.acquire() as conn:
                other = await ledger.publish(conn, claim, numbered, verification)
            if other is None:
                return numbered
            if content.version:
                raise _RejectedError([domain.taken(content.name, other)])

    async def _build(self, claim: Claim, archive: Path, out: Path) -> Built:
        """Validate and materialise in the child process.

        :raises _RejectedError: the bundle has problems.
        :raises _KnownError: it was published before.
        """

        async def on_stage(stage: Stage) -> None:
            match stage:
                case Opened(digest):
                    await self._refuse_known(digest)
                    await ledger.advance(self._pool, claim, State.VALIDATING, digest=digest)
                case Checked(digest, environment, version):
                    name = f"{environment}@{version}" if version else None
                    await ledger.advance(self._pool, claim, State.MATERIALISING, environment_version=name)
                    if version:
                        await self._refuse_taken(digest, environment, version)

        await ledger.advance(self._pool, claim, State.VALIDATING)
        await self._objects.fetch_file(Bucket.BUNDLES, upload_key(claim.upload_sha256), archive)
        out.mkdir()
        result = await run_child(archive, out, self._limits, on_stage, claim.wanted)
        if result.built is None:
            raise _RejectedError(list(result.problems))
        return result.built

    async def _refuse_known(self, digest: str) -> None:
        known = await store.known_version(self._pool, digest)
        if known is not None:
            raise _KnownError(known)

    async def _refuse_taken(self, digest: str, environment: str, version: str) -> None:
        """Early, to save the work; what counts is the check when the row is written."""
        other = await store.digest_of(self._pool, environment, version)
        if other not in (None, digest):
            raise _RejectedError([domain.taken(f"{environment}@{version}", other)])

    async def _store(self, out: Path, digest: str) -> None:
        """Store the data and the canonical bundle: what is named comes before what names it."""
        for bucket, folder in _STORES:
            for pattern in ("programs/*.zip", "parts/*.jsonl", "index/*.json"):
                paths = sorted((out / folder).glob(pattern))
                for first in range(0, len(paths), _PARALLEL_UPLOADS):
                    batch = paths[first : first + _PARALLEL_UPLOADS]
                    keys = [f"{path.parent.name}/{path.name}" for path in batch]
                    await asyncio.gather(*map(self._objects.put_file, repeat(bucket), keys, batch))
        for asset in sorted((out / ASSETS).glob("*")):
            await self._objects.put_file(Bucket.BUNDLES, asset_key(asset.name), asset)
        await self._objects.put_file(Bucket.BUNDLES, bundle_key(digest), out / BUNDLE_FILE)


def upload_key(sha256: str) -> str:
    """Where an uploaded zip is, by the sha256 of its bytes."""
    return f"{UPLOADS}{sha256}.zip"


def asset_key(sha256: str) -> str:
    """Where a page or picture of a competition is."""
    return f"{ASSETS}/{sha256}"


def bundle_key(digest: str) -> str:
    """Where the canonical bundle of a version is."""
    return f"bundles/{digest}.zip"
