"""Which provider makes the boxes of this process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Literal, cast

from pydantic import AfterValidator

from services.common.config import Settings
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.runtimes import Runtimes, read_runtimes
from services.common.sandbox.types import Job, Provider, Running, SandboxFailed


def _check_runtimes(text: str) -> str:
    read_runtimes(text)
    return text


class SandboxSettings(Settings):
    """What a service that runs programs can be told."""

    sandbox: Literal["auto", "bubblewrap", "none"] = "auto"
    """``none``: programs are refused."""
    runtimes: Annotated[str, AfterValidator(_check_runtimes)] = ""
    """JSON: names that bundles ask for, and what they stand for here (``services.common.sandbox.runtimes``)."""


class Refusing:
    """Where programs are not run at all."""

    name = "none"

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def check(self) -> None:
        """:raises SandboxFailed: always."""
        raise SandboxFailed(self._reason)

    @asynccontextmanager
    async def run(self, job: Job) -> AsyncIterator[Running]:
        """:raises SandboxFailed: always."""
        await self.check()
        yield _NEVER


_NEVER = cast(Running, None)


def provider_of(settings: SandboxSettings) -> Provider:
    """The provider that the settings name."""
    match settings.sandbox:
        case "none":
            return Refusing("programs are not run here: BENCHGEN_SANDBOX is none")
        case "auto" | "bubblewrap":
            return Bubblewrap(Runtimes(read_runtimes(settings.runtimes)))
