"""``environment.yaml`` as types. Reading it with friendly problems is in ``benchgen.bundle.parse``."""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from benchgen.bundle.programs import WHOLE_BUNDLE
from benchgen.scoring.spec import RuleSpec, RuleSpecs

MAX_NAME = 100
MAX_VERSION = 64
_PLAIN_NAME = r"[a-z0-9]+(?:-[a-z0-9]+)*"
_NAME = re.compile(rf"(?:{_PLAIN_NAME}/)?{_PLAIN_NAME}")
# https://semver.org, "Is there a suggested regular expression"
_SEMVER = re.compile(
    r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)"
    r"(?:-((?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9]\d*|\d*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
    r"(?:\+([0-9a-zA-Z-]+(?:\.[0-9a-zA-Z-]+)*))?"
)

# Types of the design that this version of BenchGen does not run yet.
UNSUPPORTED_HARNESSES = frozenset({"tools"})
UNSUPPORTED_RULES = frozenset({"instructions", "tool_calls", "judge", "column"})


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("expected lower-case letters, digits and single dashes, `org/` before them or not")
    return name


def _checked_version(version: str) -> str:
    if not _SEMVER.fullmatch(version):
        raise ValueError("expected a semantic version such as 1.0.0")
    return version


def name_problem(name: str) -> str | None:
    """Why a text cannot be the name of an environment, or None where it can."""
    if len(name) > MAX_NAME:
        return f"expected at most {MAX_NAME} characters, found {len(name)}"
    return _problem_of(_checked_name, name)


def version_problem(version: str) -> str | None:
    """Why a text cannot be a version, or None where it can."""
    if len(version) > MAX_VERSION:
        return f"expected at most {MAX_VERSION} characters, found {len(version)}"
    return _problem_of(_checked_version, version)


def _problem_of(check: Callable[[str], str], text: str) -> str | None:
    try:
        check(text)
    except ValueError as error:
        return f"{error}, found {text!r}"
    return None


def checked_path(path: str) -> str:
    """The path of a file of the bundle; raises ``ValueError`` where it could lead elsewhere."""
    if path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in path.split("/")):
        raise ValueError("expected a plain relative path inside the bundle, with / between folders")
    return path


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(values)) != len(values):
        raise ValueError("expected each entry once")
    return values


# A list of YAML becomes a tuple; what it holds is still checked strictly.
_FROM_LIST = Field(strict=False)

EnvironmentName = Annotated[str, Field(max_length=MAX_NAME), AfterValidator(_checked_name)]
Version = Annotated[str, Field(max_length=MAX_VERSION), AfterValidator(_checked_version)]
BundlePath = Annotated[str, Field(min_length=1, max_length=512), AfterValidator(checked_path)]
Label = Annotated[str, Field(min_length=1, max_length=64)]
StopText = Annotated[str, Field(min_length=1)]
# A field of the dataset, or a Jinja template over the fields of a row.
Source = Annotated[str, Field(min_length=1, max_length=100_000)]


class _Strict(BaseModel):
    """Nothing unknown, nothing converted, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Category(StrEnum):
    """What an environment measures, for browsing."""

    INSTRUCTION_FOLLOWING = "instruction-following"
    CODE_GENERATION = "code-generation"
    REASONING = "reasoning"
    TOOL_USE = "tool-use"
    DOMAIN_KNOWLEDGE = "domain-knowledge"
    AGENTIC = "agentic"
    OTHER = "other"


class FewShot(_Strict):
    """Solved examples before the question, drawn once for every case when the version is published.

    ``file`` defaults to the dataset itself, without the case in question. ``answer`` defaults to the oracle,
    and without one to the target.
    """

    file: BundlePath | None = None
    count: Annotated[int, Field(ge=1, le=100)]
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    answer: Source | None = None


class Dataset(_Strict):
    """The cases: one row of ``file`` each.

    ``id``, ``target`` and ``cluster`` are fields or templates; ``id`` defaults to the row number from 0.
    ``target`` may be absent only where no rule needs it. ``slices`` are fields by which results are broken
    down.
    """

    file: BundlePath
    id: Source | None = None
    target: Source | None = None
    cluster: Source | None = None
    slices: Annotated[tuple[Label, ...], _FROM_LIST, Field(max_length=20), AfterValidator(_distinct)] = ()
    split: Label = "test"
    few_shot: FewShot | None = None


class Generation(_Strict):
    """Parameters of a model call that the environment wants; None leaves them to the model's own defaults."""

    temperature: Annotated[float, Field(ge=0, le=10)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=10_000_000)] | None = None
    stop: Annotated[tuple[StopText, ...], _FROM_LIST, Field(max_length=16), AfterValidator(_distinct)] = ()
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None


class MessageTemplate(_Strict):
    """One message of a fixed conversation; ``content`` is a template."""

    role: Literal["system", "user", "assistant"]
    content: Source


class ChatHarness(_Strict):
    """One model call a trial. Either ``prompt``, which becomes the user message, or ``messages``."""

    type: Literal["chat"]
    system: Source | None = None
    prompt: Source | None = None
    messages: Annotated[tuple[MessageTemplate, ...], _FROM_LIST, Field(max_length=100)] = ()
    generation: Generation = Generation()

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Self:
        if (self.prompt is None) == (not self.messages):
            raise ValueError("expected exactly one of `prompt` and `messages`")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError(f"expected a last message of the user, found role {self.messages[-1].role!r}")
        return self


def _checked_folder(folder: str) -> str:
    return folder if folder == WHOLE_BUNDLE else checked_path(folder)


class ProgramLimits(_Strict):
    """What one start of a program may use. Time also bounds the model calls that it waits for."""

    seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    cpu_seconds: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    memory_mb: Annotated[int, Field(ge=16, le=65_536)] = 1_024
    processes: Annotated[int, Field(ge=1, le=4_096)] = 64
    disk_mb: Annotated[int, Field(ge=1, le=65_536)] = 512
    output_mb: Annotated[int, Field(ge=1, le=64)] = 1


class ProgramHarness(_Strict):
    """A program of the bundle gives the answer; it runs in a sandbox and reaches the model through a proxy.

    ``files`` is a folder of the bundle, or ``.`` for all of it but the manifest, the data and what judges. ``fields``
    are the fields of a row that the program sees; with ``io: text`` it reads the last message of the user and prints
    the answer.
    """

    type: Literal["program"]
    files: Annotated[str, Field(min_length=1, max_length=512), AfterValidator(_checked_folder)]
    command: Annotated[
        tuple[Annotated[str, Field(min_length=1, max_length=4_096)], ...],
        _FROM_LIST,
        Field(min_length=1, max_length=100),
    ]
    system: Source | None = None
    prompt: Source | None = None
    messages: Annotated[tuple[MessageTemplate, ...], _FROM_LIST, Field(max_length=100)] = ()
    fields: Annotated[tuple[Label, ...], _FROM_LIST, Field(max_length=100), AfterValidator(_distinct)] = ()
    io: Literal["jsonl", "text"] = "jsonl"
    batch: Annotated[int, Field(ge=1, le=256)] = 1
    calls: Annotated[int, Field(ge=1, le=10_000)] = 50
    runtime: Label = "default"
    limits: ProgramLimits = ProgramLimits()
    generation: Generation = Generation()

    @model_validator(mode="after")
    def _something_to_see(self) -> Self:
        if self.prompt is not None and self.messages:
            raise ValueError("expected at most one of `prompt` and `messages`")
        if self.system is not None and self.prompt is None and not self.messages:
            raise ValueError("expected `prompt` or `messages` beside `system`")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError(f"expected a last message of the user, found role {self.messages[-1].role!r}")
        asks = self.prompt is not None or bool(self.messages)
        if not asks and not self.fields:
            raise ValueError(
                "expected `prompt`, `messages` or `fields`: the program has to see something of a case"
            )
        if self.io == "text" and not asks:
            raise ValueError(
                "expected `prompt` or `messages` with `io: text`, which is what the program reads"
            )
        if self.io == "text" and self.fields:
            raise ValueError("expected no `fields` with `io: text`: the program reads the last message alone")
        if self.io == "text" and self.batch > 1:
            raise ValueError("expected `batch: 1` with `io: text`")
        return self


Harness = Annotated[ChatHarness | ProgramHarness, Field(discriminator="type")]


class Verify(_Strict):
    """What publishing checks: the mean score of the empty answer, and that of the oracle."""

    empty_max: Annotated[float, Field(ge=0, le=1)] = 0.0
    oracle_min: Annotated[float, Field(ge=0, le=1)] = 1.0


def _one_primary(rules: tuple[RuleSpec, ...]) -> tuple[RuleSpec, ...]:
    if not any(rule.primary for rule in rules):
        raise ValueError("expected exactly one rule with `primary: true`, found none")
    return rules


class CaseRecipe(_Strict):
    """The parts of a manifest that cases are made with."""

    dataset: Dataset
    harness: Harness
    oracle: Source | None = None
    scoring: Annotated[tuple[RuleSpec, ...], _FROM_LIST]


class EnvironmentManifest(CaseRecipe):
    """The whole of ``environment.yaml``. Exactly one rule of ``scoring`` is primary."""

    # `schema` itself is a method of pydantic models.
    schema_version: Literal[1] = Field(alias="schema")
    name: EnvironmentName
    version: Version
    title: Annotated[str, Field(min_length=1, max_length=200)]
    description: Annotated[str, Field(max_length=2_000)] = ""
    category: Annotated[Category, Field(strict=False)] = Category.OTHER
    tags: Annotated[tuple[Label, ...], _FROM_LIST, Field(max_length=50), AfterValidator(_distinct)] = ()
    license: Annotated[str, Field(max_length=200)] | None = None
    scoring: Annotated[RuleSpecs, AfterValidator(_one_primary)]
    verify: Verify = Verify()

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        """The title defaults to the name, and a rule that is alone is primary."""
        if not isinstance(data, dict):
            return data
        data = dict(data)
        name = data.get("name")
        data.setdefault("title", name if isinstance(name, str) and name else "untitled")
        rules = data.get("scoring")
        if isinstance(rules, list) and len(rules) == 1 and isinstance(rules[0], dict):
            data["scoring"] = [{"primary": True, **rules[0]}]
        return data
