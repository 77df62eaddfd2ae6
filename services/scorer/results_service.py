"""ResultService: what people and other modules read."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import asyncpg
import grpc
import orjson
from google.protobuf import json_format

from benchgen.errors import FailedPrecondition, InvalidInput
from benchgen.eval.v1 import result_pb2, result_pb2_grpc, run_pb2
from services.common import auth
from services.common.auth import Scope
from services.common.paging import Page, next_token
from services.common.parts import CaseReader
from services.scorer import cache_store, calls, store
from services.scorer.cases import primary_of, rules_of
from services.scorer.competition.serving import TaskReader
from services.scorer.intake import endpoint_key
from services.scorer.loading import answers_from_solutions
from services.scorer.predictions import PredictionStore

Context = grpc.aio.ServicerContext[Any, Any]

Filter = result_pb2.ListResultsRequest.Filter

#: A page ends early where it would be larger than this; a message may have 16 MiB.
_PAGE_BYTES = 8 * 1024 * 1024
#: Characters of answers that are read for a page at most, and rows that are read at once.
_PAGE_CHARACTERS = 4 * 1024 * 1024
_READ_AHEAD = 64

#: What a key without the scope `answers` reads where a rule failed: the reason often quotes the target.
_HIDDEN_ERROR = "rule_error: the reason is shown to keys with the scope `answers`"


class ResultService(result_pb2_grpc.ResultServiceServicer):
    """Results, reports, and uploads of recorded answers."""

    def __init__(
        self,
        pool: asyncpg.Pool,
        inputs: CaseReader,
        targets: CaseReader,
        predictions: PredictionStore,
        book: calls.CallBook,
        tasks: TaskReader,
    ) -> None:
        self._pool = pool
        self._inputs = inputs
        self._targets = targets
        self._predictions = predictions
        self._calls = book
        self._tasks = tasks

    async def ListResults(  # noqa: N802
        self, request: result_pb2.ListResultsRequest, context: Context
    ) -> result_pb2.ListResultsResponse:
        auth.require(Scope.READ)
        page = Page.of(request.page_size, request.page_token, kinds=(int, int))
        after = (-1, -1) if page.after is None else (page.after[0], page.after[1])
        async with self._pool.acquire() as connection:
            spec = run_pb2.RunSpec.FromString(await store.spec_of(connection, request.run))
            rules = rules_of(spec.scoring_json)
            rows, more = await _read_page(connection, request, primary_of(rules), after, page.size)
            scores = await _scores_of(connection, request.run, rows, [rule.name for rule in rules])
            programs = await _programs_of(connection, request.run, rows) if spec.harness_json else {}
        positions = [row["position"] for row in rows]
        inputs = await self._inputs.rows(spec.inputs_digest, positions)
        may_see = auth.has_scope(Scope.ANSWERS)
        targets: list[dict[str, Any] | None] = [None] * len(rows)
        if may_see:
            targets = list(await self._targets.rows(spec.targets_digest, positions))
        made_of_solutions = answers_from_solutions(spec)
        answer = result_pb2.ListResultsResponse()
        size = 0
        for row, asked, target in zip(rows, inputs, targets, strict=True):
            key = row["position"], row["trial"]
            result = _result(row, asked, target, scores[key])
            if key in programs:
                hidden = made_of_solutions and not may_see
                result.program.CopyFrom(calls.program_run_message(programs[key], hide_output=hidden))
            if not may_see:
                _hide_answers(result, made_of_solutions=made_of_solutions)
            size += result.ByteSize()
            if size > _PAGE_BYTES and answer.results:
                more = True
                break
            answer.results.append(result)
        if more:
            last = answer.results[-1]
            answer.next_page_token = next_token([last.position, last.trial])
        return answer

    async def ListCalls(  # noqa: N802
        self, request: result_pb2.ListCallsRequest, context: Context
    ) -> result_pb2.ListCallsResponse:
        auth.require(Scope.READ)
        page = Page.of(request.page_size, request.page_token, kinds=(int,))
        async with self._pool.acquire() as connection:
            spec = run_pb2.RunSpec.FromString(await store.spec_of(connection, request.run))
        position = await self._calls.find_case(request.run, request.case_id)
        hidden = answers_from_solutions(spec) and not auth.has_scope(Scope.ANSWERS)
        after = 0 if page.after is None else page.after[0]
        rows, more = await self._calls.page(request.run, position, request.trial, after, page.size)
        return result_pb2.ListCallsResponse(
            calls=[calls.call_message(row, hidden=hidden) for row in rows],
            next_page_token=next_token([rows[-1]["number"]]) if more else "",
        )

    async def GetReport(  # noqa: N802
        self, request: result_pb2.GetReportRequest, context: Context
    ) -> result_pb2.Report:
        auth.require(Scope.READ)
        async with self._pool.acquire() as connection:
            document = await connection.fetchval(store.SQL["latest_report"], request.run)
            if document is None:
                await store.spec_of(connection, request.run)
                raise FailedPrecondition(f"run {request.run} has no report yet: it has not ended")
        fields = orjson.loads(document)
        points = fields.pop("pass_at_k", {})
        fields["pass_at_k"] = {name: {"points": values} for name, values in points.items()}
        fields["slices"] = {name: {"values": values} for name, values in fields["slices"].items()}
        return json_format.ParseDict(fields, result_pb2.Report())

    async def GetTask(  # noqa: N802
        self, request: result_pb2.GetTaskRequest, context: Context
    ) -> result_pb2.Task:
        auth.require(Scope.READ)
        return await self._tasks.task(request)

    async def DownloadTaskFile(  # noqa: N802
        self, request: result_pb2.DownloadTaskFileRequest, context: Context
    ) -> AsyncIterator[result_pb2.DownloadTaskFileResponse]:
        auth.require(Scope.READ)
        async for chunk in self._tasks.file(request):
            yield result_pb2.DownloadTaskFileResponse(chunk=chunk)

    async def GetLeaderboard(  # noqa: N802
        self, request: result_pb2.GetLeaderboardRequest, context: Context
    ) -> result_pb2.Leaderboard:
        auth.require(Scope.READ)
        return await self._tasks.leaderboard(request)

    async def UploadPredictions(  # noqa: N802
        self, requests: AsyncIterator[result_pb2.UploadPredictionsRequest], context: Context
    ) -> run_pb2.Predictions:
        auth.require(Scope.RUN)
        first = await anext(aiter(requests), None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidInput("the first message must be the header")

        async def chunks() -> AsyncIterator[bytes]:
            async for request in requests:
                yield request.chunk

        digest, rows = await self._predictions.accept(first.header.targets_digest, chunks())
        return run_pb2.Predictions(digest=digest, rows=rows, label=first.header.label[:200])

    async def ClearCache(  # noqa: N802
        self, request: result_pb2.ClearCacheRequest, context: Context
    ) -> result_pb2.ClearCacheResponse:
        auth.require(Scope.MODELS)
        missing = [name for name in ("base_url", "model_id") if not getattr(request, name)]
        if missing:
            raise InvalidInput(
                f"{' and '.join(missing)}: expected those of a registered model, found nothing"
            )
        try:
            key = endpoint_key(request.api, request.base_url, request.model_id)
        except ValueError as error:
            raise InvalidInput(f"base_url: expected an address, found {error}") from None
        async with self._pool.acquire() as connection:
            return result_pb2.ClearCacheResponse(removed=await cache_store.clear(connection, key))


async def _read_page(
    connection: store.Connection,
    request: result_pb2.ListResultsRequest,
    primary: int,
    after: tuple[int, int],
    size: int,
) -> tuple[list[asyncpg.Record], bool]:
    """At most ``size`` results, fewer where their answers are long, and whether there are more."""
    query, arguments = _query_of(request, primary)
    rows: list[asyncpg.Record] = []
    characters = 0
    async with connection.transaction(readonly=True):
        await connection.execute(store.SQL["walk_indexes"])
        async for row in connection.cursor(
            query, request.run, *after, size + 1, *arguments, prefetch=min(size + 1, _READ_AHEAD)
        ):
            if len(rows) == size or (rows and characters > _PAGE_CHARACTERS):
                return rows, True
            rows.append(row)
            characters += len(row["response"]) + len(row["reasoning"] or "")
    return rows, False


async def _programs_of(
    connection: store.Connection, run: str, rows: list[asyncpg.Record]
) -> Mapping[tuple[int, int], asyncpg.Record]:
    """How the programs went whose results these are."""
    columns = [[row[name] for row in rows] for name in ("position", "trial", "attempt")]
    found = await connection.fetch(calls.SQL["program_runs_of"], run, *columns)
    return {(row["position"], row["trial"]): row for row in found}


def _query_of(request: result_pb2.ListResultsRequest, primary: int) -> tuple[str, tuple[Any, ...]]:
    """The statement that finds what is asked for, and what it takes after the key and the limit."""
    if request.case_id and request.filter:
        raise InvalidInput("case_id and filter: expected one of them, found both")
    match request.filter:
        case Filter.FILTER_UNSPECIFIED:
            if request.case_id:
                return store.SQL["list_case"], (request.case_id,)
            return store.SQL["list_results"], ()
        case Filter.FILTER_FAILED:
            name = "list_failed"
        case Filter.FILTER_PASSED:
            name = "list_passed"
        case Filter.FILTER_UNSCORED:
            name = "list_unscored"
        case _:
            raise InvalidInput(f"filter: {request.filter} is not known")
    return store.SQL[name], (store.FIRST_SCORING, primary)


async def _scores_of(
    connection: store.Connection, run: str, rows: list[asyncpg.Record], rules: list[str]
) -> Mapping[tuple[int, int], list[result_pb2.Score]]:
    found: dict[tuple[int, int], list[result_pb2.Score]] = {
        (row["position"], row["trial"]): [] for row in rows
    }
    positions = [position for position, _ in found]
    trials = [trial for _, trial in found]
    places = list(range(len(rules)))
    for score in await connection.fetch(
        store.SQL["scores_of"], run, store.FIRST_SCORING, positions, trials, places
    ):
        found[score["position"], score["trial"]].append(
            result_pb2.Score(
                rule=rules[score["rule"]],
                value=score["value"],
                passed=score["passed"],
                answer=score["answer"],
                explanation=score["explanation"] or "",
                error=score["error"] or "",
            )
        )
    return found


def _result(
    row: asyncpg.Record,
    asked: dict[str, Any],
    target: dict[str, Any] | None,
    scores: list[result_pb2.Score],
) -> result_pb2.Result:
    result = result_pb2.Result(
        run=row["run_id"],
        position=row["position"],
        case_id=row["case_id"],
        trial=row["trial"],
        attempt=row["attempt"],
        outcome=row["outcome"],
        input=_asked(asked),
        response=row["response"],
        reasoning=row["reasoning"] or "",
        target_json=orjson.dumps(target["target"]).decode() if target is not None else "",
        scores=scores,
        latency_ms=row["latency_ms"],
        usage=calls.usage_message(row),
        cost_picousd=row["cost_picousd"],
        error=row["error"] or "",
        finish_reason=row["finish_reason"] or "",
        failed_calls=[calls.failed_call_message(call) for call in orjson.loads(row["failed_calls"] or "[]")],
        record_time=row["recorded_at"],
        reported_model=row["reported_model"] or "",
        calls=row["calls"],
    )
    if row["saved"] is not None:
        result.cached = True
        saved = calls.usage_message(orjson.loads(row["saved"]))
        if saved is not None:
            result.saved_usage.CopyFrom(saved)
    if row["payload_digest"]:
        result.payload.digest = row["payload_digest"]
        result.payload.size_bytes = row["payload_bytes"]
    return result


def _asked(row: dict[str, Any]) -> list[result_pb2.Message]:
    """What the model's side was given: messages, or the fields that a program sees where there are none."""
    turns = row["messages"]
    if not turns and row.get("fields"):
        fields = orjson.dumps(row["fields"], option=orjson.OPT_INDENT_2).decode()
        turns = [{"role": "user", "content": fields}]
    return [result_pb2.Message(role=turn["role"], content=turn["content"]) for turn in turns]


def _hide_answers(result: result_pb2.Result, *, made_of_solutions: bool) -> None:
    """Take out what tells the expected answer.

    Explanations and errors of rules are made of it. So is everything that a subject says which answers from the
    reference solutions, its wrong answers included.
    """
    for score in result.scores:
        score.ClearField("explanation")
        if score.error:
            score.error = _HIDDEN_ERROR
        if made_of_solutions:
            score.ClearField("answer")
    if made_of_solutions:
        for field in ("response", "reasoning", "payload"):
            result.ClearField(field)
