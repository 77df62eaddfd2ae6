"""A small platform behind the public contracts: a real gRPC server that keeps everything in dictionaries.

It answers as hub, scorer and gateway promise to, as far as clients can tell, so that client and command line can be
tried in milliseconds. The whole stack is tried in `tests/e2e`.
"""

from __future__ import annotations

import hashlib
import io
import json
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import grpc
import yaml
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from benchgen.bundle import open_zip
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

API_KEY = "bg_the-key-of-the-tests"
CASES = 10
#: How many answers of a run that uses the cache are from there.
CACHED = 4
Run = run_pb2.Run


def refuse(context: grpc.ServicerContext, code: int, message: str, reason: str = "") -> NoReturn:
    """End a call as the services do: a status with one ErrorInfo."""
    detail = any_pb2.Any()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="benchgen"))
    context.abort_with_status(
        rpc_status.to_status(status_pb2.Status(code=code, message=message, details=[detail]))
    )
    raise AssertionError


def _digest(content: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "bundle.zip"
        archive.write_bytes(content)
        return open_zip(archive).digest


class Platform(
    environment_pb2_grpc.EnvironmentServiceServicer,
    model_pb2_grpc.ModelServiceServicer,
    run_pb2_grpc.RunServiceServicer,
    result_pb2_grpc.ResultServiceServicer,
):
    """The state of the platform, and knobs that tests turn."""

    def __init__(self) -> None:
        self.versions: dict[str, environment_pb2.EnvironmentVersion] = {}
        self.bundles: dict[str, bytes] = {}
        self.publications: dict[str, environment_pb2.Publication] = {}
        self.models: dict[str, model_pb2.Model] = {
            "builtin/simulated": model_pb2.Model(
                name="builtin/simulated", builtin=True, description="right as often as you say"
            )
        }
        self.secrets: dict[str, str] = {}
        self.runs: dict[str, Run] = {}
        self.requests: dict[str, str] = {}
        self.problems: list[environment_pb2.Problem] = []
        # How many of the next calls find no server, and how many of the next watches break off.
        self.outages = 0
        self.broken_watches = 0
        self.end_state = Run.STATE_SUCCEEDED
        self.passed = 8
        self.missing = 0
        self.hide_targets = False
        self.hold = threading.Event()
        self.hold.set()
        self.add_version("gsm8k-mini", "1.0.0", b"")

    # --- what every call goes through ---------------------------------------------------------------------------

    def admit(self, context: grpc.ServicerContext) -> None:
        """Check the key; fail where a test asked for it."""
        if self.outages > 0:
            self.outages -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "a test asked for this outage")
        if dict(context.invocation_metadata()).get("authorization") != f"Bearer {API_KEY}":
            refuse(context, code_pb2.UNAUTHENTICATED, "no such API key", "UNAUTHENTICATED")

    # --- environments -------------------------------------------------------------------------------------------

    def add_version(
        self, name: str, version: str, content: bytes, cases: int = CASES
    ) -> environment_pb2.EnvironmentVersion:
        """Publish a version."""
        made = environment_pb2.EnvironmentVersion(
            name=f"{name}@{version}",
            environment=name,
            version=version,
            digest=_digest(content) if content else hashlib.sha256(name.encode()).hexdigest(),
            inputs_digest="1" * 64,
            targets_digest="2" * 64,
            scoring_digest="3" * 64,
            scoring_json='[{"name":"correct","type":"numeric","primary":true}]',
            primary_rule="correct",
            cases=cases,
            title="Grade-school math",
            category=environment_pb2.CATEGORY_REASONING,
            split="test",
            verification=environment_pb2.Verification(
                state=environment_pb2.Verification.STATE_VERIFIED,
                cases=cases,
                oracle_mean=1.0,
                empty_mean=0.0,
            ),
        )
        self.versions[made.name] = made
        self.bundles[made.name] = content
        return made

    def find_version(self, ref: str, context: grpc.ServicerContext) -> environment_pb2.EnvironmentVersion:
        """Look up `name@version`, `name` or a digest."""
        for version in self.versions.values():
            if ref in (version.name, version.environment, version.digest):
                return version
        refuse(context, code_pb2.NOT_FOUND, f'there is no environment "{ref}"; did you mean "gsm8k-mini"?')

    def UploadBundle(  # noqa: N802
        self, requests: Iterator[environment_pb2.UploadBundleRequest], context: grpc.ServicerContext
    ) -> environment_pb2.Publication:
        self.admit(context)
        request_id = next(requests).header.request_id
        content = b"".join(request.chunk for request in requests)
        manifest = yaml.safe_load(zipfile.ZipFile(io.BytesIO(content)).read("environment.yaml"))
        name = f"{manifest['name']}@{manifest['version']}"
        publication = environment_pb2.Publication(
            name=request_id, state=environment_pb2.Publication.STATE_UPLOADED, environment_version=name
        )
        if self.bundles.get(name) == content:
            publication.already_published = True
            publication.state = environment_pb2.Publication.STATE_READY
            publication.digest = self.versions[name].digest
        elif not self.problems:
            publication.digest = self.add_version(manifest["name"], manifest["version"], content).digest
            publication.verification.CopyFrom(self.versions[name].verification)
        publication.cases = CASES
        self.publications[request_id] = publication
        return publication

    def GetPublication(  # noqa: N802
        self, request: environment_pb2.GetPublicationRequest, context: grpc.ServicerContext
    ) -> environment_pb2.Publication:
        self.admit(context)
        publication = self.publications[request.name]
        if self.problems:
            publication.state = environment_pb2.Publication.STATE_REJECTED
            del publication.problems[:]
            publication.problems.extend(self.problems)
        elif publication.state != environment_pb2.Publication.STATE_READY:
            publication.state = environment_pb2.Publication.State.ValueType(publication.state + 1)
        return publication

    def ListEnvironments(  # noqa: N802
        self, request: environment_pb2.ListEnvironmentsRequest, context: grpc.ServicerContext
    ) -> environment_pb2.ListEnvironmentsResponse:
        self.admit(context)
        return environment_pb2.ListEnvironmentsResponse(
            environments=[
                environment_pb2.Environment(
                    name=version.environment,
                    latest_version=version.version,
                    title=version.title,
                    category=version.category,
                    cases=version.cases,
                )
                for version in self.versions.values()
            ]
        )

    def GetEnvironmentVersion(  # noqa: N802
        self, request: environment_pb2.GetEnvironmentVersionRequest, context: grpc.ServicerContext
    ) -> environment_pb2.EnvironmentVersion:
        self.admit(context)
        return self.find_version(request.name, context)

    def GetEnvironment(  # noqa: N802
        self, request: environment_pb2.GetEnvironmentRequest, context: grpc.ServicerContext
    ) -> environment_pb2.Environment:
        self.admit(context)
        version = self.find_version(request.name, context)
        return environment_pb2.Environment(name=version.environment, latest_version=version.version)

    def YankEnvironmentVersion(  # noqa: N802
        self, request: environment_pb2.YankEnvironmentVersionRequest, context: grpc.ServicerContext
    ) -> environment_pb2.EnvironmentVersion:
        self.admit(context)
        version = self.find_version(request.name, context)
        version.yanked = True
        return version

    def ListEnvironmentVersions(  # noqa: N802
        self, request: environment_pb2.ListEnvironmentVersionsRequest, context: grpc.ServicerContext
    ) -> environment_pb2.ListEnvironmentVersionsResponse:
        self.admit(context)
        found = [version for version in self.versions.values() if version.environment == request.environment]
        return environment_pb2.ListEnvironmentVersionsResponse(environment_versions=found)

    def DownloadBundle(  # noqa: N802
        self, request: environment_pb2.DownloadBundleRequest, context: grpc.ServicerContext
    ) -> Iterator[environment_pb2.DownloadBundleResponse]:
        self.admit(context)
        content = self.bundles[self.find_version(request.name, context).name]
        for start in range(0, len(content), 1000):
            yield environment_pb2.DownloadBundleResponse(chunk=content[start : start + 1000])

    # --- models -------------------------------------------------------------------------------------------------

    def CreateModel(  # noqa: N802
        self, request: model_pb2.CreateModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.Model:
        self.admit(context)
        if request.model.name in self.models and self.requests.get(request.request_id) != request.model.name:
            refuse(context, code_pb2.ALREADY_EXISTS, f'there is a model "{request.model.name}" already')
        self.requests[request.request_id] = request.model.name
        request.model.has_secret = bool(request.secret)
        self.models[request.model.name] = request.model
        self.secrets[request.model.name] = request.secret
        return request.model

    def GetModel(  # noqa: N802
        self, request: model_pb2.GetModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.Model:
        self.admit(context)
        if request.name not in self.models:
            refuse(context, code_pb2.NOT_FOUND, f'there is no model "{request.name}"')
        return self.models[request.name]

    def ListModels(  # noqa: N802
        self, request: model_pb2.ListModelsRequest, context: grpc.ServicerContext
    ) -> model_pb2.ListModelsResponse:
        self.admit(context)
        return model_pb2.ListModelsResponse(models=list(self.models.values()))

    def DeleteModel(  # noqa: N802
        self, request: model_pb2.DeleteModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.DeleteModelResponse:
        self.admit(context)
        if self.models.pop(request.name, None) is None:
            refuse(context, code_pb2.NOT_FOUND, f'there is no model "{request.name}"')
        return model_pb2.DeleteModelResponse()

    def TestModel(  # noqa: N802
        self, request: model_pb2.TestModelRequest, context: grpc.ServicerContext
    ) -> model_pb2.TestModelResponse:
        self.admit(context)
        if self.models[request.name].base_url.endswith(":9/v1"):
            return model_pb2.TestModelResponse(error="connection refused", latency_ms=1.5)
        return model_pb2.TestModelResponse(
            ok=True, response="pong", latency_ms=12.5, reported_model="m-1", input_tokens=7, output_tokens=1
        )

    # --- runs ---------------------------------------------------------------------------------------------------

    def CreateRun(  # noqa: N802
        self, request: run_pb2.CreateRunRequest, context: grpc.ServicerContext
    ) -> Run:
        self.admit(context)
        if request.request_id in self.requests:
            return self.runs[self.requests[request.request_id]]
        version = self.find_version(request.environment, context)
        name = f"r{len(self.runs):012d}"
        run = Run(name=name, state=Run.STATE_QUEUED)
        run.create_time.GetCurrentTime()
        spec = run.spec
        spec.run, spec.environment, spec.digest = name, version.name, version.digest
        spec.primary_rule, spec.seed = "correct", request.seed
        spec.trials = request.trials or 1
        spec.cases = min(request.selection.limit or CASES, CASES)
        spec.planned = spec.cases * spec.trials
        spec.selection.CopyFrom(request.selection)
        spec.generation.CopyFrom(request.generation)
        spec.use_cache = request.use_cache
        if request.HasField("predictions"):
            spec.subject.predictions.CopyFrom(request.predictions)
        else:
            base = request.model.partition("?")[0]
            if base not in self.models:
                refuse(context, code_pb2.NOT_FOUND, f'there is no model "{base}"')
            spec.subject.model.CopyFrom(self.models[base])
            spec.subject.model.name = request.model
            spec.simulated = base == "builtin/simulated"
        if request.HasField("budget"):
            run.budget.CopyFrom(request.budget)
        self.runs[name] = run
        self.requests[request.request_id] = name
        return run

    def EstimateRun(  # noqa: N802
        self, request: run_pb2.EstimateRunRequest, context: grpc.ServicerContext
    ) -> run_pb2.RunEstimate:
        self.admit(context)
        version = self.find_version(request.run.environment, context)
        return run_pb2.RunEstimate(
            environment=version.name,
            planned=CASES,
            calls=CASES,
            input_tokens=250,
            most_input_tokens=1000,
            most_cost_picousd=0,
            unknown=["nothing bounds a reply"],
        )

    def GetRun(self, request: run_pb2.GetRunRequest, context: grpc.ServicerContext) -> Run:  # noqa: N802
        self.admit(context)
        if request.name not in self.runs:
            refuse(context, code_pb2.NOT_FOUND, f'there is no run "{request.name}"')
        return self.runs[request.name]

    def ListRuns(  # noqa: N802
        self, request: run_pb2.ListRunsRequest, context: grpc.ServicerContext
    ) -> run_pb2.ListRunsResponse:
        self.admit(context)
        found = [run for run in reversed(self.runs.values()) if request.state in (0, run.state)]
        start = int(request.page_token or 0)
        end = start + (request.page_size or 50)
        token = str(end) if end < len(found) else ""
        return run_pb2.ListRunsResponse(runs=found[start:end], next_page_token=token)

    def CancelRun(  # noqa: N802
        self, request: run_pb2.CancelRunRequest, context: grpc.ServicerContext
    ) -> Run:
        self.admit(context)
        run = self.runs[request.name]
        run.state = Run.STATE_CANCELLED
        return run

    def PauseRun(self, request: run_pb2.PauseRunRequest, context: grpc.ServicerContext) -> Run:  # noqa: N802
        self.admit(context)
        run = self.runs[request.name]
        if run.state not in (Run.STATE_QUEUED, Run.STATE_RUNNING, Run.STATE_PAUSED):
            refuse(context, code_pb2.FAILED_PRECONDITION, "it has ended", "FAILED_PRECONDITION")
        run.state = Run.STATE_PAUSED
        return run

    def ResumeRun(self, request: run_pb2.ResumeRunRequest, context: grpc.ServicerContext) -> Run:  # noqa: N802
        self.admit(context)
        run = self.runs[request.name]
        if run.state == Run.STATE_PAUSED or self.missing:
            run.state = Run.STATE_RUNNING
            run.epoch += 1
            if request.HasField("budget"):
                run.budget.CopyFrom(request.budget)
        return run

    def DeleteRun(  # noqa: N802
        self, request: run_pb2.DeleteRunRequest, context: grpc.ServicerContext
    ) -> run_pb2.DeleteRunResponse:
        self.admit(context)
        if request.name not in self.runs:
            refuse(context, code_pb2.NOT_FOUND, f'there is no run "{request.name}"', "NOT_FOUND")
        if self.runs[request.name].state in (Run.STATE_QUEUED, Run.STATE_RUNNING, Run.STATE_PAUSED):
            refuse(context, code_pb2.FAILED_PRECONDITION, "cancel it first", "FAILED_PRECONDITION")
        del self.runs[request.name]
        return run_pb2.DeleteRunResponse()

    def WatchRun(  # noqa: N802
        self, request: run_pb2.WatchRunRequest, context: grpc.ServicerContext
    ) -> Iterator[Run]:
        self.admit(context)
        run = self.runs[request.name]
        yield run
        scored = run.spec.planned - self.missing
        for done in range(1, run.spec.planned + 1):
            run.state = Run.STATE_RUNNING
            run.progress.MergeFrom(
                run_pb2.RunProgress(
                    planned=run.spec.planned,
                    recorded=done,
                    scored=min(done, scored),
                    passed=min(done, self.passed, scored),
                    calls=done,
                    input_tokens=done * 100,
                    output_tokens=done * 10,
                    cost_picousd=done * 1_000_000_000,
                )
            )
            yield run
            if done == 3 and self.broken_watches > 0:
                self.broken_watches -= 1
                context.abort(grpc.StatusCode.UNAVAILABLE, "the gateway restarts")
            while not self.hold.wait(0.05) and context.is_active():
                pass
        run.progress.faults = self.missing
        if run.spec.use_cache:
            run.progress.cache_hits = CACHED
        run.state = self.end_state
        yield run
        # A paused run has not ended: its watch goes on.
        while run.state == Run.STATE_PAUSED and context.is_active():
            time.sleep(0.05)

    # --- results ------------------------------------------------------------------------------------------------

    def results_of(self, run: Run) -> list[result_pb2.Result]:
        """Make the results of a run: the first ones pass, the last ones are missing."""
        planned = run.spec.planned
        made = []
        for number in range(planned):
            result = result_pb2.Result(
                run=run.name,
                position=number,
                case_id=f"case-{number:03d}",
                attempt=1,
                input=[
                    result_pb2.Message(role="system", content="You count."),
                    result_pb2.Message(role="user", content=f"What is {number} + 1?"),
                ],
                program=result_pb2.ProgramRun(ended="exited", exit_code=0, wall_seconds=1.5, batch=1),
                calls=2,
                target_json="" if self.hide_targets else json.dumps(str(number + 1)),
            )
            if number >= planned - self.missing:
                result.outcome = result_pb2.OUTCOME_PROVIDER_ERROR
                result.error = "503: overloaded"
            else:
                right = number < self.passed
                result.outcome = result_pb2.OUTCOME_OK
                result.response = f"#### {number + 1 if right else -1}\x1b[31m"
                result.latency_ms = 12.0
                result.usage.input_tokens, result.usage.output_tokens = 100, 10
                result.cost_picousd = 1_000_000_000
                if run.spec.use_cache and number < CACHED:
                    result.cached, result.cost_picousd = True, 0
                    result.saved_usage.CopyFrom(result.usage)
                    result.ClearField("usage")
                    result.ClearField("latency_ms")
                explanation = "equal" if right else f"expected {number + 1}, found -1"
                result.scores.add(
                    rule="correct",
                    value=float(right),
                    passed=right,
                    answer=str(number + 1 if right else -1),
                    explanation=explanation,
                )
            made.append(result)
        return made

    def ListResults(  # noqa: N802
        self, request: result_pb2.ListResultsRequest, context: grpc.ServicerContext
    ) -> result_pb2.ListResultsResponse:
        self.admit(context)
        wanted: dict[int, list[bool | None]] = {1: [False], 2: [True], 3: [None]}
        verdicts = wanted.get(request.filter, [True, False, None])
        found = [
            result
            for result in self.results_of(self.runs[request.run])
            if (result.scores[0].passed if result.scores else None) in verdicts
            and request.case_id in ("", result.case_id)
        ]
        start = int(request.page_token or 0)
        # A server may answer with less than was asked for.
        end = start + min(request.page_size or 50, 4)
        token = str(end) if end < len(found) else ""
        return result_pb2.ListResultsResponse(results=found[start:end], next_page_token=token)

    def DownloadAsset(  # noqa: N802
        self, request: environment_pb2.DownloadAssetRequest, context: grpc.ServicerContext
    ) -> Iterator[environment_pb2.DownloadAssetResponse]:
        self.admit(context)
        yield environment_pb2.DownloadAssetResponse()

    def UploadSubmission(  # noqa: N802
        self, requests: Iterator[environment_pb2.UploadSubmissionRequest], context: grpc.ServicerContext
    ) -> environment_pb2.Submission:
        self.admit(context)
        header = next(requests).header
        content = b"".join(request.chunk for request in requests)
        digest = hashlib.sha256(content).hexdigest()
        return environment_pb2.Submission(digest=digest, label=header.label, answers_only=header.answers_only)

    def GetTask(  # noqa: N802
        self, request: result_pb2.GetTaskRequest, context: grpc.ServicerContext
    ) -> result_pb2.Task:
        self.admit(context)
        return result_pb2.Task(run=request.run, case_id=request.case_id)

    def DownloadTaskFile(  # noqa: N802
        self, request: result_pb2.DownloadTaskFileRequest, context: grpc.ServicerContext
    ) -> Iterator[result_pb2.DownloadTaskFileResponse]:
        self.admit(context)
        yield result_pb2.DownloadTaskFileResponse()

    def GetLeaderboard(  # noqa: N802
        self, request: result_pb2.GetLeaderboardRequest, context: grpc.ServicerContext
    ) -> result_pb2.Leaderboard:
        self.admit(context)
        return result_pb2.Leaderboard()

    def ListCalls(  # noqa: N802
        self, request: result_pb2.ListCallsRequest, context: grpc.ServicerContext
    ) -> result_pb2.ListCallsResponse:
        self.admit(context)
        asked = {"messages": [{"role": "user", "content": f"What is {request.case_id}?"}]}
        answered = {"choices": [{"message": {"role": "assistant", "content": "It is 42."}}]}
        call = result_pb2.ModelCall(
            number=1,
            request_json=json.dumps(asked),
            answer_json=json.dumps(answered),
            calls=2,
            failed_calls=[result_pb2.FailedCall(http_status=503)],
            latency_ms=12,
        )
        broken = result_pb2.ModelCall(
            number=2, request_json='{"prompt": "And now?"}', error="quota: none left"
        )
        return result_pb2.ListCallsResponse(calls=[call, broken])

    def GetReport(  # noqa: N802
        self, request: result_pb2.GetReportRequest, context: grpc.ServicerContext
    ) -> result_pb2.Report:
        self.admit(context)
        run = self.runs[request.run]
        if run.state not in (Run.STATE_SUCCEEDED, Run.STATE_CANCELLED):
            refuse(context, code_pb2.FAILED_PRECONDITION, f"the run {run.name} has no report yet")
        planned, scored = run.spec.planned, run.spec.planned - self.missing
        passed = min(self.passed, scored)
        metric = result_pb2.Metric(n=scored, passed=passed, failed=scored - passed, method="wilson")
        if scored:
            metric.mean, metric.stderr = passed / scored, 0.1
            metric.ci95.extend([max(0.0, passed / scored - 0.2), min(1.0, passed / scored + 0.2)])
            metric.worst, metric.best = passed / planned, (passed + self.missing) / planned
        report = result_pb2.Report(
            run=run.name,
            number=1,
            environment=run.spec.environment,
            digest=run.spec.digest,
            model=run.spec.subject.model.name or run.spec.subject.predictions.label,
            state=Run.State.Name(run.state).removeprefix("STATE_").lower(),
            coverage=result_pb2.Coverage(planned=planned, recorded=planned, scored=scored),
            metrics={"correct": metric},
            primary_rule="correct",
            outcomes={"ok": scored, "provider_error": self.missing} if self.missing else {"ok": scored},
            seconds=1.5,
            simulated=run.spec.simulated,
            trials=run.spec.trials,
            slices={"difficulty": result_pb2.Slice(values={"easy": metric, "hard": metric})},
        )
        if run.spec.use_cache:
            report.cache_hits = CACHED
            report.saved_tokens.input, report.saved_tokens.output = 100 * CACHED, 10 * CACHED
        if run.spec.subject.HasField("model"):
            report.calls = planned
            report.latency_ms.mean, report.latency_ms.p50, report.latency_ms.p95 = 12.0, 11.5, 20.0
            report.tokens.input, report.tokens.output = 1000, 100
        if run.spec.subject.model.price.input_usd_per_mtok:
            report.cost_usd.total, report.cost_usd.per_case = 0.01, 0.001
        return report

    def ClearCache(  # noqa: N802
        self, request: result_pb2.ClearCacheRequest, context: grpc.ServicerContext
    ) -> result_pb2.ClearCacheResponse:
        self.admit(context)
        return result_pb2.ClearCacheResponse()

    def UploadPredictions(  # noqa: N802
        self, requests: Iterator[result_pb2.UploadPredictionsRequest], context: grpc.ServicerContext
    ) -> run_pb2.Predictions:
        self.admit(context)
        header = next(requests).header
        content = b"".join(request.chunk for request in requests)
        lines = content.splitlines()
        for number, line in enumerate(lines, start=1):
            if "case_id" not in json.loads(line):
                refuse(context, code_pb2.INVALID_ARGUMENT, f"line {number}: expected case_id, found none")
        return run_pb2.Predictions(
            digest=hashlib.sha256(content).hexdigest(), rows=len(lines), label=header.label
        )


@contextmanager
def serving(platform: Platform, port: int = 0) -> Iterator[str]:
    """Serve a platform on a free port; yields its address."""
    server: Any = grpc.server(futures.ThreadPoolExecutor(max_workers=8))
    environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(platform, server)
    model_pb2_grpc.add_ModelServiceServicer_to_server(platform, server)
    run_pb2_grpc.add_RunServiceServicer_to_server(platform, server)
    result_pb2_grpc.add_ResultServiceServicer_to_server(platform, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        server.stop(0.2).wait()
