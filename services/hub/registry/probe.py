"""One tiny call, to see whether a model answers."""

from __future__ import annotations

from benchgen.eval.v1 import model_pb2
from services.common.models.builtin import Builtin
from services.common.models.client import ModelClient
from services.common.models.types import ChatRequest, Endpoint, Fault, Reply, Timeouts
from services.hub.registry.domain import Generation

_MESSAGES = [{"role": "user", "content": "Reply with the word OK."}]
_MAX_TOKENS = 16
_TIMEOUTS = Timeouts(connect_s=10, first_byte_s=45, total_s=60)
_SHOWN_CHARACTERS = 500


async def probe_endpoint(
    client: ModelClient, base_url: str, model_id: str, secret: str | None, generation: Generation
) -> model_pb2.TestModelResponse:
    """Call an endpoint once, with the model's own defaults, so that a wrong one shows before any run."""
    endpoint = Endpoint(base_url, model_id, api_key=secret, timeouts=_TIMEOUTS)
    params = {
        **generation.extra,
        "temperature": generation.temperature,
        "top_p": generation.top_p,
        # Some endpoints know the limit by another name only, which then stands in `extra`.
        "max_tokens": None if "max_completion_tokens" in generation.extra else _MAX_TOKENS,
    }
    result = await client.chat(endpoint, ChatRequest(_MESSAGES, params))
    return _fault(result) if isinstance(result, Fault) else _reply(result, http_status=200)


async def probe_builtin(builtin: Builtin) -> model_pb2.TestModelResponse:
    """Ask a built-in model that answers by itself."""
    return _reply(await builtin.chat(ChatRequest(_MESSAGES)), http_status=0)


def loaded(builtin: Builtin) -> model_pb2.TestModelResponse:
    """What there is to say of a model whose answers the scorer loads."""
    return model_pb2.TestModelResponse(
        ok=True,
        response=f"nothing is called: the scorer loads {builtin.spec.description}",
        reported_model=builtin.spec.name,
    )


def _reply(reply: Reply, *, http_status: int) -> model_pb2.TestModelResponse:
    return model_pb2.TestModelResponse(
        ok=True,
        response=(reply.text or reply.refusal or "")[:_SHOWN_CHARACTERS],
        http_status=http_status,
        latency_ms=reply.latency_ms,
        reported_model=reply.model or "",
        input_tokens=reply.usage.input,
        output_tokens=reply.usage.output,
    )


def _fault(fault: Fault) -> model_pb2.TestModelResponse:
    return model_pb2.TestModelResponse(
        error=f"{fault.kind}: {fault.message}", http_status=fault.status or 0, latency_ms=fault.latency_ms
    )
