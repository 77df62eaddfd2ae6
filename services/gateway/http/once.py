"""``Idempotency-Key`` on POST."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated

from fastapi import Depends, Header, Request
from fastapi.responses import Response
from prometheus_client import Counter

from services.gateway import idempotency
from services.gateway.domain import Answer, KnownRequest, checked_idempotency_key, request_id
from services.gateway.http.caller import Caller, CallerDep
from services.gateway.idempotency import KeyReused

REPLAYS = Counter("benchgen_gateway_replays_total", "Requests that got the answer they had got before.")

_REPLAYED = "Idempotent-Replayed"
_STORED_HEADERS = ("content-type", "location")


class Once:
    """Executes a request once for each idempotency key of its caller."""

    def __init__(self, request: Request, caller: Caller, key: str | None) -> None:
        self._request = request
        self._caller = caller
        self._key = key

    async def __call__(self, execute: Callable[[str], Awaitable[Response]]) -> Response:
        """Execute the request, or give the answer that it got before.

        :param execute: takes the request id that makes a repetition harmless for the services behind.
        :raises KeyReused: the key came with another request before.
        :raises InProgress: the request is being executed at this moment.
        """
        key_id = self._caller.who.key_id
        if self._key is None:
            return await execute(request_id(key_id, None))
        # As it was sent, percent signs and all: a decoded path can hold what no text in a database can.
        target: bytes = self._request.scope["raw_path"] + b"?" + self._request.scope["query_string"]
        path = target.decode("latin-1").removesuffix("?")
        begun = await idempotency.begin(self._caller.api.pool, key_id, self._key, self._request.method, path)
        if isinstance(begun, KnownRequest):
            return await self._replay(begun)
        async with begun.kept():
            response = await execute(request_id(key_id, self._key))
            if response.status_code < HTTPStatus.MULTIPLE_CHOICES:
                headers = {
                    name: response.headers[name] for name in _STORED_HEADERS if name in response.headers
                }
                answer = Answer(response.status_code, headers, bytes(response.body))
                await begun.answer(await self._body_hash(), answer)
        return response

    async def _replay(self, known: KnownRequest) -> Response:
        if await self._body_hash() != known.request_hash:
            raise KeyReused
        assert known.answer is not None
        REPLAYS.inc()
        return Response(
            known.answer.body, known.answer.status, headers=known.answer.headers | {_REPLAYED: "true"}
        )

    async def _body_hash(self) -> str:
        """The hash of the whole body, whether its handler wanted all of it or not."""
        body = self._request.state.body
        await body.rest(self._request.receive)
        digest: str = body.sha256()
        return digest


def _once(
    request: Request,
    caller: CallerDep,
    idempotency_key: Annotated[
        str | None,
        Header(
            description="Makes the request safe to repeat: the same key with the same body gets the first answer"
            " again, marked `Idempotent-Replayed: true`. Remembered for 24 hours.",
            examples=["5f3c8a52-6d0b-4c55-9a1e-0d5c4b1f7e11"],
        ),
    ] = None,
) -> Once:
    key = None if idempotency_key is None else checked_idempotency_key(idempotency_key)
    return Once(request, caller, key)


OnceDep = Annotated[Once, Depends(_once)]
