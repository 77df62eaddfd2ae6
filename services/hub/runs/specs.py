"""What a request for a run means: everything that is wrong with it, or the specification that it becomes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import NamedTuple, assert_never

import orjson

from benchgen.errors import BenchgenError, InvalidInput
from benchgen.eval.v1 import environment_pb2, model_pb2, run_pb2
from services.common.models.builtin import is_builtin, parse_builtin
from services.hub.publishing.domain import Version
from services.hub.registry.domain import DEFAULT_CONCURRENCY, Generation
from services.hub.registry.messages import generation_message, read_generation
from services.hub.runs import competitions
from services.hub.runs.competitions import positions_of_phase
from services.hub.runs.domain import Pool, RunId, Subject
from services.hub.runs.planning import MOST_PLANNED, MOST_STARTS, MOST_TRIALS

#: Submissions to competitions call no model; how many are worked on at once the runners' sandboxes decide.
SUBMISSION_POOL = Pool("builtin/submission")
_SUBMISSION_CAP = 64
#: Runs that the scorer loads call no model; they share a lock and nothing else.
LOADED_POOL = Pool("builtin/loaded")
_LOADED_CAP = 1

_MOST_TRIES = 8
_CALL_SECONDS = 600.0
_DIGEST = re.compile(r"[0-9a-f]{64}")
_PRIORITIES = range(-100, 101)


class Answerer(NamedTuple):
    """Who answers, and which permits that takes.

    ``label`` names it in lists; ``needs_solutions`` says that it answers from the reference solutions.
    """

    kind: Subject
    subject: run_pb2.Subject
    pool: Pool
    cap: int
    label: str
    generation: Generation
    simulated: bool
    needs_solutions: bool


def request_problems(request: run_pb2.CreateRunRequest) -> list[str]:
    """Everything that is wrong with a request by itself, a line each."""
    found = []
    selection = request.selection
    if not request.environment:
        found.append("environment: expected `name@version`, `name` or a digest, found nothing")
    if request.WhichOneof("subject") is None:
        found.append("model: expected a model or predictions, found neither")
    if request.WhichOneof("subject") == "predictions":
        found += _predictions_problems(request.predictions)
    if request.WhichOneof("subject") == "submission":
        found += _recorded_problems("submission", request.submission.digest, request.submission.label)
    if selection.limit and selection.sample:
        found.append(
            f"selection: expected limit or sample, found both ({selection.limit:,} and {selection.sample:,})"
        )
    if request.trials > MOST_TRIALS:
        found.append(f"trials: expected 1 to {MOST_TRIALS:,}, found {request.trials:,}")
    if request.priority not in _PRIORITIES:
        found.append(f"priority: expected -100 to 100, found {request.priority:,}")
    try:
        found += read_generation(request.generation).problems()
    except InvalidInput as error:
        found.append(error.message)
    return found


def _predictions_problems(predictions: run_pb2.Predictions) -> list[str]:
    return _recorded_problems("predictions", predictions.digest, predictions.label)


def _recorded_problems(what: str, digest: str, label: str) -> list[str]:
    found = []
    if not _DIGEST.fullmatch(digest):
        found.append(f"{what}.digest: expected the sha256 of an uploaded file, 64 lower-case hex digits")
    if len(label) > 200:
        found.append(f"{what}.label: expected at most 200 characters, found {len(label):,}")
    return found


@dataclass(frozen=True, slots=True)
class Size:
    """How much a run takes; ``cases`` are those selected."""

    cases: int
    trials: int

    @property
    def planned(self) -> int:
        """How many trials."""
        return self.cases * self.trials


def size_of(request: run_pb2.CreateRunRequest, version: Version) -> Size:
    """How much a run of this version takes. A limit above its cases means all."""
    selection = request.selection
    if (chosen := positions_of_phase(request, version)) is not None:
        return Size(len(chosen), request.trials or 1)
    wanted = selection.limit or selection.sample or version.cases
    return Size(min(wanted, version.cases), request.trials or 1)


def version_problems(request: run_pb2.CreateRunRequest, version: Version) -> list[str]:
    """Everything about a request that does not fit the version, a line each."""
    found = competitions.problems(request, version)
    if request.selection.sample > version.cases:
        found.append(
            f"selection.sample: expected at most the {version.cases:,} cases of {version.name},"
            f" found {request.selection.sample:,}"
        )
    size = size_of(request, version)
    if size.planned > MOST_PLANNED:
        found.append(
            f"trials: expected at most {MOST_PLANNED:,} in all, found {size.cases:,} cases"
            f" x {size.trials:,} = {size.planned:,}"
        )
    return found


def batch_of(answerer: Answerer, version: Version) -> int:
    """How many trials one start of the version's program takes; 0 where no program runs."""
    if version.competition_run:
        return 1
    if not version.harness_json or answerer.kind is Subject.LOADED:
        return 0
    batch: int = orjson.loads(version.harness_json)["batch"]
    return batch


def starts_problems(request: run_pb2.CreateRunRequest, version: Version, answerer: Answerer) -> list[str]:
    """Whether a run would start its program too often, a line."""
    batch = batch_of(answerer, version)
    planned = size_of(request, version).planned
    if batch and planned > MOST_STARTS * batch:
        return [
            f"trials: expected at most {MOST_STARTS:,} starts of the program of {version.name}, found"
            f" {planned:,} trials, {batch} a start"
        ]
    return []


def answerer_problems(answerer: Answerer, version: Version) -> list[str]:
    """Everything about who answers that does not fit the version, a line each."""
    if answerer.needs_solutions and not version.solutions_digest:
        return [
            f"model: {answerer.label} answers from reference solutions, and {version.name} has none (no oracle)"
        ]
    return []


def cache_problems(request: run_pb2.CreateRunRequest, answerer: Answerer) -> list[str]:
    """Why a run cannot use the response cache, if it wants to. Only calls of an endpoint are worth keeping: built-in
    models cost nothing, and what is made of the reference solutions must not outlive its run."""
    if not request.use_cache or answerer.kind is Subject.ENDPOINT:
        return []
    return [f"use_cache: expected a registered model, found {answerer.label}, whose answers are never cached"]


def submission_answerer(submission: environment_pb2.Submission) -> Answerer:
    """A submission as the one who answers: a runner works on it, and no model is called."""
    return Answerer(
        Subject.BUILTIN,
        run_pb2.Subject(submission=submission),
        SUBMISSION_POOL,
        _SUBMISSION_CAP,
        submission.label or submission.digest[:12],
        Generation(),
        simulated=False,
        needs_solutions=False,
    )


def model_answerer(model: model_pb2.Model) -> Answerer:
    """A registered or built-in model as the one who answers."""
    subject = run_pb2.Subject(model=model)
    generation = read_generation(model.generation)
    cap = model.max_concurrency or DEFAULT_CONCURRENCY
    if not is_builtin(model.name):
        return Answerer(
            Subject.ENDPOINT,
            subject,
            Pool(model.name),
            cap,
            model.name,
            generation,
            simulated=False,
            needs_solutions=False,
        )
    builtin = parse_builtin(model.name)
    name = model.name.partition("?")[0]
    kind, pool = Subject.BUILTIN, Pool(name)
    match builtin.spec.answered_by:
        case "scorer":
            kind, pool, cap = Subject.LOADED, LOADED_POOL, _LOADED_CAP
            needs_solutions = builtin.spec.name == "oracle"
        case "simulator":
            needs_solutions = True
        case "runner":
            needs_solutions = False
        case _:
            assert_never(builtin.spec.answered_by)
    simulated = builtin.spec.answered_by == "simulator"
    return Answerer(kind, subject, pool, cap, model.name, generation, simulated, needs_solutions)


def predictions_answerer(predictions: run_pb2.Predictions) -> Answerer:
    """Recorded answers as the ones who answer."""
    return Answerer(
        Subject.LOADED,
        run_pb2.Subject(predictions=predictions),
        LOADED_POOL,
        _LOADED_CAP,
        predictions.label or predictions.digest[:12],
        Generation(),
        simulated=False,
        needs_solutions=False,
    )


def merged(*layers: Generation) -> Generation:
    """Settings of which the first that says something wins; further request fields are joined one by one."""
    return Generation(
        temperature=next((layer.temperature for layer in layers if layer.temperature is not None), None),
        top_p=next((layer.top_p for layer in layers if layer.top_p is not None), None),
        max_tokens=next((layer.max_tokens for layer in layers if layer.max_tokens is not None), None),
        stop=next((layer.stop for layer in layers if layer.stop), ()),
        extra={name: value for layer in reversed(layers) for name, value in layer.extra.items()},
    )


def build_spec(
    run: RunId, request: run_pb2.CreateRunRequest, version: Version, answerer: Answerer
) -> run_pb2.RunSpec:
    """All that is needed to run again."""
    size = size_of(request, version)
    generation = merged(read_generation(request.generation), version.generation, answerer.generation)
    return run_pb2.RunSpec(
        run=run,
        environment=version.name,
        digest=version.digest,
        inputs_digest=version.inputs_digest,
        targets_digest=version.targets_digest,
        solutions_digest=version.solutions_digest,
        scoring_json=version.scoring_json,
        scoring_digest=version.scoring_digest,
        materialiser=version.materialiser,
        subject=answerer.subject,
        generation=generation_message(generation),
        seed=request.seed,
        trials=size.trials,
        cases=size.cases,
        selection=request.selection,
        planned=size.planned,
        simulated=answerer.simulated,
        max_tries=_MOST_TRIES,
        call_timeout_seconds=_CALL_SECONDS,
        primary_rule=version.primary_rule,
        use_cache=request.use_cache,
        harness_json=version.harness_json,
        competition_json=version.competition_run,
    )


def refusal(errors: list[BenchgenError]) -> BenchgenError:
    """One error for all: a single one as it is."""
    if len(errors) == 1:
        return errors[0]
    return InvalidInput("; ".join(error.message for error in errors))
