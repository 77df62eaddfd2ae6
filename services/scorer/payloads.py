"""Answers that are too long for a row: whole in object storage, named by digest."""

from __future__ import annotations

import hashlib

import orjson

from benchgen.errors import InvalidInput, NotFound
from benchgen.eval.v1 import result_pb2
from services.common.objects import Bucket, ObjectStore
from services.scorer.intake import check_payload, clean

#: Where they are.
FOLDER = "responses/"


def payload_key(digest: str) -> str:
    """Where a payload is, within its bucket."""
    return f"{FOLDER}{digest}.json"


def digest_of(key: str) -> str:
    """What a payload's key was made from."""
    return key.removeprefix(FOLDER).removesuffix(".json")


async def whole_response(objects: ObjectStore, payload: result_pb2.PayloadRef) -> str:
    """The whole answer behind a payload reference.

    :raises InvalidInput: there is no such payload, it is too large, or not what a runner stores.
    :raises Unavailable: the object store cannot be reached.
    """
    check_payload(payload)
    try:
        data = await objects.get(Bucket.PAYLOADS, payload_key(payload.digest))
    except NotFound as error:
        raise InvalidInput(f"payload: {error.message}") from None
    if hashlib.sha256(data).hexdigest() != payload.digest:
        raise InvalidInput(f"payload {payload.digest}: what is stored does not have this digest")
    try:
        fields = orjson.loads(data)
        response = fields["response"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        raise InvalidInput("payload: expected a JSON object with a `response`") from None
    if not isinstance(response, str):
        raise InvalidInput("payload: expected `response` to be text")
    return response


async def store(objects: ObjectStore, response: str) -> result_pb2.PayloadRef:
    """Keep a whole answer, as a runner does.

    :raises Unavailable: the object store cannot be reached.
    """
    data = orjson.dumps({"response": clean(response), "reasoning": ""})
    digest = hashlib.sha256(data).hexdigest()
    await objects.put(Bucket.PAYLOADS, payload_key(digest), data)
    return result_pb2.PayloadRef(digest=digest, size_bytes=len(data))
