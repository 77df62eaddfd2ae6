"""Which provider makes the boxes of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Annotated, Literal, cast

from pydantic import AfterValidator

from services.common.config import Settings
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.container import Container, Pull
from services.common.sandbox.runtimes import Image, Runtimes, read_runtimes
from services.common.sandbox.types import Job, Provider, Running, SandboxFailed


def _check_runtimes(text: str) -> str:
    read_runtimes(text)
    return text


class SandboxSettings(Settings):
    """What a service that runs programs can be told."""

    sandbox: Literal["auto", "bubblewrap", "container", "none"] = "auto"
    """``auto``: bubblewrap for runtimes that are folders, a container for those that are images. ``none``: programs are
    refused."""
    runtimes: Annotated[str, AfterValidator(_check_runtimes)] = ""
    """JSON: names that bundles ask for, and what they stand for here (``services.common.sandbox.runtimes``)."""
    container_host: str = ""
    """Where the container engine listens: ``unix:///path``. Empty: at the usual places."""
    container_pull: Pull = "missing"
    """Whether images are pulled: ``never``, when they are ``missing``, ``always``."""


class Refusing:
    """Where programs are not run at all."""

    name = "none"

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def check(self) -> None:
        """:raises SandboxFailed: always."""
        raise SandboxFailed(self._reason)

    async def sweep(self) -> None:
        """Nothing is ever made."""

    @asynccontextmanager
    async def run(self, job: Job) -> AsyncIterator[Running]:
        """:raises SandboxFailed: always."""
        await self.check()
        yield cast(Running, None)


class ByRuntime:
    """Bubblewrap for folders, containers for images."""

    name = "auto"

    def __init__(self, runtimes: Runtimes, folders: Provider, images: Provider) -> None:
        self._runtimes = runtimes
        self._folders = folders
        self._images = images

    def _provider(self, runtime: str) -> Provider:
        return self._images if isinstance(self._runtimes.find(runtime), Image) else self._folders

    async def check(self) -> None:
        """See whether the default runtime can be had. That an engine is missing is said to programs that need it."""
        await self._provider("default").check()

    async def sweep(self) -> None:
        """Both; without an engine there are no containers to remove."""
        await self._folders.sweep()
        with suppress(SandboxFailed):
            await self._images.sweep()

    @asynccontextmanager
    async def run(self, job: Job) -> AsyncIterator[Running]:
        """Make the kind of box that the job's runtime needs."""
        async with self._provider(job.runtime).run(job) as running:
            yield running


def provider_of(settings: SandboxSettings) -> Provider:
    """The provider that the settings name."""
    runtimes = Runtimes(read_runtimes(settings.runtimes))
    containers = Container(runtimes, settings.container_host, pull=settings.container_pull)
    match settings.sandbox:
        case "none":
            return Refusing("programs are not run here: BENCHGEN_SANDBOX is none")
        case "auto":
            return ByRuntime(runtimes, Bubblewrap(runtimes), containers)
        case "bubblewrap":
            return Bubblewrap(runtimes)
        case "container":
            return containers
