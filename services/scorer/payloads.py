"""Answers that are too long for a row: whole in object storage, named by digest."""

from __future__ import annotations

import hashlib

import orjson

from benchgen.errors import InvalidInput, Unavailable
from benchgen.eval.v1 import result_pb2
from services.common.objects import Bucket, ObjectStore

#: Longer answers are stored and shown, and not judged: a rule looks at the end of a response only.
MAX_BYTES = 64 * 1024 * 1024


def payload_key(digest: str) -> str:
    """Where a payload is, within its bucket."""
    return f"responses/{digest}.json"


async def whole_response(objects: ObjectStore, payload: result_pb2.PayloadRef) -> str:
    """The whole answer behind a payload reference.

    :raises InvalidInput: it is too large, or not what a runner stores.
    :raises Unavailable: what is stored does not have its digest.
    """
    if payload.size_bytes > MAX_BYTES:
        raise InvalidInput(f"payload: at most {MAX_BYTES} bytes, found {payload.size_bytes}")
    data = await objects.get(Bucket.PAYLOADS, payload_key(payload.digest))
    if hashlib.sha256(data).hexdigest() != payload.digest:
        raise Unavailable(f"payload {payload.digest}: what was stored does not have this digest")
    try:
        fields = orjson.loads(data)
        response = fields["response"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise InvalidInput("payload: expected a JSON object with a `response`") from None
    if not isinstance(response, str):
        raise InvalidInput("payload: expected `response` to be text")
    return response
