"""Models as the contracts spell them."""

from __future__ import annotations

import orjson

from benchgen.errors import InvalidInput
from benchgen.eval.v1 import environment_pb2, model_pb2
from services.common.models.builtin import PREFIX, Builtin
from services.hub.registry.domain import BUILTIN_CONCURRENCY, Generation, ModelRow, Price
from services.hub.wire import timestamp

_FREE = model_pb2.Price(input_usd_per_mtok="0", output_usd_per_mtok="0", cached_usd_per_mtok="0")


def read_generation(message: environment_pb2.Generation) -> Generation:
    """Settings for requests, as they came. What they say is checked by :meth:`Generation.problems`.

    :raises InvalidInput: ``extra_json`` is no JSON object.
    """
    extra: object = {}
    if message.extra_json:
        try:
            extra = orjson.loads(message.extra_json)
        except ValueError as error:
            raise InvalidInput(
                f"generation.extra_json: expected a JSON object, found no JSON: {error}"
            ) from None
    if not isinstance(extra, dict):
        raise InvalidInput("generation.extra_json: expected a JSON object, found another JSON value")
    return Generation(
        temperature=message.temperature if message.HasField("temperature") else None,
        top_p=message.top_p if message.HasField("top_p") else None,
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        stop=tuple(message.stop),
        extra=extra,
    )


def generation_message(generation: Generation) -> environment_pb2.Generation:
    """Settings for requests; equal ones give equal bytes."""
    extra = (
        orjson.dumps(dict(generation.extra), option=orjson.OPT_SORT_KEYS).decode() if generation.extra else ""
    )
    return environment_pb2.Generation(
        temperature=generation.temperature,
        top_p=generation.top_p,
        max_tokens=generation.max_tokens,
        stop=generation.stop,
        extra_json=extra,
    )


def read_model(message: model_pb2.Model) -> ModelRow:
    """A model to be registered, as it came.

    :raises InvalidInput: it cannot be an endpoint.
    """
    if message.api == model_pb2.Model.API_BUILTIN:
        raise InvalidInput("api: expected an endpoint's; built-in models are there already")
    price = message.price
    return ModelRow(
        name=message.name,
        base_url=message.base_url,
        model_id=message.model_id,
        price=Price(
            price.input_usd_per_mtok or None,
            price.output_usd_per_mtok or None,
            price.cached_usd_per_mtok or None,
        ),
        max_concurrency=message.max_concurrency,
        generation=read_generation(message.generation),
        description=message.description,
        has_secret=False,
    )


def model_message(row: ModelRow) -> model_pb2.Model:
    """A registered model, without its secret."""
    return model_pb2.Model(
        name=row.name,
        base_url=row.base_url,
        model_id=row.model_id,
        api=model_pb2.Model.API_OPENAI_CHAT,
        has_secret=row.has_secret,
        price=model_pb2.Price(
            input_usd_per_mtok=row.price.input or "",
            output_usd_per_mtok=row.price.output or "",
            cached_usd_per_mtok=row.price.cached or "",
        ),
        max_concurrency=row.max_concurrency,
        generation=generation_message(row.generation),
        description=row.description,
        create_time=timestamp(row.created_at) if row.created_at is not None else None,
    )


def builtin_message(name: str, builtin: Builtin, simulator_url: str) -> model_pb2.Model:
    """A built-in model under the name that was asked for, parameters included.

    The simulated one is an endpoint like any other, at the simulator's address (empty where there is none).
    """
    message = model_pb2.Model(
        name=name,
        api=model_pb2.Model.API_BUILTIN,
        price=_FREE,
        max_concurrency=BUILTIN_CONCURRENCY,
        builtin=True,
        description=builtin.spec.description,
    )
    if builtin.spec.answered_by == "simulator":
        message.api = model_pb2.Model.API_OPENAI_CHAT
        message.model_id = name.removeprefix(PREFIX)
        message.base_url = f"{simulator_url.rstrip('/')}/v1" if simulator_url else ""
    return message
