"""``python -m services.simulator``: serve until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal
import sys

import structlog
import uvloop

from benchgen.errors import BenchgenError
from services.common.objects import ObjectStore
from services.common.telemetry import configure_logging
from services.simulator.app import Simulator
from services.simulator.config import SimulatorSettings
from services.simulator.http import HttpServer
from services.simulator.solutions import Solutions

_GRACE_S = 10.0

log = structlog.get_logger()


async def serve(settings: SimulatorSettings) -> None:
    """Open everything, serve until a signal comes, close everything."""
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with ObjectStore(settings) as objects:
        simulator = Simulator(Solutions(objects), settings.peers())
        server = HttpServer(simulator.handle, simulator.refuse)
        host, _, port = settings.http_listen.rpartition(":")
        chosen = await server.start(host.strip("[]"), int(port))
        simulator.ready = True
        log.info("simulator.listening", url=f"http://{host}:{chosen}/v1")
        await stopping.wait()
        simulator.ready = False
        await server.stop(_GRACE_S)
    log.info("process.stopped")


def main() -> int:
    """Return the exit code: 0 after a graceful stop, 1 when it cannot listen, 2 for bad settings."""
    try:
        settings = SimulatorSettings.from_environ()
    except BenchgenError as error:
        print(f"benchgen simulator: {error}", file=sys.stderr)
        return 2
    configure_logging("simulator", level=settings.log_level, form=settings.log_format)
    try:
        uvloop.run(serve(settings))
    except OSError as error:
        log.error("process.died", error=str(error))  # noqa: TRY400  # the address is taken: no trace needed
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
