"""What people read of the tasks of competitions: logs, files, leaderboards."""

from __future__ import annotations

import asyncio
import re
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg

from benchgen.errors import InvalidInput, NotFound
from benchgen.eval.v1 import result_pb2
from services.common import auth
from services.common.auth import Scope
from services.common.objects import Bucket, ObjectStore
from services.scorer.competition import leaderboard, store
from services.scorer.competition.store import SQL
from services.scorer.payloads import payload_key

File = result_pb2.DownloadTaskFileRequest.File

_CHUNK_BYTES = 1 << 20
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_ENTRIES = 1_000


class TaskReader:
    """Reads tasks."""

    def __init__(self, pool: asyncpg.Pool, objects: ObjectStore) -> None:
        self._pool = pool
        self._objects = objects

    async def task(self, request: result_pb2.GetTaskRequest) -> result_pb2.Task:
        """How a task went. What the scoring step says can quote the reference data."""
        may_see = auth.has_scope(Scope.ANSWERS)
        async with self._pool.acquire() as connection:
            row = await store.find_task(connection, request.run, request.case_id, request.trial)
            programs = await connection.fetch(
                SQL["programs_of"], request.run, row["position"], row["trial"], row["attempt"]
            )
        task = result_pb2.Task(
            run=request.run,
            case_id=request.case_id,
            trial=request.trial,
            error=(row["error"] or "") if may_see else "",
            has_details=row["has_details"],
            cases=row["case_count"],
        )
        if row["payload_digest"] is not None:
            task.predictions.digest = row["payload_digest"]
            task.predictions.size_bytes = row["payload_bytes"]
        for program in programs:
            if program["step"] == store.SCORING and not may_see:
                continue
            task.programs.append(result_pb2.StepProgram(**dict(program)))
        return task

    async def file(self, request: result_pb2.DownloadTaskFileRequest) -> AsyncIterator[bytes]:
        """A file of a task, in pieces.

        :raises NotFound: the task has none.
        """
        if request.file not in (File.FILE_PREDICTIONS, File.FILE_DETAILS, File.FILE_CASES):
            raise InvalidInput("file: expected predictions, details or cases")
        if request.file != File.FILE_PREDICTIONS:
            auth.require(Scope.ANSWERS)
        async with self._pool.acquire() as connection:
            row = await store.find_task(connection, request.run, request.case_id, request.trial)
            stored = await connection.fetchrow(SQL["files_of"], request.run, row["position"], row["trial"])
        if request.file == File.FILE_PREDICTIONS and row["payload_digest"] is not None:
            async for chunk in self._object(payload_key(row["payload_digest"])):
                yield chunk
            return
        name = {File.FILE_DETAILS: "details", File.FILE_CASES: "cases"}.get(request.file, "")
        data = stored[name] if stored is not None and name else None
        if data is None:
            raise NotFound(f"{request.case_id[:200]!r} of run {request.run} has no such file")
        for start in range(0, len(data), _CHUNK_BYTES):
            yield data[start : start + _CHUNK_BYTES]

    async def _object(self, key: str) -> AsyncIterator[bytes]:
        with tempfile.TemporaryDirectory(prefix="benchgen-") as folder:
            path = Path(folder) / "file"
            await self._objects.fetch_file(Bucket.PAYLOADS, key, path)
            with path.open("rb") as file:
                while chunk := await asyncio.to_thread(file.read, _CHUNK_BYTES):
                    yield chunk

    async def leaderboard(self, request: result_pb2.GetLeaderboardRequest) -> result_pb2.Leaderboard:
        """Who ranks where."""
        if not _DIGEST.fullmatch(request.digest):
            raise InvalidInput("digest: expected the one of a version, 64 lower-case hex digits")
        if not 0 <= request.limit <= _MOST_ENTRIES:
            raise InvalidInput(f"limit: expected 1 to {_MOST_ENTRIES:,}, found {request.limit:,}")
        async with self._pool.acquire() as connection:
            return await leaderboard.ranked(connection, request.digest, request.phase, request.limit or 100)
