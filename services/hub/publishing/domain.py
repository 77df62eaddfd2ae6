"""Environments, versions and publications as values, and the order of versions."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple
from uuid import UUID

from benchgen.bundle.problems import Problem
from services.hub.registry.domain import Generation

MOST_DEATHS = 3
"""How often the work on an upload may end without an answer before the upload is refused."""


class State(StrEnum):
    """Where an upload stands."""

    UPLOADED = "UPLOADED"
    VALIDATING = "VALIDATING"
    MATERIALISING = "MATERIALISING"
    VERIFYING = "VERIFYING"
    READY = "READY"
    REJECTED = "REJECTED"


class Verdict(StrEnum):
    """How a verification ended."""

    VERIFIED = "VERIFIED"
    UNVERIFIED = "UNVERIFIED"
    FAILED = "FAILED"


@dataclass(frozen=True, slots=True)
class SolutionScores:
    """What one solution of a competition scored on one case, by column, and why where there is no score."""

    solution: str
    case_id: str
    scores: dict[str, float]
    error: str


@dataclass(frozen=True, slots=True)
class Verification:
    """What the reference solutions and the empty answer scored: means of the primary rule, 0 to 1."""

    verdict: Verdict
    cases: int
    oracle_mean: float | None
    empty_mean: float | None
    message: str
    solutions: tuple[SolutionScores, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionContent:
    """What makes a version what it is. Digests are sha256 in lower-case hex."""

    digest: str
    environment: str
    version: str
    inputs_digest: str
    targets_digest: str
    solutions_digest: str
    """Empty without an oracle."""
    scoring_digest: str
    scoring_json: str
    materialiser: str
    cases: int
    primary_rule: str
    split: str
    title: str
    description: str
    category: str
    """As the manifest spells it: ``domain-knowledge``."""
    tags: tuple[str, ...]
    license: str
    generation: Generation
    manifest_yaml: str
    harness_json: str = ""
    """The program of a harness, as runs have to know it; empty for harnesses without one."""
    competition_run: str = ""
    """What runs need of a competition; empty for other environments."""
    competition_about: str = ""
    """What people read of a competition."""

    @property
    def name(self) -> str:
        """``environment@version``."""
        return f"{self.environment}@{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version(VersionContent):
    """A published version."""

    verification: Verification
    created_at: datetime
    yanked: bool


@dataclass(frozen=True, slots=True)
class Environment:
    """An environment with what its card shows; ``latest`` is None when every version is yanked."""

    name: str
    latest: str | None
    title: str
    description: str
    category: str
    tags: tuple[str, ...]
    cases: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Publication:
    """An upload on its way to being a version."""

    id: str
    state: State
    problems: tuple[Problem, ...]
    digest: str
    environment_version: str
    cases: int
    verification: Verification | None
    already_published: bool
    created_at: datetime


class Wanted(NamedTuple):
    """How a bundle that does not say it itself is to be called; what is empty is made up."""

    name: str
    version: str


class Claim(NamedTuple):
    """The right to work on a publication, for as long as the token is the row's."""

    publication: str
    token: UUID
    upload_sha256: str
    wanted: Wanted = Wanted("", "")


@dataclass(frozen=True, slots=True)
class Built:
    """What a valid bundle became, and what it promises of its scores."""

    content: VersionContent
    oracle_min: float
    empty_max: float


class Reference(NamedTuple):
    """How a caller names a version: by digest, or by environment with or without a version."""

    environment: str
    version: str
    digest: str


_DIGEST = re.compile(r"[0-9a-f]{64}")


def parse_reference(text: str) -> Reference:
    """Read ``name@version``, ``name`` or a digest; what is not given is empty."""
    if _DIGEST.fullmatch(text):
        return Reference("", "", text)
    environment, _, version = text.partition("@")
    return Reference(environment, version, "")


def precedence(version: str) -> str:
    """A text that sorts, byte by byte, as semver precedence does; build metadata does not count.

    Numbers carry their length, so that 10 follows 9. A blank ends an identifier and is lower than any
    character of one. A release ends in ``~``, which is higher than the start of any pre-release.
    """
    core, _, pre = version.partition("+")[0].partition("-")
    numbers = "".join(_number(part) for part in core.split("."))
    if not pre:
        return f"{numbers}~"
    identifiers = (f"1{_number(part)}" if part.isdigit() else f"2{part}" for part in pre.split("."))
    return numbers + "".join(f"{identifier} " for identifier in identifiers)


def _number(digits: str) -> str:
    return f"{len(digits):02d}{digits}"


def broken_promises(built: Built, verification: Verification) -> list[Problem]:
    """What a failed verification says about the bundle."""
    content, problems = built.content, []
    over = f"on `{content.primary_rule}`"
    cases = f"over {verification.cases:,} cases"
    oracle, empty = verification.oracle_mean, verification.empty_mean
    if oracle is not None and oracle < built.oracle_min:
        problems.append(
            Problem(
                "environment.yaml",
                f"expected the reference solutions to score at least {built.oracle_min:g} {over},"
                f" found a mean of {oracle:.4g} {cases}",
                field="oracle",
            )
        )
    if empty is not None and empty > built.empty_max:
        problems.append(
            Problem(
                "environment.yaml",
                f"expected the empty answer to score at most {built.empty_max:g} {over},"
                f" found a mean of {empty:.4g} {cases}; set verify.empty_max where that is meant",
                field="verify.empty_max",
            )
        )
    # What the scorer says beside the means is an example for each that is broken.
    example = verification.message or "expected the verification to pass, found that it failed"
    if not problems:
        return [Problem("environment.yaml", example, field="verify")]
    return [*problems[:-1], replace(problems[-1], message=f"{problems[-1].message} ({example})")]


def taken(name: str, digest: str) -> Problem:
    """The problem of a version that exists with other content."""
    return Problem(
        "environment.yaml",
        f"{name} is published already with other content (digest {digest[:12]}): raise the version",
        field="version",
    )


def died(reason: str) -> Problem:
    """The problem of an upload whose processing kept ending without an answer."""
    return Problem(
        "", f"processing this bundle failed {MOST_DEATHS} times and was given up, the last time: {reason}"
    )
