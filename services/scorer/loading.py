"""Results whose answers are there already: recorded predictions, reference solutions, empty answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from functools import partial

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import lease_pb2, run_pb2
from benchgen.eval.v1.result_pb2 import PayloadRef
from benchgen.scoring.cost import Usage, cost_picousd
from services.common.models.bounds import prices_of
from services.common.objects import ObjectStore
from services.common.parts import CaseReader
from services.scorer import payloads
from services.scorer.cases import Judge
from services.scorer.domain import Outcome, Record, ScoredRecord, TrialKey
from services.scorer.intake import MAX_RESPONSE, Intake, clean
from services.scorer.predictions import Prediction, PredictionStore
from services.scorer.recorder import Recorder
from services.scorer.turns import in_turns

ORACLE = "builtin/oracle"
EMPTY = "builtin/empty"
SIMULATED = "builtin/simulated"


def answers_from_solutions(spec: run_pb2.RunSpec) -> bool:
    """Whether the answers of a run are the reference solutions, or made from them."""
    return spec.simulated or spec.subject.model.name.partition("?")[0] in (ORACLE, SIMULATED)


class Loader:
    """Loads shards. What is loaded goes the same way as what a runner streams."""

    def __init__(
        self,
        recorder: Recorder,
        solutions: CaseReader,
        predictions: PredictionStore,
        scoring_threads: Executor,
        objects: ObjectStore,
    ) -> None:
        self._recorder = recorder
        self._objects = objects
        self._solutions = solutions
        self._predictions = predictions
        self._threads = scoring_threads

    async def load(
        self, claims: lease_pb2.LeaseClaims, intake: Intake, judge: Judge, held: frozenset[int]
    ) -> int:
        """Store the answers of a shard that are not held yet; returns how many there are in all.

        :raises InvalidInput: the run's subject is not one whose answers are there already.
        """
        answers = await self._answers(claims)
        wanted: dict[TrialKey, Prediction] = {}
        found = 0
        for position in claims.positions:
            for trial in range(claims.spec.trials):
                offset = intake.offset(position, trial)
                answer = answers.get(TrialKey(position, trial))
                if offset is None or answer is None:
                    continue
                found += 1
                if offset not in held:
                    wanted[TrialKey(position, trial)] = answer
        kept = await self._kept_whole(wanted) if judge.has_slow_rules else {}
        # Stored as they are scored: whoever loads the shard again goes on from there.
        score = partial(_scored, claims, judge, kept)
        async for batch in in_turns(self._threads, score, list(wanted.items())):
            await self._recorder.store(claims.run, batch)
        return found

    async def _kept_whole(self, answers: Mapping[TrialKey, Prediction]) -> dict[TrialKey, PayloadRef]:
        """Store answers that do not fit into their rows, for rules that judge later."""
        return {
            key: await payloads.store(self._objects, answer.response)
            for key, answer in answers.items()
            if len(answer.response.encode()) > MAX_RESPONSE
        }

    async def _answers(self, claims: lease_pb2.LeaseClaims) -> dict[TrialKey, Prediction]:
        spec = claims.spec
        positions: Sequence[int] = claims.positions
        trials = range(spec.trials)
        match spec.subject.WhichOneof("kind"):
            case "predictions":
                return await self._predictions.read(
                    spec.subject.predictions.digest, spec.targets_digest, positions
                )
            case "model" if spec.subject.model.name == EMPTY:
                return {TrialKey(p, t): Prediction("") for p in positions for t in trials}
            case "model" if spec.subject.model.name == ORACLE:
                rows = await self._solutions.rows(spec.solutions_digest, positions)
                return {
                    TrialKey(row["position"], t): Prediction(row["solution"]) for row in rows for t in trials
                }
            case _:
                raise InvalidInput("the answers of this subject are not there: it has to be run")


def _scored(
    claims: lease_pb2.LeaseClaims,
    judge: Judge,
    kept_whole: Mapping[TrialKey, PayloadRef],
    answered: tuple[TrialKey, Prediction],
) -> ScoredRecord:
    key, answer = answered
    whole = kept_whole.get(key)
    target = judge.target(key.position)
    assert target is not None
    outcome = Outcome.OK if answer.response.strip() else Outcome.EMPTY
    usage = Usage(input_total=answer.input_tokens, output_total=answer.output_tokens)
    kept = answer.response.encode()[:MAX_RESPONSE].decode(errors="ignore")
    record = Record(
        position=key.position,
        trial=key.trial,
        attempt=claims.attempt,
        outcome=outcome,
        case_id=target.case_id,
        response=clean(kept),
        input_tokens=answer.input_tokens,
        output_tokens=answer.output_tokens,
        latency_ms=answer.latency_ms,
        cost_picousd=cost_picousd(usage, prices_of(claims.spec.subject.model)),
        cluster=target.cluster,
        slices=target.slices,
        payload_digest=whole.digest if whole else None,
        payload_bytes=whole.size_bytes if whole else None,
    )
    return ScoredRecord(record, judge.score(key.position, outcome, answer.response), judge.primary)
