"""Making a run: everything is checked first, then it is there with all its shards, or not at all."""

from __future__ import annotations

import asyncio

import asyncpg

from benchgen.errors import AlreadyExists, BenchgenError, InvalidInput
from benchgen.eval.v1 import run_pb2
from services.common.auth import Principal
from services.hub.publishing.domain import Version
from services.hub.publishing.store import find_version
from services.hub.registry.service import resolve_subject_model
from services.hub.registry.store import Conn
from services.hub.runs import budget_messages, planning, specs, store
from services.hub.runs.budgets import Budget
from services.hub.runs.competitions import positions_of_phase
from services.hub.runs.domain import RunId, RunRow, new_run_id
from services.hub.runs.specs import Answerer
from services.hub.wire import checked_request_id


def checked_budget(message: run_pb2.Budget, spec: run_pb2.RunSpec, who: Principal) -> Budget:
    """The budget that a caller gives a run.

    :raises InvalidInput: it cannot be kept, or that of the caller's API key cannot; says why.
    """
    budget = budget_messages.read_budget(message)
    problems = budget_messages.unbounded(budget.limits, spec)
    for problem in budget_messages.unbounded(budget_messages.key_limits(who), spec):
        if problem not in problems:
            problems.append(f"{problem} (this API key has a daily budget)")
    if problems:
        raise InvalidInput("; ".join(problems))
    return budget


async def _selected(request: run_pb2.CreateRunRequest, version: Version) -> list[int] | None:
    """The dataset positions of a sample; None where there is none."""
    if not request.selection.sample:
        return positions_of_phase(request, version)
    # A second for a million.
    return await asyncio.to_thread(planning.draw, version.cases, request.selection.sample, request.seed)


class Creator:
    """Makes runs.

    :param simulator_url: where the simulated model is; empty where there is none.
    """

    def __init__(self, db: asyncpg.Pool, simulator_url: str) -> None:
        self._db = db
        self._simulator_url = simulator_url

    async def create(self, request: run_pb2.CreateRunRequest, who: Principal) -> RunRow:
        """The run that a request makes, or made before.

        :raises InvalidInput: it cannot be run; names everything that is wrong.
        :raises NotFound: there is no such environment or model.
        :raises FailedPrecondition: the version was yanked, or there is no simulator.
        :raises AlreadyExists: the request's id belongs to another request.
        """
        request_id = checked_request_id(request.request_id)
        async with self._db.acquire() as conn:
            # First of all: what was asked before is answered even where it could not be asked again.
            known = await store.known_request(conn, request_id)
            if known is None:
                # In one transaction, which also keeps the model from being removed.
                async with conn.transaction():
                    made = await self._planned(conn, request, who)
                    inserted = await store.insert_run(conn, made)
                if inserted:
                    return await store.get_run(conn, made.id)
                known = await store.known_request(conn, request_id)
                assert known is not None
            if run_pb2.CreateRunRequest.FromString(known.request) != request:
                raise AlreadyExists(
                    f"this request_id made run {known.run} from another request", run=known.run
                )
            return await store.get_run(conn, known.run)

    async def planned(self, request: run_pb2.CreateRunRequest) -> tuple[run_pb2.RunSpec, list[int] | None]:
        """The specification of the run that a request would make, and its cases where they are a sample.

        :raises BenchgenError: it cannot be run; says why.
        """
        async with self._db.acquire() as conn, conn.transaction():
            version, answerer = await self._checked(conn, request)
        spec = specs.build_spec(RunId(""), request, version, answerer)
        return spec, await _selected(request, version)

    async def _planned(self, conn: Conn, request: run_pb2.CreateRunRequest, who: Principal) -> store.NewRun:
        version, answerer = await self._checked(conn, request)
        run = new_run_id()
        spec = specs.build_spec(run, request, version, answerer)
        budget = checked_budget(request.budget, spec, who)
        cut = planning.cut(spec.planned, specs.batch_of(answerer, version))
        selection = await _selected(request, version)
        return store.NewRun(
            id=run,
            request_id=checked_request_id(request.request_id),
            request=request.SerializeToString(deterministic=True),
            key_id=who.key_id,
            environment=version.name,
            model=answerer.label,
            subject=answerer.kind,
            pool=answerer.pool,
            cap=answerer.cap,
            priority=request.priority,
            spec=spec.SerializeToString(deterministic=True),
            selection=selection,
            trials=spec.trials,
            planned=spec.planned,
            shards=cut.shards,
            shard_size=cut.size,
            budget=budget,
        )

    async def _checked(self, conn: Conn, request: run_pb2.CreateRunRequest) -> tuple[Version, Answerer]:
        """What a request names.

        :raises BenchgenError: something is wrong; says all of it.
        """
        errors: list[BenchgenError] = []
        problems = specs.request_problems(request)
        version = await self._version(conn, request, errors)
        answerer = await self._answerer(conn, request, errors)
        if answerer is not None:
            problems += specs.cache_problems(request, answerer)
        if version is not None:
            problems += specs.version_problems(request, version)
            if answerer is not None:
                problems += specs.answerer_problems(answerer, version)
                problems += specs.starts_problems(request, version, answerer)
        errors += [InvalidInput(problem) for problem in problems]
        if version is None or answerer is None or errors:
            raise specs.refusal(errors)
        return version, answerer

    @staticmethod
    async def _version(
        conn: Conn, request: run_pb2.CreateRunRequest, errors: list[BenchgenError]
    ) -> Version | None:
        if not request.environment:
            return None
        try:
            return await find_version(conn, request.environment)
        except BenchgenError as error:
            errors.append(error)
            return None

    async def _answerer(
        self, conn: Conn, request: run_pb2.CreateRunRequest, errors: list[BenchgenError]
    ) -> Answerer | None:
        match request.WhichOneof("subject"):
            case "predictions":
                return specs.predictions_answerer(request.predictions)
            case "submission":
                return specs.submission_answerer(request.submission)
            case "model":
                try:
                    model = await resolve_subject_model(conn, request.model, self._simulator_url)
                    return specs.model_answerer(model)
                except BenchgenError as error:
                    errors.append(error)
        return None
