"""A hub and a scorer on one real gRPC server: they check credentials and principals, and do what a test wants."""

# ruff: noqa: N802 - gRPC names the methods

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import grpc
from pydantic import SecretStr

from benchgen.errors import FailedPrecondition, NotFound
from benchgen.eval.v1 import (
    environment_pb2,
    environment_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    result_pb2,
    result_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from services.common import auth, rpc
from services.common.auth import Principal, Scope
from services.common.config import RpcSettings
from services.common.signing import Verifier

PACKAGE = "benchgen.eval.v1"
PUBLIC = [f"{PACKAGE}.{name}Service" for name in ("Environment", "Model", "Run", "Result")]
INTERNAL = [f"{PACKAGE}.{name}Service" for name in ("Lease", "Record")]
TOKEN = "what the gateway presents"

Context = grpc.aio.ServicerContext[Any, Any]


class Seen(NamedTuple):
    """A call as a service saw it."""

    method: str
    who: Principal
    metadata: dict[str, str | bytes]
    request: Any


class Services(
    environment_pb2_grpc.EnvironmentServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    run_pb2_grpc.RunServiceServicer,
    result_pb2_grpc.ResultServiceServicer,
):
    """All public services. What is not needed by a test is UNIMPLEMENTED."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.gate = asyncio.Event()
        """Creating a run waits for it."""
        self.gate.set()
        self.made: dict[str, run_pb2.Run] = {}
        self.cancelled = asyncio.Event()
        """Set when a call that takes for ever was cancelled."""
        self.watches: list[list[run_pb2.Run]] = []
        """What each watch tells before it ends; without any, a watch goes on for ever."""
        self.arrived = 0
        self.answers_uploads_early = False

    def _note(self, method: str, request: Any, context: Context) -> None:
        metadata = dict(context.invocation_metadata() or ())
        self.seen.append(Seen(method, auth.principal.get(), metadata, request))

    async def _for_ever(self) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise

    # --- environments

    async def GetEnvironment(
        self, request: environment_pb2.GetEnvironmentRequest, context: Context
    ) -> environment_pb2.Environment:
        self._note("GetEnvironment", request, context)
        return environment_pb2.Environment(name=request.name, latest_version="1.0.0", cases=3)

    async def GetEnvironmentVersion(
        self, request: environment_pb2.GetEnvironmentVersionRequest, context: Context
    ) -> environment_pb2.EnvironmentVersion:
        self._note("GetEnvironmentVersion", request, context)
        return environment_pb2.EnvironmentVersion(name=request.name, targets_digest="t" * 64)

    async def ListEnvironmentVersions(
        self, request: environment_pb2.ListEnvironmentVersionsRequest, context: Context
    ) -> environment_pb2.ListEnvironmentVersionsResponse:
        self._note("ListEnvironmentVersions", request, context)
        return environment_pb2.ListEnvironmentVersionsResponse(next_page_token="more")

    async def UploadBundle(
        self, request_iterator: AsyncIterator[environment_pb2.UploadBundleRequest], context: Context
    ) -> environment_pb2.Publication:
        auth.require(Scope.PUBLISH)
        first = await anext(aiter(request_iterator))
        self._note("UploadBundle", first.header, context)
        if self.answers_uploads_early:
            return environment_pb2.Publication(name="p1", already_published=True)
        digest = hashlib.sha256()
        try:
            async for request in request_iterator:
                self.arrived += len(request.chunk)
                digest.update(request.chunk)
            # To grpc.aio a caller who breaks off has first ended, and is cancelled a moment later.
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return environment_pb2.Publication(name="p1", digest=digest.hexdigest())

    async def DownloadBundle(
        self, request: environment_pb2.DownloadBundleRequest, context: Context
    ) -> AsyncIterator[environment_pb2.DownloadBundleResponse]:
        auth.require(Scope.ANSWERS)
        for number in range(20):
            yield environment_pb2.DownloadBundleResponse(chunk=bytes([number]) * 500_000)

    async def GetPublication(
        self, request: environment_pb2.GetPublicationRequest, context: Context
    ) -> environment_pb2.Publication:
        problem = environment_pb2.Problem(file="environment.yaml", line=3, message="expected a name, found 7")
        rejected = environment_pb2.Publication.STATE_REJECTED
        return environment_pb2.Publication(name=request.name, state=rejected, problems=[problem])

    async def ListEnvironments(
        self, request: environment_pb2.ListEnvironmentsRequest, context: Context
    ) -> environment_pb2.ListEnvironmentsResponse:
        self._note("ListEnvironments", request, context)
        last = request.page_token == "more"
        return environment_pb2.ListEnvironmentsResponse(
            environments=[environment_pb2.Environment(name="b" if last else "a")],
            next_page_token="" if last else "more",
        )

    async def YankEnvironmentVersion(
        self, request: environment_pb2.YankEnvironmentVersionRequest, context: Context
    ) -> environment_pb2.EnvironmentVersion:
        return environment_pb2.EnvironmentVersion(name=request.name, yanked=True)

    # --- models

    async def ListModels(
        self, request: model_pb2.ListModelsRequest, context: Context
    ) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse(models=[model_pb2.Model(name="builtin/oracle")])

    async def DeleteModel(
        self, request: model_pb2.DeleteModelRequest, context: Context
    ) -> model_pb2.DeleteModelResponse:
        self._note("DeleteModel", request, context)
        return model_pb2.DeleteModelResponse()

    async def CreateModel(self, request: model_pb2.CreateModelRequest, context: Context) -> model_pb2.Model:
        self._note("CreateModel", request, context)
        made = model_pb2.Model(has_secret=bool(request.secret))
        made.MergeFrom(request.model)
        return made

    async def GetModel(self, request: model_pb2.GetModelRequest, context: Context) -> model_pb2.Model:
        self._note("GetModel", request, context)
        model = model_pb2.Model(name=request.name, model_id="m-8b", api=model_pb2.Model.API_OPENAI_CHAT)
        model.base_url = "https://host/v1"
        return model

    async def TestModel(
        self, request: model_pb2.TestModelRequest, context: Context
    ) -> model_pb2.TestModelResponse:
        self._note("TestModel", request, context)
        return model_pb2.TestModelResponse(ok=True, response="hello", latency_ms=1)

    # --- runs

    async def CreateRun(self, request: run_pb2.CreateRunRequest, context: Context) -> run_pb2.Run:
        auth.require(Scope.RUN)
        self._note("CreateRun", request, context)
        await self.gate.wait()
        if request.environment == "missing":
            raise NotFound("no environment `missing`")
        name = f"r{len(self.made) + 1}"
        return self.made.setdefault(
            request.request_id, run_pb2.Run(name=name, state=run_pb2.Run.STATE_QUEUED)
        )

    async def EstimateRun(self, request: run_pb2.EstimateRunRequest, context: Context) -> run_pb2.RunEstimate:
        self._note("EstimateRun", request, context)
        return run_pb2.RunEstimate(environment="a@1.0.0", planned=3, calls=3, unknown=["the price"])

    async def GetRun(self, request: run_pb2.GetRunRequest, context: Context) -> run_pb2.Run:
        self._note("GetRun", request, context)
        match request.name:
            case "missing":
                raise NotFound("there is no run missing", run="missing")
            case "broken":
                raise RuntimeError("the inner workings")
            case "slow":
                await self._for_ever()
        context.set_trailing_metadata((("x-said", "by the hub"),))
        return run_pb2.Run(name=request.name)

    async def WatchRun(
        self, request: run_pb2.WatchRunRequest, context: Context
    ) -> AsyncIterator[run_pb2.Run]:
        self._note("WatchRun", request, context)
        if request.name == "missing":
            raise NotFound("there is no run missing")
        if self.watches:
            for state in self.watches.pop(0):
                yield state
            return
        try:
            while True:
                yield run_pb2.Run(name=request.name, state=run_pb2.Run.STATE_RUNNING)
                await asyncio.sleep(0.05)
        finally:
            self.cancelled.set()

    async def ListRuns(self, request: run_pb2.ListRunsRequest, context: Context) -> run_pb2.ListRunsResponse:
        self._note("ListRuns", request, context)
        return run_pb2.ListRunsResponse(runs=self.made.values())

    async def CancelRun(self, request: run_pb2.CancelRunRequest, context: Context) -> run_pb2.Run:
        self._note("CancelRun", request, context)
        return run_pb2.Run(name=request.name, state=run_pb2.Run.STATE_CANCELLING)

    async def PauseRun(self, request: run_pb2.PauseRunRequest, context: Context) -> run_pb2.Run:
        self._note("PauseRun", request, context)
        return run_pb2.Run(name=request.name, state=run_pb2.Run.STATE_PAUSED)

    async def ResumeRun(self, request: run_pb2.ResumeRunRequest, context: Context) -> run_pb2.Run:
        self._note("ResumeRun", request, context)
        return run_pb2.Run(name=request.name, state=run_pb2.Run.STATE_RUNNING)

    async def DeleteRun(
        self, request: run_pb2.DeleteRunRequest, context: Context
    ) -> run_pb2.DeleteRunResponse:
        self._note("DeleteRun", request, context)
        if request.name == "running":
            raise FailedPrecondition("a run that is RUNNING cannot be removed: cancel it first")
        return run_pb2.DeleteRunResponse()

    # --- results

    async def ListResults(
        self, request: result_pb2.ListResultsRequest, context: Context
    ) -> result_pb2.ListResultsResponse:
        self._note("ListResults", request, context)
        target = '"42"' if auth.has_scope(Scope.ANSWERS) else ""
        result = result_pb2.Result(run=request.run, case_id="1", target_json=target)
        if request.run == "long":
            result.response = "x" * (rpc.MAX_MESSAGE + 1)
        return result_pb2.ListResultsResponse(results=[result])

    async def DownloadAsset(
        self, request: environment_pb2.DownloadAssetRequest, context: Context
    ) -> AsyncIterator[environment_pb2.DownloadAssetResponse]:
        self._note("DownloadAsset", request, context)
        yield environment_pb2.DownloadAssetResponse(chunk=b"# Page")

    async def UploadSubmission(
        self, request_iterator: AsyncIterator[environment_pb2.UploadSubmissionRequest], context: Context
    ) -> environment_pb2.Submission:
        first = await anext(aiter(request_iterator))
        self._note("UploadSubmission", first.header, context)
        body = b"".join([request.chunk async for request in request_iterator])
        digest = hashlib.sha256(body).hexdigest()
        return environment_pb2.Submission(digest=digest, files=2, label=first.header.label)

    async def GetTask(self, request: result_pb2.GetTaskRequest, context: Context) -> result_pb2.Task:
        self._note("GetTask", request, context)
        return result_pb2.Task(run=request.run, case_id=request.case_id)

    async def DownloadTaskFile(
        self, request: result_pb2.DownloadTaskFileRequest, context: Context
    ) -> AsyncIterator[result_pb2.DownloadTaskFileResponse]:
        self._note("DownloadTaskFile", request, context)
        for _ in range(3):
            yield result_pb2.DownloadTaskFileResponse(chunk=b"page ")

    async def GetLeaderboard(
        self, request: result_pb2.GetLeaderboardRequest, context: Context
    ) -> result_pb2.Leaderboard:
        self._note("GetLeaderboard", request, context)
        return result_pb2.Leaderboard(columns=["a"])

    async def ListCalls(
        self, request: result_pb2.ListCallsRequest, context: Context
    ) -> result_pb2.ListCallsResponse:
        self._note("ListCalls", request, context)
        call = result_pb2.ModelCall(
            number=1, endpoint="chat.completions", request_json='{"messages": []}', answer_json='{"id": "1"}'
        )
        return result_pb2.ListCallsResponse(calls=[call])

    async def ClearCache(
        self, request: result_pb2.ClearCacheRequest, context: Context
    ) -> result_pb2.ClearCacheResponse:
        self._note("ClearCache", request, context)
        return result_pb2.ClearCacheResponse(removed=7)

    async def GetReport(self, request: result_pb2.GetReportRequest, context: Context) -> result_pb2.Report:
        raise FailedPrecondition(f"run {request.run} has no report yet: it has not ended")

    async def UploadPredictions(
        self, request_iterator: AsyncIterator[result_pb2.UploadPredictionsRequest], context: Context
    ) -> run_pb2.Predictions:
        first = await anext(aiter(request_iterator))
        self._note("UploadPredictions", first.header, context)
        body = b"".join([request.chunk async for request in request_iterator])
        digest = hashlib.sha256(body).hexdigest()
        return run_pb2.Predictions(digest=digest, rows=body.count(b"\n"), label=first.header.label)


class _Internal(grpc.GenericRpcHandler):
    """Answers every method of the internal services, so that only the gateway's own list keeps callers out."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        if handler_call_details.method.split("/")[1] not in INTERNAL:
            return None

        async def answer(request: bytes, context: Context) -> bytes:
            return b""

        handler: Any = answer
        return grpc.unary_unary_rpc_method_handler(handler)


@asynccontextmanager
async def serving(services: Services, principal_key: str, listen: str) -> AsyncIterator[int]:
    """Run them where only the gateway may call, beside internal services that the gateway could call too."""
    settings = RpcSettings(service_token=SecretStr("nobody"), peer_tokens=f"gateway={auth.hash_token(TOKEN)}")
    access = rpc.Access(
        settings,
        {name: frozenset({"gateway"}) for name in PUBLIC + INTERNAL},
        public=PUBLIC,
        principals=Verifier(principal_key),
    )

    def register(server: grpc.aio.Server) -> None:
        environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(services, server)
        model_pb2_grpc.add_ModelServiceServicer_to_server(services, server)
        run_pb2_grpc.add_RunServiceServicer_to_server(services, server)
        result_pb2_grpc.add_ResultServiceServicer_to_server(services, server)
        server.add_generic_rpc_handlers((_Internal(),))

    async with rpc.server(listen, settings, access, register, grace=0.1) as port:
        yield port
