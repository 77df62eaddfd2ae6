"""What requests carry, checked before any service sees it."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from benchgen.eval.v1 import environment_pb2, key_pb2, model_pb2, run_pb2

_FORM = ConfigDict(extra="forbid")

Price = Annotated[Decimal, Field(ge=0, allow_inf_nan=False, max_digits=18)]


def _text(price: Decimal | None) -> str:
    return "" if price is None else format(price, "f")


class GenerationBody(BaseModel):
    """How a model is asked. What is left out is left to the environment, the model, and the endpoint."""

    model_config = _FORM

    temperature: Annotated[
        float | None, Field(ge=0, allow_inf_nan=False, description="Sampling temperature.")
    ] = None
    top_p: Annotated[float | None, Field(gt=0, le=1, description="Nucleus sampling.")] = None
    max_tokens: Annotated[
        int | None, Field(ge=1, le=2**32 - 1, description="The most tokens a reply may have.")
    ] = None
    stop: Annotated[list[str], Field(description="Sequences that end a reply.")] = []
    extra: Annotated[
        dict[str, Any], Field(description="Further fields of the request to the endpoint, sent as they are.")
    ] = {}

    def message(self) -> environment_pb2.Generation:
        """The same as the services know it."""
        return environment_pb2.Generation(
            temperature=self.temperature,
            top_p=self.top_p,
            max_tokens=self.max_tokens,
            stop=self.stop,
            extra_json=json.dumps(self.extra) if self.extra else "",
        )


class PriceBody(BaseModel):
    """What tokens cost, US dollars per million. A price that is left out is unknown, not 0."""

    model_config = _FORM

    input: Annotated[Price | None, Field(description="Tokens of prompts.", examples=["0.15"])] = None
    output: Annotated[Price | None, Field(description="Tokens of replies.", examples=["0.60"])] = None
    cached: Annotated[
        Price | None,
        Field(description="Tokens of prompts that were read from a cache; the input price else."),
    ] = None

    def message(self) -> model_pb2.Price:
        """The same as the services know it."""
        return model_pb2.Price(
            input_usd_per_mtok=_text(self.input),
            output_usd_per_mtok=_text(self.output),
            cached_usd_per_mtok=_text(self.cached),
        )


class ModelBody(BaseModel):
    """A model to register: an endpoint that speaks OpenAI's chat completions."""

    model_config = _FORM | ConfigDict(
        protected_namespaces=(),
        json_schema_extra={
            "examples": [
                {
                    "name": "gpt-4o-mini",
                    "base_url": "https://api.openai.com/v1",
                    "model": "gpt-4o-mini",
                    "secret": "sk-...",
                    "price_usd_per_mtok": {"input": "0.15", "output": "0.60"},
                    "max_concurrency": 32,
                }
            ]
        },
    )

    name: Annotated[str, Field(description="What runs call it.", min_length=1, max_length=200)]
    base_url: Annotated[str, Field(description="Where it is, such as `https://host/v1`.", max_length=2000)]
    model: Annotated[str, Field(description="The model's id at the endpoint.", max_length=500)]
    secret: Annotated[
        str | None,
        Field(
            description="The key that the endpoint wants. Stored encrypted, never returned.",
            max_length=10_000,
        ),
    ] = None
    description: Annotated[str, Field(description="One line about it.", max_length=1000)] = ""
    price_usd_per_mtok: Annotated[PriceBody | None, Field(description="What tokens cost.")] = None
    max_concurrency: Annotated[
        int | None,
        Field(ge=1, le=2**31 - 1, description="The most calls in flight over all runners; 64 else."),
    ] = None
    generation: Annotated[GenerationBody | None, Field(description="Defaults for requests.")] = None

    def message(self) -> model_pb2.Model:
        """The same as the services know it, without the secret."""
        return model_pb2.Model(
            name=self.name,
            base_url=self.base_url,
            model_id=self.model,
            api=model_pb2.Model.API_OPENAI_CHAT,
            description=self.description,
            price=self.price_usd_per_mtok.message() if self.price_usd_per_mtok else None,
            max_concurrency=self.max_concurrency or 0,
            generation=self.generation.message() if self.generation else None,
        )


class PredictionsBody(BaseModel):
    """Recorded answers, as `POST /api/v1/predictions` returned them."""

    model_config = _FORM

    digest: Annotated[
        str, Field(pattern="^[0-9a-f]{64}$", description="sha256 that names the stored answers.")
    ]
    rows: Annotated[int, Field(ge=0, le=2**32 - 1, description="How many there are.")] = 0
    label: Annotated[str, Field(max_length=200, description="What to call them in lists.")] = ""


class BudgetBody(BaseModel):
    """What a run may spend. When it is used up the run is paused; what is left out is not limited."""

    model_config = _FORM | ConfigDict(json_schema_extra={"examples": [{"cost_usd": "2.50", "errors": 20}]})

    cost_usd: Annotated[
        Decimal | None,
        Field(
            ge=0,
            le=1_000_000,
            allow_inf_nan=False,
            description="US dollars. The model's prices must be known, and something must bound its replies.",
        ),
    ] = None
    tokens: Annotated[int | None, Field(ge=0, le=2**60, description="Tokens in and out.")] = None
    seconds: Annotated[
        float | None, Field(gt=0, le=3e8, allow_inf_nan=False, description="Working time.")
    ] = None
    errors: Annotated[
        int | None, Field(ge=0, le=2**31 - 1, description="How many results may stand at a fault.")
    ] = None

    def message(self) -> run_pb2.Budget:
        """The same as the services know it."""
        budget = run_pb2.Budget(
            cost_picousd=None if self.cost_usd is None else int(self.cost_usd * 10**12),
            tokens=self.tokens,
            errors=self.errors,
        )
        if self.seconds is not None:
            budget.time.FromTimedelta(timedelta(seconds=self.seconds))
        return budget


class KeyBudgetBody(BaseModel):
    """What all runs of a key may spend a day (UTC); what is left out is not limited."""

    model_config = _FORM

    cost_usd: Annotated[
        Decimal | None, Field(ge=0, le=1_000_000, allow_inf_nan=False, description="US dollars.")
    ] = None
    tokens: Annotated[int | None, Field(ge=0, le=2**60, description="Tokens in and out.")] = None

    def message(self) -> key_pb2.KeyBudget:
        """The same as the services know it."""
        return key_pb2.KeyBudget(
            cost_picousd=None if self.cost_usd is None else int(self.cost_usd * 10**12), tokens=self.tokens
        )


class KeyBody(BaseModel):
    """An API key to make."""

    model_config = _FORM | ConfigDict(
        json_schema_extra={
            "examples": [{"name": "ci", "scopes": ["read", "run"], "daily_budget": {"cost_usd": "5"}}]
        }
    )

    name: Annotated[str, Field(min_length=1, max_length=100, description="What people call it.")]
    scopes: Annotated[list[str], Field(min_length=1, description="What it may do.")]
    daily_budget: Annotated[KeyBudgetBody | None, Field(description="What it may spend a day.")] = None
    expires_at: Annotated[AwareDatetime | None, Field(description="From when on it is refused.")] = None

    def message(self) -> key_pb2.CreateKeyRequest:
        """The same as the services know it."""
        request = key_pb2.CreateKeyRequest(
            display_name=self.name,
            scopes=self.scopes,
            daily_budget=self.daily_budget.message() if self.daily_budget else None,
        )
        if self.expires_at is not None:
            request.expire_time.FromDatetime(self.expires_at)
        return request


class ResumeBody(BaseModel):
    """How a run goes on."""

    model_config = _FORM

    budget: Annotated[
        BudgetBody | None,
        Field(description="Takes the place of the run's budget; what was spent before counts."),
    ] = None


class SubmissionBody(BaseModel):
    """A zip for a competition, as `POST /api/v1/submissions` returned it."""

    model_config = _FORM

    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="sha256 that names the files.")]
    files: Annotated[int, Field(ge=0, le=2**32 - 1, description="How many files it has.")] = 0
    label: Annotated[str, Field(max_length=200, description="What to call it in lists.")] = ""
    answers_only: Annotated[
        bool, Field(description="Whether it holds predictions, and nothing is run to make them.")
    ] = False


class RunBody(BaseModel):
    """A run to create: an environment, and a model, recorded answers, or a submission to a competition."""

    model_config = _FORM | ConfigDict(
        json_schema_extra={
            "examples": [
                {"environment": "gsm8k-mini", "model": "builtin/simulated?accuracy=0.9", "limit": 20}
            ]
        }
    )

    environment: Annotated[
        str,
        Field(
            min_length=1,
            max_length=500,
            description="`name@version`, `name` for its latest version, or a digest.",
        ),
    ]
    model: Annotated[
        str | None, Field(min_length=1, max_length=2000, description="A registered or built-in model.")
    ] = None
    predictions: Annotated[
        PredictionsBody | None, Field(description="Recorded answers to score instead of calling a model.")
    ] = None
    submission: Annotated[
        SubmissionBody | None, Field(description="A zip that is submitted to a competition.")
    ] = None
    phase: Annotated[
        str, Field(max_length=300, description="Only this phase of a competition, by name or place from 0.")
    ] = ""
    limit: Annotated[
        int | None, Field(ge=1, le=2**32 - 1, description="Only the first so many cases. Not with `sample`.")
    ] = None
    sample: Annotated[
        int | None, Field(ge=1, le=2**32 - 1, description="Only so many cases, drawn with `seed`.")
    ] = None
    trials: Annotated[int, Field(ge=1, le=1000, description="How often each case is asked.")] = 1
    seed: Annotated[int, Field(ge=0, le=2**64 - 1, description="Where all randomness starts.")] = 0
    generation: Annotated[
        GenerationBody | None, Field(description="Settings that win over the environment's and the model's.")
    ] = None
    priority: Annotated[int, Field(ge=-100, le=100, description="Higher goes first.")] = 0
    cache: Annotated[
        bool,
        Field(
            description="Take answers that the same requests got before, and keep new ones. Registered models only."
        ),
    ] = False
    budget: Annotated[BudgetBody | None, Field(description="What the run may spend.")] = None

    @model_validator(mode="after")
    def _check_choices(self) -> Self:
        given = [one for one in (self.model, self.predictions, self.submission) if one is not None]
        if len(given) != 1:
            raise ValueError("expected exactly one of `model`, `predictions` and `submission`")
        if self.limit is not None and self.sample is not None:
            raise ValueError("expected at most one of `limit` and `sample`")
        return self

    def message(self, request_id: str) -> run_pb2.CreateRunRequest:
        """The same as the services know it."""
        request = run_pb2.CreateRunRequest(
            request_id=request_id,
            environment=self.environment,
            selection=run_pb2.Selection(limit=self.limit or 0, sample=self.sample or 0, phase=self.phase),
            trials=self.trials,
            seed=self.seed,
            generation=self.generation.message() if self.generation else None,
            priority=self.priority,
            use_cache=self.cache,
            budget=self.budget.message() if self.budget else None,
        )
        if self.model is not None:
            request.model = self.model
        if self.predictions is not None:
            given = self.predictions
            request.predictions.CopyFrom(
                run_pb2.Predictions(digest=given.digest, rows=given.rows, label=given.label)
            )
        if self.submission is not None:
            request.submission.CopyFrom(environment_pb2.Submission(**self.submission.model_dump()))
        return request
