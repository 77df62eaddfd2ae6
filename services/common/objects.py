"""S3-compatible object storage: six buckets, each service with its own identity and rights."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from benchgen.errors import NotFound, PermissionDenied, Unavailable
from services.common.config import ObjectSettings

if TYPE_CHECKING:
    from minio import Minio


T = TypeVar("T")


class Bucket(StrEnum):
    """What is kept apart, because different identities may read it."""

    BUNDLES = "bundles"
    INPUTS = "inputs"
    TARGETS = "targets"
    SOLUTIONS = "solutions"
    PAYLOADS = "payloads"
    PREDICTIONS = "predictions"


class Listed(NamedTuple):
    """An object, and when it was written last, to the second below."""

    key: str
    written_at: datetime


class ObjectStore:
    """Reads and writes whole objects.

    The client library blocks, so calls run on a few threads of this store's own.

    :raises NotFound: there is no such object.
    :raises PermissionDenied: this identity may not touch the bucket.
    :raises Unavailable: the store cannot be reached or failed; trying again may help.
    """

    def __init__(self, settings: ObjectSettings, *, threads: int = 4) -> None:
        self._settings = settings
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="objects")
        self._made: Minio | None = None

    async def __aenter__(self) -> Self:
        # Importing the client takes a quarter of a second: beside the rest of the start, not within the first use.
        self._threads.submit(self._client)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, bucket: Bucket, key: str) -> bytes:
        """The bytes of an object."""
        return await self._run(self._get, bucket, key)

    async def put(self, bucket: Bucket, key: str, data: bytes) -> None:
        """Store an object. Names are digests here, so writing one twice changes nothing."""
        await self._run(self._put, bucket, key, io.BytesIO(data), len(data))

    async def put_file(self, bucket: Bucket, key: str, path: Path) -> None:
        """Store a file, streamed."""
        await self._run(self._put_file, bucket, key, path)

    async def fetch_file(self, bucket: Bucket, key: str, path: Path) -> None:
        """Fetch an object into a file, streamed."""
        await self._run(self._fetch_file, bucket, key, path)

    async def exists(self, bucket: Bucket, key: str) -> bool:
        """Whether there is such an object."""
        try:
            await self._run(self._stat, bucket, key)
        except NotFound:
            return False
        return True

    async def remove_unless_newer(self, bucket: Bucket, key: str, moment: datetime) -> None:
        """Remove an object, unless it was written after a moment; then somebody may be about to name it."""
        await self._run(self._remove_unless_newer, bucket, key, moment)

    async def page(self, bucket: Bucket, prefix: str, *, after: str = "", count: int = 1000) -> list[Listed]:
        """Objects whose keys begin so and come after another one, in the order of their keys, at most ``count``."""
        return await self._run(self._page, bucket, prefix, after, count)

    async def _run(self, call: Callable[..., T], bucket: Bucket, *rest: object) -> T:
        name = self._settings.bucket_prefix + bucket
        return await asyncio.get_running_loop().run_in_executor(self._threads, _translated, call, name, *rest)

    def _client(self) -> Minio:
        if self._made is None:
            import urllib3

            from services.common.signatures import ServersClock

            self._made = ServersClock(
                self._settings.s3_endpoint,
                access_key=self._settings.s3_access_key,
                secret_key=self._settings.s3_secret_key.get_secret_value(),
                secure=self._settings.s3_secure,
                region=self._settings.s3_region,
                pool={
                    "maxsize": 8,
                    "timeout": urllib3.Timeout(connect=3, read=30),
                    "retries": urllib3.Retry(
                        total=2, backoff_factor=0.2, status_forcelist=[500, 502, 503, 504]
                    ),
                },
            )
        return self._made

    def _get(self, bucket: str, key: str) -> bytes:
        response = self._client().get_object(bucket, key)
        try:
            data: bytes = response.read()
        finally:
            response.close()
            response.release_conn()
        return data

    def _put(self, bucket: str, key: str, data: io.BytesIO, size: int) -> None:
        data.seek(0)
        self._client().put_object(bucket, key, data, size)

    def _put_file(self, bucket: str, key: str, path: Path) -> None:
        self._client().fput_object(bucket, key, str(path))

    def _fetch_file(self, bucket: str, key: str, path: Path) -> None:
        self._client().fget_object(bucket, key, str(path))

    def _remove_unless_newer(self, bucket: str, key: str, moment: datetime) -> None:
        with suppress(NotFound):
            written = _translated(self._client().stat_object, bucket, key).last_modified
            if written is not None and written <= moment:
                _translated(self._client().remove_object, bucket, key)

    def _page(self, bucket: str, prefix: str, after: str, count: int) -> list[Listed]:
        found = self._client().list_objects(bucket, prefix, recursive=True, start_after=after or None)
        return [
            Listed(item.object_name, item.last_modified)
            for item in islice(found, count)
            if item.object_name is not None and item.last_modified is not None
        ]

    def _stat(self, bucket: str, key: str) -> None:
        self._client().stat_object(bucket, key)


def _translated(call: Callable[..., T], bucket: str, *rest: object) -> T:
    import urllib3
    from minio.error import InvalidResponseError, S3Error, ServerError

    try:
        return call(bucket, *rest)
    except S3Error as error:
        if error.code in {"NoSuchKey", "NoSuchObject"}:
            raise NotFound(f"{bucket}/{rest[0]}: no such object") from None
        if error.code in {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch"}:
            raise PermissionDenied(f"{bucket}: this identity has no right to do that") from None
        raise Unavailable(f"object store: {error.code}: {error.message}") from None
    except (urllib3.exceptions.HTTPError, InvalidResponseError, ServerError, OSError) as error:
        raise Unavailable(f"object store: {error}") from None
