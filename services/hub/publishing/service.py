"""EnvironmentService: takes uploads, and serves what was published."""

# ruff: noqa: N802 - gRPC names the methods and passes a context

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import grpc
import structlog

from benchgen.errors import Exhausted, InvalidInput, NotFound
from benchgen.eval.v1 import environment_pb2, environment_pb2_grpc
from services.common.auth import Scope, has_scope, require
from services.common.objects import Bucket, ObjectStore
from services.common.paging import Page, next_token
from services.hub.publishing import domain, ledger, store, submissions
from services.hub.publishing.domain import Publication, Version, Wanted
from services.hub.publishing.jobs import asset_key, bundle_key, upload_key
from services.hub.publishing.messages import environment_message, publication_message, version_message
from services.hub.publishing.spool import MOST_CHUNK_BYTES, received
from services.hub.wire import checked_request_id

log = structlog.get_logger()

Context = grpc.aio.ServicerContext[Any, Any]

DEFAULT_MOST_UPLOAD_BYTES = 512 << 20
_PARALLEL_UPLOADS = 8


class EnvironmentService(environment_pb2_grpc.EnvironmentServiceServicer):
    """Serves environments.

    :param scratch: a folder for files under way.
    :param wake: is set when there is an upload to work on.
    :param most_upload_bytes: the largest zip.
    """

    def __init__(
        self,
        pool: asyncpg.Pool,
        objects: ObjectStore,
        scratch: Path,
        wake: asyncio.Event,
        *,
        most_upload_bytes: int = DEFAULT_MOST_UPLOAD_BYTES,
    ) -> None:
        self._pool = pool
        self._objects = objects
        self._scratch = scratch
        self._wake = wake
        self._most_upload_bytes = most_upload_bytes
        self._uploads = 0

    async def UploadBundle(
        self, request_iterator: AsyncIterator[environment_pb2.UploadBundleRequest], context: Context
    ) -> environment_pb2.Publication:
        require(Scope.PUBLISH)
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInput("expected a header before the chunks")
        request_id = checked_request_id(first.header.request_id)
        known = await ledger.of_request(self._pool, request_id)
        if known is not None:
            return publication_message(known)
        if self._uploads >= _PARALLEL_UPLOADS:
            raise Exhausted(f"{_PARALLEL_UPLOADS} uploads are under way; try again in a moment")
        self._uploads += 1
        try:
            async with received(
                request_iterator,
                self._scratch,
                declared=first.header.size_bytes,
                most=self._most_upload_bytes,
            ) as upload:
                await self._objects.put_file(Bucket.BUNDLES, upload_key(upload.sha256), upload.path)
                wanted = Wanted(first.header.name[:200], first.header.version[:200])
                made = await ledger.add(self._pool, request_id, upload.sha256, upload.size, wanted)
        finally:
            self._uploads -= 1
        log.info("publishing.uploaded", publication=made.id, bytes=upload.size, known=made.already_published)
        self._wake.set()
        return publication_message(made)

    async def GetPublication(
        self, request: environment_pb2.GetPublicationRequest, context: Context
    ) -> environment_pb2.Publication:
        require(Scope.READ)
        return _shown_publication(await ledger.get(self._pool, request.name))

    async def GetEnvironment(
        self, request: environment_pb2.GetEnvironmentRequest, context: Context
    ) -> environment_pb2.Environment:
        require(Scope.READ)
        async with self._pool.acquire() as conn:
            return environment_message(await store.get_environment(conn, request.name))

    async def ListEnvironments(
        self, request: environment_pb2.ListEnvironmentsRequest, context: Context
    ) -> environment_pb2.ListEnvironmentsResponse:
        require(Scope.READ)
        page = Page.of(request.page_size, request.page_token, kinds=(str,))
        size, key = page.size, page.after
        async with self._pool.acquire() as conn:
            found = await store.list_environments(conn, key[0] if key else None, size + 1)
        token = next_token([found[size - 1].name]) if len(found) > size else ""
        return environment_pb2.ListEnvironmentsResponse(
            environments=map(environment_message, found[:size]), next_page_token=token
        )

    async def GetEnvironmentVersion(
        self, request: environment_pb2.GetEnvironmentVersionRequest, context: Context
    ) -> environment_pb2.EnvironmentVersion:
        require(Scope.READ)
        async with self._pool.acquire() as conn:
            return _shown_version(await store.get_version(conn, request.name))

    async def ListEnvironmentVersions(
        self, request: environment_pb2.ListEnvironmentVersionsRequest, context: Context
    ) -> environment_pb2.ListEnvironmentVersionsResponse:
        require(Scope.READ)
        page = Page.of(request.page_size, request.page_token, kinds=(str, str))
        size, key = page.size, page.after
        async with self._pool.acquire() as conn:
            after = (key[0], key[1]) if key else None
            found = await store.list_versions(conn, request.environment, after, size + 1)
        token = ""
        if len(found) > size:
            last = found[size - 1].version
            token = next_token([domain.precedence(last), last])
        return environment_pb2.ListEnvironmentVersionsResponse(
            environment_versions=map(_shown_version, found[:size]), next_page_token=token
        )

    async def YankEnvironmentVersion(
        self, request: environment_pb2.YankEnvironmentVersionRequest, context: Context
    ) -> environment_pb2.EnvironmentVersion:
        require(Scope.PUBLISH)
        async with self._pool.acquire() as conn:
            return _shown_version(await store.yank(conn, request.name))

    async def DownloadBundle(
        self, request: environment_pb2.DownloadBundleRequest, context: Context
    ) -> AsyncIterator[environment_pb2.DownloadBundleResponse]:
        require(Scope.ANSWERS)
        async with self._pool.acquire() as conn:
            version = await store.get_version(conn, request.name)
        with tempfile.TemporaryDirectory(dir=self._scratch, prefix="download-") as folder:
            path = Path(folder) / "bundle.zip"
            await self._objects.fetch_file(Bucket.BUNDLES, bundle_key(version.digest), path)
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, MOST_CHUNK_BYTES):
                    yield environment_pb2.DownloadBundleResponse(chunk=chunk)

    async def DownloadAsset(
        self, request: environment_pb2.DownloadAssetRequest, context: Context
    ) -> AsyncIterator[environment_pb2.DownloadAssetResponse]:
        require(Scope.READ)
        async with self._pool.acquire() as conn:
            version = await store.get_version(conn, request.name)
        if request.sha256 not in submissions.assets_of(version):
            raise NotFound(f"{version.name} has no page or picture {request.sha256[:80]!r}")
        data = await self._objects.get(Bucket.BUNDLES, asset_key(request.sha256))
        for start in range(0, len(data), MOST_CHUNK_BYTES):
            yield environment_pb2.DownloadAssetResponse(chunk=data[start : start + MOST_CHUNK_BYTES])

    async def UploadSubmission(
        self, request_iterator: AsyncIterator[environment_pb2.UploadSubmissionRequest], context: Context
    ) -> environment_pb2.Submission:
        require(Scope.RUN)
        first = await anext(aiter(request_iterator), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInput("expected a header before the chunks")
        if self._uploads >= _PARALLEL_UPLOADS:
            raise Exhausted(f"{_PARALLEL_UPLOADS} uploads are under way; try again in a moment")
        self._uploads += 1
        try:
            async with received(
                request_iterator,
                self._scratch,
                declared=first.header.size_bytes,
                most=self._most_upload_bytes,
            ) as upload:
                return await submissions.accept(self._objects, first.header, upload.path, self._scratch)
        finally:
            self._uploads -= 1


_HIDDEN = "what is wrong is shown to keys with the scope `publish` or `answers`"


def _shown_version(version: Version) -> environment_pb2.EnvironmentVersion:
    """A version as its reader may see it: rules and manifest can hold answers, word for word."""
    message = version_message(version)
    if not has_scope(Scope.ANSWERS):
        message.ClearField("scoring_json")
        message.ClearField("manifest_yaml")
        if not has_scope(Scope.PUBLISH):
            _hide_reasons(message.verification)
    return message


def _shown_publication(publication: Publication) -> environment_pb2.Publication:
    """A publication as its reader may see it: what is wrong is said by example, and an example can be an answer."""
    message = publication_message(publication)
    if not (has_scope(Scope.PUBLISH) or has_scope(Scope.ANSWERS)):
        for problem in message.problems:
            problem.message = _HIDDEN
        if message.verification.state == environment_pb2.Verification.STATE_FAILED:
            message.verification.message = _HIDDEN
        _hide_reasons(message.verification)
    return message


def _hide_reasons(verification: environment_pb2.Verification) -> None:
    """Why solutions have no scores: what programs wrote about it can quote the reference data."""
    for one in verification.solutions:
        if one.error:
            one.error = _HIDDEN
    if verification.solutions and verification.message:
        verification.message = _HIDDEN
