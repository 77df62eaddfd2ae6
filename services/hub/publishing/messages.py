"""Environments as the contracts spell them."""

from __future__ import annotations

from benchgen.bundle.problems import Problem
from benchgen.eval.v1 import environment_pb2
from services.hub.publishing.domain import (
    Environment,
    Publication,
    SolutionScores,
    State,
    Verdict,
    Verification,
    Version,
)
from services.hub.registry.messages import generation_message
from services.hub.wire import timestamp

_VERDICTS = {
    Verdict.VERIFIED: environment_pb2.Verification.STATE_VERIFIED,
    Verdict.UNVERIFIED: environment_pb2.Verification.STATE_UNVERIFIED,
    Verdict.FAILED: environment_pb2.Verification.STATE_FAILED,
}
_VERDICT_OF_STATE = {state: verdict for verdict, state in _VERDICTS.items()}

_STATES = {
    State.UPLOADED: environment_pb2.Publication.STATE_UPLOADED,
    State.VALIDATING: environment_pb2.Publication.STATE_VALIDATING,
    State.MATERIALISING: environment_pb2.Publication.STATE_MATERIALISING,
    State.VERIFYING: environment_pb2.Publication.STATE_VERIFYING,
    State.READY: environment_pb2.Publication.STATE_READY,
    State.REJECTED: environment_pb2.Publication.STATE_REJECTED,
}


def version_message(version: Version) -> environment_pb2.EnvironmentVersion:
    """A published version."""
    return environment_pb2.EnvironmentVersion(
        name=version.name,
        environment=version.environment,
        version=version.version,
        digest=version.digest,
        inputs_digest=version.inputs_digest,
        targets_digest=version.targets_digest,
        solutions_digest=version.solutions_digest,
        scoring_digest=version.scoring_digest,
        scoring_json=version.scoring_json,
        materialiser=version.materialiser,
        cases=version.cases,
        title=version.title,
        description=version.description,
        category=_category(version.category),
        tags=version.tags,
        license=version.license,
        generation=generation_message(version.generation),
        primary_rule=version.primary_rule,
        verification=verification_message(version.verification),
        yanked=version.yanked,
        create_time=timestamp(version.created_at),
        manifest_yaml=version.manifest_yaml,
        split=version.split,
        competition_json=version.competition_about,
    )


def environment_message(environment: Environment) -> environment_pb2.Environment:
    """An environment with its card."""
    return environment_pb2.Environment(
        name=environment.name,
        title=environment.title,
        description=environment.description,
        category=_category(environment.category),
        tags=environment.tags,
        latest_version=environment.latest or "",
        cases=environment.cases,
        create_time=timestamp(environment.created_at),
        update_time=timestamp(environment.updated_at),
    )


def publication_message(publication: Publication) -> environment_pb2.Publication:
    """An upload and where it stands."""
    verification = publication.verification
    return environment_pb2.Publication(
        name=publication.id,
        state=_STATES[publication.state],
        problems=map(_problem, publication.problems),
        environment_version=publication.environment_version,
        digest=publication.digest,
        already_published=publication.already_published,
        create_time=timestamp(publication.created_at),
        verification=None if verification is None else verification_message(verification),
        cases=publication.cases,
    )


def verification_message(verification: Verification) -> environment_pb2.Verification:
    """What the oracle and the empty answer scored."""
    return environment_pb2.Verification(
        state=_VERDICTS[verification.verdict],
        cases=verification.cases,
        oracle_mean=verification.oracle_mean,
        empty_mean=verification.empty_mean,
        message=verification.message,
        solutions=[
            environment_pb2.SolutionScores(
                solution=one.solution, case_id=one.case_id, scores=one.scores, error=one.error
            )
            for one in verification.solutions
        ],
    )


def read_verification(message: environment_pb2.Verification) -> Verification:
    """What the scorer said.

    :raises KeyError: it did not say how it ended.
    """
    return Verification(
        verdict=_VERDICT_OF_STATE[message.state],
        cases=message.cases,
        oracle_mean=message.oracle_mean if message.HasField("oracle_mean") else None,
        empty_mean=message.empty_mean if message.HasField("empty_mean") else None,
        message=message.message,
        solutions=tuple(
            SolutionScores(one.solution, one.case_id, dict(one.scores), one.error)
            for one in message.solutions
        ),
    )


def _category(name: str) -> environment_pb2.Category.ValueType:
    if not name:
        return environment_pb2.CATEGORY_UNSPECIFIED
    return environment_pb2.Category.Value(f"CATEGORY_{name.replace('-', '_').upper()}")


def _problem(problem: Problem) -> environment_pb2.Problem:
    return environment_pb2.Problem(
        file=problem.file, line=problem.line or 0, field=problem.field or "", message=problem.message
    )
