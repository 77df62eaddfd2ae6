"""Says whether this process can run programs: in its log, at ``/readyz``, and as a metric."""

from __future__ import annotations

import structlog
from prometheus_client import Gauge

from services.common.process import Process
from services.common.sandbox.types import Provider, SandboxFailed

log = structlog.get_logger()

USABLE = Gauge("benchgen_sandbox_usable", "Whether programs can be run here; 0 refuses them.", ["provider"])

_EVERY_SECONDS = 15.0


def watch(process: Process, provider: Provider) -> None:
    """Look until a box can be made; sweep as long as the process lives."""
    usable = False

    async def look() -> None:
        nonlocal usable
        try:
            if not usable:
                await provider.check()
            await provider.sweep()
        except SandboxFailed as error:
            note = f"programs are refused: {error}"
            if process.notes.get("sandbox") != note:
                log.warning("sandbox.unusable", provider=provider.name, error=str(error))
            process.notes["sandbox"] = note
            USABLE.labels(provider.name).set(0)
            usable = False
            return
        if not usable:
            process.notes["sandbox"] = "programs can be run"
            log.info("sandbox.usable", provider=provider.name)
            USABLE.labels(provider.name).set(1)
            usable = True

    process.loop("sandbox", look, every=_EVERY_SECONDS)
