"""How one part of this process tells another that there may be something to do. Losing a wake costs a second."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from nats.aio.msg import Msg

from services.hub.runs.domain import RunId


@dataclass(frozen=True, slots=True)
class Wakes:
    """Events that the loops wait for; each also looks by itself every now and then."""

    dispatch: asyncio.Event = field(default_factory=asyncio.Event)
    """Shards may enter the window."""
    seal: asyncio.Event = field(default_factory=asyncio.Event)
    """A run's last shard may have ended."""
    load: asyncio.Event = field(default_factory=asyncio.Event)
    """There may be shards for the scorer to load."""
    outbox: asyncio.Event = field(default_factory=asyncio.Event)
    """There may be events to publish."""
    audit: asyncio.Event = field(default_factory=asyncio.Event)
    """A run may have had more errors than it is allowed."""
    watchers: dict[RunId, set[asyncio.Event]] = field(default_factory=dict)
    """Those who follow a run in this process."""

    async def heard_run_changed(self, message: Msg) -> None:
        """Take up what any hub says on NATS about a run."""
        self.tell_watchers(RunId(message.subject.rpartition(".")[2]))

    def run_changed(self, run: RunId) -> None:
        """Tell who follows the run, here and, through the outbox, elsewhere."""
        self.outbox.set()
        self.tell_watchers(run)

    def tell_watchers(self, run: RunId) -> None:
        """Tell who follows the run here."""
        for watcher in self.watchers.get(run, ()):
            watcher.set()

    @contextmanager
    def watching(self, run: RunId) -> Iterator[asyncio.Event]:
        """An event that is set whenever the run changed."""
        changed = asyncio.Event()
        here = self.watchers.setdefault(run, set())
        here.add(changed)
        try:
            yield changed
        finally:
            here.discard(changed)
            if not here:
                self.watchers.pop(run, None)
