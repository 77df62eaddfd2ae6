"""The answers of the HTTP API as its OpenAPI document describes them.

What is sent is made in ``benchgen.schemas``, for the command line and this API alike; these say the same to whoever
reads the document, and a test holds every answer against them. They are never used to make one.
"""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field


class Shape(BaseModel):
    """A JSON object with these fields and no others, all of them always there."""

    model_config = ConfigDict(extra="forbid", defer_build=True, protected_namespaces=())


class FieldProblem(Shape):
    """One thing in a request that cannot be used."""

    field: Annotated[str, Field(description="Such as `generation.temperature`.")]
    message: str


class Problem(Shape):
    """What went wrong (RFC 9457)."""

    type: str
    title: Annotated[str, Field(description="The words of the status.")]
    status: int
    detail: Annotated[str, Field(description="What happened, for people.")]
    reason: Annotated[str, Field(description="What happened, for programs.", examples=["NOT_FOUND"])]
    errors: Annotated[list[FieldProblem], Field(description="Only for requests that cannot be used.")] = []
    metadata: Annotated[dict[str, str], Field(description="More about the reason.")] = {}


class Generation(Shape):
    """How a model is asked; what is null is left to the endpoint."""

    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    stop: list[str]
    extra: dict[str, Any]


class Environment(Shape):
    """An environment, with what its latest version says."""

    name: str
    latest_version: str | None
    title: str
    description: str
    category: str | None
    tags: list[str]
    cases: int
    created_at: str | None
    updated_at: str | None


class SolutionScores(Shape):
    """What a solution of a competition scored on one task of a phase, by column."""

    solution: str
    case_id: str
    scores: dict[str, float]
    error: Annotated[str | None, Field(description="Said to keys with the scope `publish` or `answers`.")]


class Verification(Shape):
    """What the reference solutions and the empty answer scored."""

    state: Annotated[str, Field(description="`verified`, `unverified` or `failed`.")]
    cases: int
    oracle_mean: float | None
    empty_mean: float | None
    message: Annotated[
        str | None,
        Field(description="What failed is said to keys with the scope `publish` or `answers`."),
    ]
    solutions: Annotated[
        list[SolutionScores], Field(description="Of competitions: what its solutions scored.")
    ]


class Version(Shape):
    """One immutable state of an environment."""

    name: Annotated[str, Field(description="`name@version`.")]
    environment: str
    version: str
    title: str
    description: str
    category: str | None
    tags: list[str]
    license: str | None
    cases: int
    split: str | None
    digest: str
    inputs_digest: str
    targets_digest: str
    solutions_digest: str | None
    scoring_digest: str
    scoring: Annotated[
        list[dict[str, Any]] | None, Field(description="The rules; null without the scope `answers`.")
    ]
    primary_rule: str
    materialiser: str
    generation: Generation
    verification: Verification | None
    yanked: bool
    created_at: str | None
    manifest_yaml: Annotated[str | None, Field(description="Null without the scope `answers`.")]
    competition: Annotated[
        dict[str, Any] | None,
        Field(
            description="Of competition.yaml bundles: title, pages, phases, columns, and what else people read."
        ),
    ]


class BundleProblem(Shape):
    """One thing that is wrong with an uploaded environment."""

    file: str
    line: int | None
    field: str | None
    message: Annotated[str, Field(description="Said to keys with the scope `publish` or `answers`.")]


class Publication(Shape):
    """One upload on its way to being a version."""

    publication: str
    state: Annotated[
        str,
        Field(
            description="`uploaded`, `validating`, `materialising`, `verifying`; at the end `ready` or `rejected`."
        ),
    ]
    environment_version: str | None
    digest: str | None
    already_published: bool
    cases: int | None
    verification: Verification | None
    problems: list[BundleProblem]
    created_at: str | None


class Price(Shape):
    """US dollars per million tokens, as decimal texts; null is unknown."""

    input: str | None
    output: str | None
    cached: str | None


class Model(Shape):
    """A model. `model` is its id at the endpoint."""

    name: str
    base_url: str | None
    model: str | None
    builtin: bool
    description: str
    has_secret: bool
    price_usd_per_mtok: Price
    max_concurrency: int
    generation: Generation
    created_at: str | None


class Tokens(Shape):
    """Tokens; null is not reported."""

    input: int | None
    output: int | None


class ModelTest(Shape):
    """What came back from one tiny call."""

    ok: bool
    response: str | None
    error: str | None
    http_status: int | None
    latency_ms: float
    reported_model: str | None
    tokens: Tokens | None


class CacheCleared(Shape):
    """What was removed from the response cache."""

    removed: Annotated[int, Field(description="How many answers.")]


class Selection(Shape):
    """Which cases were taken; both null is all."""

    limit: int | None
    sample: int | None
    phase: Annotated[str | None, Field(description="Of a competition: only this phase.")]


class Progress(Shape):
    """How far a run is. Counts are of trials."""

    planned: int
    recorded: int
    scored: int
    passed: int
    faults: int
    calls: int
    tokens: Tokens
    cost_usd: Annotated[float | None, Field(description="Null when the cost of any call is unknown.")]
    calls_of_unknown_cost: int
    cache_hits: Annotated[int, Field(description="Results that the response cache gave.")]
    shards: int
    shards_done: int


class BudgetUse(Shape):
    """How much of a budget is used. What is not known of a call counts as the most that it can have been."""

    cost_usd: float
    tokens: int
    seconds: Annotated[
        float, Field(description="Working time: that in which a run is paused does not count.")
    ]
    errors: int
    reserved_usd: Annotated[
        float, Field(description="Reserved for calls that are being made; what they do not use comes back.")
    ]
    reserved_tokens: int


class Budget(Shape):
    """What a run may spend; null is not limited."""

    cost_usd: float | None
    tokens: int | None
    seconds: float | None
    errors: Annotated[
        int | None, Field(description="How many results may stand at a fault that is not the model's doing.")
    ]
    used: BudgetUse


class Run(Shape):
    """A run: what it is, where it stands and how far it is."""

    run: str
    state: Annotated[
        str,
        Field(
            description="`queued`, `running`, `scoring`, `cancelling`, `paused`; at the end `succeeded`, `failed` or"
            " `cancelled`."
        ),
    ]
    state_message: str | None
    actions: Annotated[
        list[str], Field(description="What can be done with it now: `pause`, `resume`, `cancel`, `delete`.")
    ]
    environment: str
    digest: str
    model: str
    simulated: bool
    cases: int
    trials: int
    planned: int
    seed: int
    selection: Selection
    generation: Generation
    primary_rule: str
    priority: int
    cache: Annotated[bool, Field(description="Whether it uses the response cache.")]
    budget: Budget | None
    progress: Progress
    created_at: str | None
    started_at: str | None
    ended_at: str | None


class Estimate(Shape):
    """What a run would take; null is not known. Calls that are made again come on top."""

    environment: str
    planned: int
    calls: Annotated[int, Field(description="Each made once; of a program the most that it may make.")]
    input_tokens: Annotated[int | None, Field(description="About: a quarter of the bytes of the prompts.")]
    most_input_tokens: int | None
    most_output_tokens: int | None
    most_cost_usd: float | None
    unknown: Annotated[list[str], Field(description="What is not known, and why.")]


class Predictions(Shape):
    """Stored answers."""

    digest: str
    rows: int
    label: str


class StoredPredictions(Shape):
    """Stored answers and what they answer; can be sent to `POST /api/v1/runs` as it is."""

    environment: str
    predictions: Predictions


class Submission(Shape):
    """A stored zip for a competition."""

    digest: str
    files: int
    label: str
    answers_only: bool


class StoredSubmission(Shape):
    """A stored submission; can be sent to `POST /api/v1/runs` with the name of an environment."""

    submission: Submission


class TaskPredictions(Shape):
    """A zip of predictions."""

    digest: str
    bytes: int


class StepProgram(Shape):
    """How one program of a task went."""

    step: Annotated[str, Field(description="`prediction` or `scoring`.")]
    name: Annotated[str, Field(description="`ingestion`, `submission` or `scoring`.")]
    ended: str
    exit_code: int | None
    seconds: float
    stdout: str
    stderr: str
    cut: Annotated[bool, Field(description="Whether either was longer; the ends are kept.")]


class Task(Shape):
    """How a task of a competition went."""

    run: str
    case_id: str
    trial: int
    error: Annotated[str | None, Field(description="Why there are no scores; with the scope `answers`.")]
    has_details: bool
    cases: Annotated[int, Field(description="How many cases the scoring program told one by one.")]
    predictions: TaskPredictions | None
    programs: list[StepProgram]


class LeaderboardEntry(Shape):
    """A run on a leaderboard."""

    place: int
    run: str
    model: str
    scores: dict[str, float | None]
    reported_at: str | None


class Leaderboard(Shape):
    """The runs of a phase of a competition, the best first."""

    columns: list[str]
    entries: list[LeaderboardEntry]


class Message(Shape):
    """A message of a role."""

    role: str
    content: str


class Score(Shape):
    """One rule's value for one result; null when the rule failed."""

    value: float | None
    passed: bool | None
    answer: Annotated[
        str | None,
        Field(
            description="What was taken from the response. Without the scope `answers` null for `builtin/oracle`"
            " and `builtin/simulated`."
        ),
    ]
    explanation: Annotated[str, Field(description="Empty without the scope `answers`.")]
    error: Annotated[
        str | None,
        Field(
            description="What went wrong with the rule. The reason is said to keys with the scope `answers`."
        ),
    ]


class Usage(Tokens):
    """Tokens of a call; null is not reported."""

    cached: int | None
    reasoning: int | None


class FailedCall(Shape):
    """A try that was made again."""

    http_status: int | None
    error: str
    latency_ms: float
    tokens: Usage | None
    wait_ms: float


class Payload(Shape):
    """A whole answer that does not fit here."""

    digest: str
    bytes: int


class Program(Shape):
    """How the program of a harness went."""

    ended: Annotated[
        str,
        Field(
            description="`exited`, `signalled`, `wall_limit`, `cpu_limit`, `memory_limit` or `output_limit`."
        ),
    ]
    exit_code: int | None
    signal: int | None
    wall_seconds: float
    cpu_seconds: float
    peak_memory_bytes: int | None
    stdout: str
    stderr: str
    cut: Annotated[bool, Field(description="Whether either output was longer than what is kept.")]
    batch: Annotated[int, Field(description="How many trials it was started for.")]


class ModelCall(Shape):
    """A model call that a program made."""

    number: int
    attempt: int
    endpoint: Annotated[str, Field(description="`chat.completions` or `completions`.")]
    request: Annotated[
        Any,
        Field(
            description="What the program asked. Without the scope `answers` null for `builtin/simulated`;"
            " so is `answer`."
        ),
    ]
    answer: Annotated[Any, Field(description="What the program was answered; null when the call failed.")]
    error: str | None
    latency_ms: float | None
    tokens: Usage | None
    cost_usd: float | None
    tries: int
    failed_calls: list[FailedCall]
    reported_model: str | None
    request_digest: str
    answered_by: Annotated[
        int | None,
        Field(description="The call whose answer the program got instead, of another attempt."),
    ]
    started_at: str | None
    recorded_at: str | None


class Result(Shape):
    """What one trial produced, with its scores by rule."""

    run: str
    case_id: str
    position: int
    trial: int
    attempt: int
    outcome: str
    input: list[Message]
    response: Annotated[
        str,
        Field(
            description="Without the scope `answers` empty for `builtin/oracle` and `builtin/simulated`, which"
            " answer from the reference solutions; so is `reasoning`."
        ),
    ]
    reasoning: str | None
    target: Annotated[Any, Field(description="The expected answer; null without the scope `answers`.")]
    scores: dict[str, Score]
    latency_ms: float | None
    tokens: Usage | None
    cost_usd: float | None
    cached: Annotated[
        bool, Field(description="From the response cache: no call, no latency, no tokens, no cost.")
    ]
    saved_tokens: Annotated[
        Usage | None, Field(description="Of the call that an answer from the cache once took.")
    ]
    error: str | None
    finish_reason: str | None
    failed_calls: list[FailedCall]
    reported_model: str | None
    payload: Payload | None
    recorded_at: str | None
    calls: int
    program: Program | None


class Coverage(Shape):
    """How much of the plan is behind the numbers. Counts are of trials."""

    planned: int
    recorded: int
    scored: int


class SliceMetric(Shape):
    """The primary rule over the questions that have one value of a field."""

    mean: float | None
    ci95: Annotated[list[float] | None, Field(min_length=2, max_length=2)]
    n: Annotated[int, Field(description="How many questions.")]


class Metric(SliceMetric):
    """One rule over a run."""

    stderr: float | None
    passed: int
    failed: int
    errors: int
    missing: Annotated[
        int, Field(description="Planned trials without a score of this rule, errors included.")
    ]
    method: str | None
    worst: float | None
    best: float | None


class Latency(Shape):
    """Milliseconds."""

    mean: float
    p50: float
    p95: float


class Cost(Shape):
    """US dollars."""

    total: float
    per_case: float


class PassAtK(Shape):
    """The unbiased estimate over questions that have at least k scored trials."""

    mean: float
    n: int


class Report(Shape):
    """A run's report."""

    run: str
    number: int
    environment: str
    digest: str
    model: str
    state: str
    simulated: bool
    trials: int
    coverage: Coverage
    primary_rule: str
    metrics: dict[str, Metric]
    slices: Annotated[dict[str, dict[str, SliceMetric]], Field(description="By field and value.")]
    pass_at_k: Annotated[
        dict[str, dict[str, PassAtK]],
        Field(
            description="By rule and k, for runs with several trials: the chance that one of k answers passes."
        ),
    ]
    outcomes: dict[str, int]
    latency_ms: Latency | None
    tokens: Tokens | None
    cost_usd: Cost | None
    cost_known_cases: int
    budget: Annotated[Budget | None, Field(description="What the run was allowed to spend, and did.")]
    calls: int
    cache_hits: Annotated[int, Field(description="Results that the response cache gave.")]
    saved_tokens: Annotated[Tokens | None, Field(description="Of the calls that these once took.")]
    totals_only: Annotated[
        bool, Field(description="Of competitions: the scoring program said nothing of single cases.")
    ]
    seconds: float


class KeyBudget(Shape):
    """What all runs of a key may spend a day (UTC); null is not limited."""

    cost_usd: float | None
    tokens: int | None


class Key(Shape):
    """An API key, without its secret."""

    key: Annotated[str, Field(description="Its id.")]
    name: str
    scopes: list[str]
    daily_budget: KeyBudget
    created_at: str | None
    expires_at: str | None
    revoked_at: str | None
    last_used_at: str | None


class NewKey(Key):
    """A key that was made."""

    secret: Annotated[str, Field(description="What its holder sends. Shown once: only its hash is stored.")]


Item = TypeVar("Item", bound=Shape)


class Page(Shape, Generic[Item]):
    """A page of a list."""

    items: list[Item]
    next_page_token: Annotated[str | None, Field(description="Null on the last page.")]


class EnvironmentPage(Page[Environment]):
    """A page of environments."""


class VersionPage(Page[Version]):
    """A page of versions."""


class ModelPage(Page[Model]):
    """A page of models."""


class RunPage(Page[Run]):
    """A page of runs."""


class KeyPage(Page[Key]):
    """All keys."""


class ResultPage(Page[Result]):
    """A page of results."""


class CallPage(Page[ModelCall]):
    """A page of model calls."""
