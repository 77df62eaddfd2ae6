"""The client: a method for each call of the public contract, and the few combinations that everyone needs."""

from __future__ import annotations

import contextlib
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, Self

from benchgen.client.transport import Transport
from benchgen.errors import InvalidInput, NotFound, Unavailable
from benchgen.eval.v1 import (
    environment_pb2,
    environment_pb2_grpc,
    key_pb2,
    key_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    result_pb2,
    result_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from benchgen.names import LATEST

TERMINAL = frozenset({run_pb2.Run.STATE_SUCCEEDED, run_pb2.Run.STATE_FAILED, run_pb2.Run.STATE_CANCELLED})
"""The states in which a run has ended."""

Which = Literal["all", "failed", "passed", "unscored"]

_FILTERS = {
    "all": result_pb2.ListResultsRequest.FILTER_UNSPECIFIED,
    "failed": result_pb2.ListResultsRequest.FILTER_FAILED,
    "passed": result_pb2.ListResultsRequest.FILTER_PASSED,
    "unscored": result_pb2.ListResultsRequest.FILTER_UNSCORED,
}
_CHUNK_BYTES = 512 * 1024
# A watch is asked for anew after this time, so that a connection that died unnoticed is noticed.
_WATCH_SECONDS = 300.0
# A model may think for minutes before it answers the tiny call.
_TEST_SECONDS = 600.0
_PUBLICATION_ENDS = frozenset(
    {environment_pb2.Publication.STATE_READY, environment_pb2.Publication.STATE_REJECTED}
)
_FIRST_POLL_SECONDS = 0.05
_LONGEST_POLL_SECONDS = 0.5
# How far back a short form of a run's id is looked for.
_RUNS_SEARCHED = 10_000


class Client:
    """A connection to a BenchGen server. Use it as a context manager, or close it.

    Every method raises the errors of ``benchgen.errors``. While the server cannot be reached, calls are tried
    again; creations carry an id of their own, so that none happens twice.

    :param address: `HOST:PORT` of the server, or `https://HOST[:PORT]` for TLS.
    :param api_key: what the server's operator gave out, such as `bg_...`.
    :param connect_seconds: how long to wait for a server that never answered, seconds.
    :param patience: how long to wait for one that did: it may be starting again, seconds.
    :param call_seconds: the longest one call may take, seconds.
    """

    def __init__(
        self,
        address: str,
        api_key: str,
        *,
        connect_seconds: float = 5.0,
        patience: float = 60.0,
        call_seconds: float = 60.0,
    ) -> None:
        self._transport = Transport(
            address, api_key, connect_seconds=connect_seconds, patience=patience, call_seconds=call_seconds
        )
        channel = self._transport.channel
        self._environments = environment_pb2_grpc.EnvironmentServiceStub(channel)
        self._models = model_pb2_grpc.ModelServiceStub(channel)
        self._runs = run_pb2_grpc.RunServiceStub(channel)
        self._keys = key_pb2_grpc.KeyServiceStub(channel)
        self._results = result_pb2_grpc.ResultServiceStub(channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._transport.close()

    # --- environments -----------------------------------------------------------------------------

    def push(
        self,
        source: Path,
        on_change: Callable[[environment_pb2.Publication], None] | None = None,
        *,
        name: str = "",
        version: str = "",
    ) -> environment_pb2.Publication:
        """Pack a folder (or take a zip), upload it, and wait until it is published.

        :param on_change: called with every new state on the way, the last included.
        :param name: what a competition.yaml bundle is to be called; made of its title when empty.
        :param version: which version of it this is to be; the next one when empty.
        :raises BundleInvalid: the environment was rejected; it holds all problems.
        """
        from benchgen import bundle

        if source.is_file():
            publication = self.upload_bundle(source, name=name, version=version)
        else:
            with tempfile.TemporaryDirectory(prefix="benchgen-") as folder:
                archive = Path(folder) / "bundle.zip"
                bundle.pack(source, archive)
                publication = self.upload_bundle(archive, name=name, version=version)
        publication = self._published(publication, on_change or (lambda _: None))
        if publication.state == environment_pb2.Publication.STATE_REJECTED:
            raise bundle.BundleInvalid(
                [
                    bundle.Problem(problem.file, problem.message, problem.line or None, problem.field or None)
                    for problem in publication.problems
                ]
            )
        return publication

    def _published(
        self,
        publication: environment_pb2.Publication,
        on_change: Callable[[environment_pb2.Publication], None],
    ) -> environment_pb2.Publication:
        on_change(publication)
        wait = _FIRST_POLL_SECONDS
        while publication.state not in _PUBLICATION_ENDS:
            time.sleep(wait)
            wait = min(wait * 1.5, _LONGEST_POLL_SECONDS)
            latest = self.get_publication(publication.name)
            if latest.state != publication.state:
                on_change(latest)
            publication = latest
        return publication

    def upload_bundle(
        self, archive: Path, *, name: str = "", version: str = ""
    ) -> environment_pb2.Publication:
        """Upload a zip and start its publication; follow it with :meth:`get_publication`."""
        header = environment_pb2.UploadHeader(
            request_id=str(uuid.uuid4()), size_bytes=archive.stat().st_size, name=name, version=version
        )

        def requests() -> Iterator[environment_pb2.UploadBundleRequest]:
            yield environment_pb2.UploadBundleRequest(header=header)
            for chunk in _chunks(archive):
                yield environment_pb2.UploadBundleRequest(chunk=chunk)

        return self._transport.upload(self._environments.UploadBundle, requests)

    def get_publication(self, name: str) -> environment_pb2.Publication:
        """Where an upload stands."""
        request = environment_pb2.GetPublicationRequest(name=name)
        return self._transport.call(self._environments.GetPublication, request)

    def get_environment(self, name: str) -> environment_pb2.Environment:
        """One environment."""
        request = environment_pb2.GetEnvironmentRequest(name=name)
        return self._transport.call(self._environments.GetEnvironment, request)

    def list_environments(self) -> Iterator[environment_pb2.Environment]:
        """All environments by name."""
        request = environment_pb2.ListEnvironmentsRequest()
        method = self._environments.ListEnvironments
        return self._transport.listed(method, request, lambda page: page.environments)

    def get_version(self, ref: str) -> environment_pb2.EnvironmentVersion:
        """One version, by `name@version`, `name` (the latest) or digest."""
        request = environment_pb2.GetEnvironmentVersionRequest(name=ref)
        return self._transport.call(self._environments.GetEnvironmentVersion, request)

    def list_versions(self, environment: str) -> Iterator[environment_pb2.EnvironmentVersion]:
        """The versions of one environment, newest first, without the hidden ones."""
        request = environment_pb2.ListEnvironmentVersionsRequest(environment=environment)
        method = self._environments.ListEnvironmentVersions
        return self._transport.listed(method, request, lambda page: page.environment_versions)

    def yank_version(self, ref: str) -> environment_pb2.EnvironmentVersion:
        """Hide a version; it stays runnable by digest."""
        request = environment_pb2.YankEnvironmentVersionRequest(name=ref)
        return self._transport.call(self._environments.YankEnvironmentVersion, request)

    def download_bundle(self, ref: str, archive: Path) -> None:
        """Write the zip of a version to a file. Needs the scope `answers`."""
        request = environment_pb2.DownloadBundleRequest(name=ref)

        def once() -> None:
            with archive.open("wb") as file:
                for part in self._transport.stream(self._environments.DownloadBundle, request):
                    file.write(part.chunk)

        self._transport.patiently(once)

    def download_asset(self, ref: str, sha256: str) -> bytes:
        """A page or picture of a competition, named by its sha256 as the version's `competition_json` has it."""
        request = environment_pb2.DownloadAssetRequest(name=ref, sha256=sha256)
        return b"".join(
            part.chunk for part in self._transport.stream(self._environments.DownloadAsset, request)
        )

    def upload_submission(
        self, file: Path, *, answers_only: bool = False, label: str | None = None
    ) -> environment_pb2.Submission:
        """Store a zip that is submitted to a competition; same files, same submission.

        :param answers_only: it holds predictions, and nothing is run to make them.
        :param label: what to call it; the file's name when None.
        """
        header = environment_pb2.SubmissionHeader(
            label=label or file.name, answers_only=answers_only, size_bytes=file.stat().st_size
        )

        def requests() -> Iterator[environment_pb2.UploadSubmissionRequest]:
            yield environment_pb2.UploadSubmissionRequest(header=header)
            for chunk in _chunks(file):
                yield environment_pb2.UploadSubmissionRequest(chunk=chunk)

        return self._transport.upload(self._environments.UploadSubmission, requests)

    # --- models -----------------------------------------------------------------------------------

    def create_model(self, model: model_pb2.Model, secret: str = "") -> model_pb2.Model:
        """Register an endpoint; the secret is stored encrypted and never returned."""
        request = model_pb2.CreateModelRequest(request_id=str(uuid.uuid4()), model=model, secret=secret)
        return self._transport.call(self._models.CreateModel, request)

    def get_model(self, name: str) -> model_pb2.Model:
        """One model."""
        return self._transport.call(self._models.GetModel, model_pb2.GetModelRequest(name=name))

    def list_models(self) -> Iterator[model_pb2.Model]:
        """All models by name, the built-in ones first."""
        request = model_pb2.ListModelsRequest()
        return self._transport.listed(self._models.ListModels, request, lambda page: page.models)

    def delete_model(self, name: str) -> None:
        """Remove a model and its secret."""
        request = model_pb2.DeleteModelRequest(name=name)
        try:
            self._transport.call(self._models.DeleteModel, request, repeat=False)
        except Unavailable:
            # The first try may have removed it before its answer was lost.
            with contextlib.suppress(NotFound):
                self._transport.call(self._models.DeleteModel, request)

    def test_model(self, name: str) -> model_pb2.TestModelResponse:
        """Make one tiny call to a model; a call that fails is an answer, no error."""
        request = model_pb2.TestModelRequest(name=name)
        return self._transport.call(self._models.TestModel, request, repeat=False, seconds=_TEST_SECONDS)

    # --- keys -------------------------------------------------------------------------------------

    def create_key(self, request: key_pb2.CreateKeyRequest) -> key_pb2.CreateKeyResponse:
        """Make an API key; its secret is in the answer and nowhere else. Needs the scope `admin`."""
        # Not repeated: a second one would be made, whose secret nobody knows.
        return self._transport.call(self._keys.CreateKey, request, repeat=False)

    def list_keys(self) -> list[key_pb2.ApiKey]:
        """All API keys, oldest first. Needs the scope `admin`."""
        return list(self._transport.call(self._keys.ListKeys, key_pb2.ListKeysRequest()).keys)

    def revoke_key(self, name: str) -> key_pb2.ApiKey:
        """Revoke an API key; its runs go on. Needs the scope `admin`."""
        return self._transport.call(self._keys.RevokeKey, key_pb2.RevokeKeyRequest(name=name))

    def set_key_budget(self, name: str, budget: key_pb2.KeyBudget) -> key_pb2.ApiKey:
        """Replace what all runs of a key may spend a day (UTC). Needs the scope `admin`."""
        request = key_pb2.SetKeyBudgetRequest(name=name, daily_budget=budget)
        return self._transport.call(self._keys.SetKeyBudget, request)

    # --- runs -------------------------------------------------------------------------------------

    def run(
        self,
        environment: str,
        *,
        model: str | None = None,
        predictions: Path | None = None,
        submission: Path | None = None,
        phase: str = "",
        limit: int = 0,
        sample: int = 0,
        trials: int = 1,
        seed: int = 0,
        generation: environment_pb2.Generation | None = None,
        priority: int = 0,
        use_cache: bool = False,
        budget: run_pb2.Budget | None = None,
    ) -> run_pb2.Run:
        """Create a run of a model, of recorded answers, or of a submission; follow it with :meth:`watch`.

        :param environment: `name@version`, `name` (the latest) or a digest.
        :param predictions: JSON lines `{case_id, trial?, response, usage?, latency_ms?}`, instead of a model; for a
            competition a zip of predictions.
        :param submission: a zip that is submitted to a competition: a program, or predictions.
        :param phase: only this phase of a competition, by name or place; all when empty.
        :param limit: only the first so many cases; 0 for all.
        :param sample: only so many cases, drawn with ``seed``; 0 for all.
        :param generation: settings that win over the environment's and the model's.
        :param use_cache: take answers that the same requests got before, and keep new ones; see docs/cache.md.
        :param budget: what it may spend; it is paused when that is used up.
        """
        return self.create_run(
            self.run_request(
                environment,
                model=model,
                predictions=predictions,
                submission=submission,
                phase=phase,
                limit=limit,
                sample=sample,
                trials=trials,
                seed=seed,
                generation=generation,
                priority=priority,
                use_cache=use_cache,
                budget=budget,
            )
        )

    def run_request(
        self,
        environment: str,
        *,
        model: str | None = None,
        predictions: Path | None = None,
        submission: Path | None = None,
        phase: str = "",
        limit: int = 0,
        sample: int = 0,
        trials: int = 1,
        seed: int = 0,
        generation: environment_pb2.Generation | None = None,
        priority: int = 0,
        use_cache: bool = False,
        budget: run_pb2.Budget | None = None,
    ) -> run_pb2.CreateRunRequest:
        """The request for a run; see :meth:`run`. Recorded answers are uploaded for it."""
        if sum(given is not None for given in (model, predictions, submission)) != 1:
            raise InvalidInput("expected one of a model, predictions and a submission")
        request = run_pb2.CreateRunRequest(
            environment=environment,
            selection=run_pb2.Selection(limit=limit, sample=sample, phase=phase),
            trials=trials,
            seed=seed,
            generation=generation,
            priority=priority,
            use_cache=use_cache,
            budget=budget,
        )
        if model is not None:
            request.model = model
        if predictions is not None:
            version = self.get_version(environment)
            # The version that the answers were checked against, even when a newer one appears meanwhile.
            request.environment = version.digest
            if version.competition_json:
                request.submission.CopyFrom(self.upload_submission(predictions, answers_only=True))
            else:
                request.predictions.CopyFrom(self.upload_predictions(predictions, version.targets_digest))
        if submission is not None:
            request.submission.CopyFrom(self.upload_submission(submission))
        return request

    def create_run(self, request: run_pb2.CreateRunRequest) -> run_pb2.Run:
        """Create a run. A request without an id gets one; the same id again answers with the same run."""
        request.request_id = request.request_id or str(uuid.uuid4())
        return self._transport.call(self._runs.CreateRun, request)

    def estimate_run(self, request: run_pb2.CreateRunRequest) -> run_pb2.RunEstimate:
        """What a run would take at most, without making it."""
        return self._transport.call(self._runs.EstimateRun, run_pb2.EstimateRunRequest(run=request))

    def get_run(self, name: str) -> run_pb2.Run:
        """One run, by its id, by an unmistakable beginning of it, or `latest`."""
        if name == LATEST:
            for run in self.list_runs(limit=1):
                return run
            raise NotFound("there is no run yet")
        try:
            return self._transport.call(self._runs.GetRun, run_pb2.GetRunRequest(name=name))
        except NotFound:
            return self._run_beginning_with(name)

    def _run_beginning_with(self, beginning: str) -> run_pb2.Run:
        found = [run for run in self.list_runs(limit=_RUNS_SEARCHED) if run.name.startswith(beginning)]
        if not found:
            raise NotFound(f"there is no run {beginning!r}")
        if len(found) > 1:
            names = ", ".join(run.name for run in found[:5])
            raise InvalidInput(f"{beginning!r} can mean {len(found)} runs: {names}{', …' * (len(found) > 5)}")
        return found[0]

    def list_runs(
        self,
        *,
        environment: str = "",
        model: str = "",
        state: run_pb2.Run.State.ValueType = run_pb2.Run.STATE_UNSPECIFIED,
        limit: int | None = None,
    ) -> Iterator[run_pb2.Run]:
        """Runs, newest first, at most ``limit``."""
        request = run_pb2.ListRunsRequest(environment=environment, model=model, state=state)
        return self._transport.listed(self._runs.ListRuns, request, lambda page: page.runs, limit)

    def cancel(self, run: str) -> run_pb2.Run:
        """Stop a run; what was recorded stays and is reported. An ended run is returned as it is."""
        return self._transport.call(self._runs.CancelRun, run_pb2.CancelRunRequest(name=run))

    def pause(self, run: str) -> run_pb2.Run:
        """Stop a run for now; what comes back meanwhile is stored. A paused run is returned as it is.

        :raises FailedPrecondition: its trials have all ended.
        """
        return self._transport.call(self._runs.PauseRun, run_pb2.PauseRunRequest(name=run))

    def resume(self, run: str, *, epoch: int = 0, budget: run_pb2.Budget | None = None) -> run_pb2.Run:
        """Run the trials of a paused or ended run that have no final result, and no others.

        A run that goes on, or misses nothing, is returned as it is.

        :param epoch: of the run as the caller saw it: one that was resumed since is returned as it is. 0: asked for.
        :param budget: takes the place of the run's; None: it keeps the one it has.
        :raises FailedPrecondition: it is being cancelled, or its model is not what it was.
        """
        epoch = epoch or self.get_run(run).epoch
        request = run_pb2.ResumeRunRequest(name=run, epoch=epoch, budget=budget)
        return self._transport.call(self._runs.ResumeRun, request)

    def delete_run(self, run: str) -> None:
        """Remove an ended run with its results and reports.

        :raises FailedPrecondition: it has not ended.
        :raises NotFound: it is gone already.
        """
        self._transport.call(self._runs.DeleteRun, run_pb2.DeleteRunRequest(name=run))

    def watch(self, run: str) -> Iterator[run_pb2.Run]:
        """The run whenever it changed, at least each second, until it has ended.

        A server that goes away for a while only makes a gap.
        """
        pause = self._transport.pause()
        request = run_pb2.WatchRunRequest(name=run)
        while True:
            try:
                for state in self._transport.stream(self._runs.WatchRun, request, seconds=_WATCH_SECONDS):
                    pause.reset()
                    yield state
                    if state.state in TERMINAL:
                        return
            except Unavailable:
                if not pause.rest():
                    raise
            else:
                # A server that stops ends its streams in good order.
                if not pause.rest():
                    raise Unavailable(f"the server ended the watch of {run} again and again")

    # --- results ----------------------------------------------------------------------------------

    def results(
        self, run: str, *, which: Which = "all", case_id: str = "", limit: int | None = None
    ) -> Iterator[result_pb2.Result]:
        """A run's results in dataset order, page by page; targets need the scope `answers`.

        :param which: `failed`, `passed`, or `unscored`: faults that are not the model's doing, rules that
            failed.
        """
        request = result_pb2.ListResultsRequest(run=run, filter=_FILTERS[which], case_id=case_id)
        return self._transport.listed(self._results.ListResults, request, lambda page: page.results, limit)

    def calls(self, run: str, case_id: str, trial: int = 0) -> Iterator[result_pb2.ModelCall]:
        """The model calls that the program of one trial made, in order; none for harnesses without a program.

        :raises NotFound: the run has no result of this case.
        """
        request = result_pb2.ListCallsRequest(run=run, case_id=case_id, trial=trial)
        return self._transport.listed(self._results.ListCalls, request, lambda page: page.calls)

    def task(self, run: str, case_id: str, trial: int = 0) -> result_pb2.Task:
        """How a task of a competition went: the logs of every program of its two steps.

        :raises NotFound: the run has no result of it.
        """
        request = result_pb2.GetTaskRequest(run=run, case_id=case_id, trial=trial)
        return self._transport.call(self._results.GetTask, request)

    def task_file(
        self,
        run: str,
        case_id: str,
        trial: int = 0,
        *,
        file: result_pb2.DownloadTaskFileRequest.File.ValueType,
    ) -> bytes:
        """A file that a task of a competition gave: its predictions, its detailed results, its cases."""
        request = result_pb2.DownloadTaskFileRequest(run=run, case_id=case_id, trial=trial, file=file)
        return b"".join(
            part.chunk for part in self._transport.stream(self._results.DownloadTaskFile, request)
        )

    def leaderboard(self, digest: str, phase: int = 0, limit: int = 100) -> result_pb2.Leaderboard:
        """The runs of one phase of a competition, the best first.

        :param digest: of the version.
        """
        request = result_pb2.GetLeaderboardRequest(digest=digest, phase=phase, limit=limit)
        return self._transport.call(self._results.GetLeaderboard, request)

    def report(self, run: str) -> result_pb2.Report:
        """The latest report of a run.

        :raises FailedPrecondition: the run has no report yet.
        """
        return self._transport.call(self._results.GetReport, result_pb2.GetReportRequest(run=run))

    def upload_predictions(
        self, file: Path, targets_digest: str, label: str | None = None
    ) -> run_pb2.Predictions:
        """Store recorded answers, after the server checked every line; same file, same result.

        :param targets_digest: of the version that they answer.
        :param label: what to call them; the file's name when None.
        """
        header = result_pb2.PredictionsHeader(targets_digest=targets_digest, label=label or file.name)

        def requests() -> Iterator[result_pb2.UploadPredictionsRequest]:
            yield result_pb2.UploadPredictionsRequest(header=header)
            for chunk in _chunks(file):
                yield result_pb2.UploadPredictionsRequest(chunk=chunk)

        return self._transport.upload(self._results.UploadPredictions, requests)


def _chunks(file: Path) -> Iterator[bytes]:
    """The bytes of a file in pieces that fit in a message."""
    with file.open("rb") as source:
        while chunk := source.read(_CHUNK_BYTES):
            yield chunk
