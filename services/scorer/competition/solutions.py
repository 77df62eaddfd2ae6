"""Runs the solutions of a competition before it is published: both steps, as for anybody who submits them."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import Any

import structlog

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import environment_pb2, result_pb2
from services.common.competition import PackStore, Steps
from services.common.competition.tasks import RunCompetition, read_run, work_of
from services.common.objects import Bucket
from services.common.parts import CaseReader, Row
from services.common.sandbox import Provider, SandboxFailed
from services.scorer.competition.judging import CompetitionJudge, scores_from
from services.scorer.pending import MOST_FAULTS, CannotJudge

log = structlog.get_logger()

_PAUSE_SECONDS = 0.5
_MOST_SAID = 3


class SolutionRunner:
    """Checks that a competition works, by its own solutions.

    A solution that fails refuses nothing: real bundles come with solutions that do. The version is unverified then, and
    says which one and why.
    """

    def __init__(
        self,
        inputs: CaseReader,
        targets: CaseReader,
        solutions: CaseReader,
        packs: PackStore,
        provider: Provider,
        steps: Steps,
        judge: CompetitionJudge,
    ) -> None:
        self._inputs = inputs
        self._targets = targets
        self._solutions = solutions
        self._packs = packs
        self._provider = provider
        self._steps = steps
        self._judge = judge

    async def verify(self, request: result_pb2.VerifyVersionRequest) -> environment_pb2.Verification:
        """Run all solutions.

        :raises InvalidInput: nothing can be run here at all; the message says why.
        """
        try:
            await self._provider.check()
        except SandboxFailed as error:
            raise InvalidInput(f"the programs of a competition cannot be run here: {error.message}") from None
        states = environment_pb2.Verification
        if not request.solutions_digest:
            return states(state=states.STATE_UNVERIFIED, message="there is no solution to check with")
        competition = read_run(request.competition_json)
        positions = range(len(competition.phases))
        asked = await self._inputs.rows(request.inputs_digest, positions)
        judged = await self._targets.rows(request.targets_digest, positions)
        given = await self._solutions.rows(request.solutions_digest, positions)
        found: list[environment_pb2.SolutionScores] = []
        for rows in zip(asked, judged, given, strict=True):
            for solution in rows[2]["solutions"]:
                found.append(await self._run(competition, rows[0], rows[1], solution))
        return _verdict(found)

    async def _run(
        self, competition: RunCompetition, asked: Row, judged: Row, solution: dict[str, Any]
    ) -> environment_pb2.SolutionScores:
        made = environment_pb2.SolutionScores(solution=solution["name"], case_id=asked["id"])
        reason = ""
        for _ in range(MOST_FAULTS):
            try:
                await self._tried(competition, asked, judged, solution, made)
            except (CannotJudge, SandboxFailed) as error:
                reason = str(error)
                await asyncio.sleep(_PAUSE_SECONDS)
            else:
                return made
        made.error = reason
        return made

    async def _tried(
        self,
        competition: RunCompetition,
        asked: Row,
        judged: Row,
        solution: dict[str, Any],
        made: environment_pb2.SolutionScores,
    ) -> None:
        files = await self._packs.zip(Bucket.SOLUTIONS, solution["files"]["sha256"])
        work = await work_of(self._packs, Bucket.INPUTS, asked["task"], competition.image)
        with tempfile.TemporaryDirectory(prefix="benchgen-") as folder:
            prediction = await self._steps.predict(work, files, Path(folder))
            if prediction.limit:
                made.error = f"the prediction {prediction.limit}"
                return
            scored = await work_of(self._packs, Bucket.TARGETS, judged["task"], competition.image)
            scoring = await self._judge.score(scored, prediction.files.path)
        scores = scores_from(scoring, competition)
        made.scores.update(scores.values)
        reasons = [scores.error] if scores.error else list(scores.reasons.values())
        made.error = "; ".join(reasons)[:2_000].replace("\0", "\ufffd")
        log.info("solution.ran", solution=made.solution, case=made.case_id, error=made.error)


def _verdict(found: list[environment_pb2.SolutionScores]) -> environment_pb2.Verification:
    states = environment_pb2.Verification
    failed = [one for one in found if one.error]
    verification = states(cases=len(found), solutions=found, state=states.STATE_VERIFIED)
    if failed or not found:
        verification.state = states.STATE_UNVERIFIED
        said = [f"the solution {one.solution!r} on {one.case_id}: {one.error}" for one in failed[:_MOST_SAID]]
        more = f"; and {len(failed) - _MOST_SAID} more" if len(failed) > _MOST_SAID else ""
        verification.message = "; ".join(said) + more if said else "there is no solution to check with"
    return verification
