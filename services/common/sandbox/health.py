"""Says whether this process can run programs: in its log, at ``/readyz``, and as a metric."""

from __future__ import annotations

import structlog
from prometheus_client import Gauge

from services.common.process import Process
from services.common.sandbox.types import Provider, SandboxFailed

log = structlog.get_logger()

USABLE = Gauge("benchgen_sandbox_usable", "Whether programs can be run here; 0 refuses them.", ["provider"])

_EVERY_SECONDS = 60.0


def watch(process: Process, provider: Provider) -> None:
    """Look at once and then every minute, until a box could be made."""
    usable = False

    async def look() -> None:
        nonlocal usable
        if usable:
            return
        try:
            await provider.check()
        except SandboxFailed as error:
            USABLE.labels(provider.name).set(0)
            if process.notes.get("sandbox") != f"programs are refused: {error}":
                log.warning("sandbox.unusable", provider=provider.name, error=str(error))
            process.notes["sandbox"] = f"programs are refused: {error}"
            return
        usable = True
        USABLE.labels(provider.name).set(1)
        process.notes["sandbox"] = provider.name
        log.info("sandbox.usable", provider=provider.name)

    process.loop("sandbox", look, every=_EVERY_SECONDS)
