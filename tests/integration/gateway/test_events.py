"""Server-sent events of a run."""

from __future__ import annotations

import asyncio
import json
from typing import Any, NamedTuple

import aiohttp

from benchgen.eval.v1 import run_pb2
from services.gateway.http.documents import Run
from tests.integration.gateway.conftest import Gateway

State = run_pb2.Run


class Event(NamedTuple):
    """One event as a browser would see it."""

    kind: str
    id: str
    data: dict[str, Any]


def parsed(text: str) -> list[Event]:
    """The events in a stream; comments and `retry` are left out."""
    events = []
    for block in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if "event" in fields:
            data = json.loads(fields["data"])
            Run.model_validate(data)
            events.append(Event(fields["event"], fields["id"], data))
    return events


def states(*values: run_pb2.Run.State.ValueType) -> list[run_pb2.Run]:
    return [run_pb2.Run(name="r1", state=value) for value in values]


async def follow(gateway: Gateway, last: str | None = None) -> tuple[int, list[Event]]:
    headers = {} if last is None else {"Last-Event-ID": last}
    async with gateway.http.get("/api/v1/runs/r1/events", headers=headers) as answer:
        if answer.status == 200:
            assert answer.content_type == "text/event-stream"
            assert answer.headers["Cache-Control"] == "no-store"
        return answer.status, parsed(await answer.text())


async def test_changes_are_told_once_until_the_end(gateway: Gateway) -> None:
    told = states(State.STATE_QUEUED, State.STATE_RUNNING, State.STATE_RUNNING, State.STATE_SUCCEEDED)
    gateway.services.watches = [told]
    status, events = await follow(gateway)
    assert status == 200
    assert [event.kind for event in events] == ["run"] * 3
    assert [event.data["state"] for event in events] == ["queued", "running", "succeeded"]
    assert len({event.id for event in events}) == 3


async def test_who_comes_back_is_told_what_is_new(gateway: Gateway) -> None:
    told = states(State.STATE_QUEUED, State.STATE_RUNNING, State.STATE_CANCELLED)
    gateway.services.watches = [told, told[1:], told[2:], told[2:]]
    _, (_, running, cancelled) = await follow(gateway)
    status, events = await follow(gateway, running.id)
    assert (status, [event.data["state"] for event in events]) == (200, ["cancelled"])
    # 204 tells a browser not to come back.
    assert await follow(gateway, cancelled.id) == (204, [])
    assert (await follow(gateway, "something else"))[0] == 200


async def test_a_watch_that_breaks_off_is_taken_up_again(gateway: Gateway) -> None:
    gateway.services.watches = [states(State.STATE_RUNNING), states(State.STATE_RUNNING, State.STATE_FAILED)]
    _, events = await follow(gateway)
    assert [event.data["state"] for event in events] == ["running", "failed"]


async def test_a_client_who_leaves_ends_the_watch(gateway: Gateway) -> None:
    answer = await gateway.http.get("/api/v1/runs/endless/events")
    await answer.content.readline()
    answer.close()
    await asyncio.wait_for(gateway.services.cancelled.wait(), 5)


async def test_a_gateway_that_stops_ends_its_events(gateway: Gateway) -> None:
    async with gateway.http.get("/api/v1/runs/endless/events") as answer:
        await answer.content.readline()
        gateway.process.stopping.set()
        await asyncio.wait_for(answer.read(), 3)


async def test_browsers_are_told_when_to_come_back(gateway: Gateway) -> None:
    """A stream that ends before the run did tells the browser to come back, by its `retry`."""
    async with gateway.http.get(
        "/api/v1/runs/endless/events", timeout=aiohttp.ClientTimeout(total=10)
    ) as answer:
        assert await answer.content.readline() == b"retry: 1000\n"
