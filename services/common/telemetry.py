"""Structured logs and metrics: one canonical line per RPC, shard, job and HTTP request."""

from __future__ import annotations

import logging
import sys

import structlog
from prometheus_client import Counter, Histogram

RPC_SECONDS = Histogram(
    "benchgen_rpc_seconds",
    "How long RPCs took, by method and code.",
    ["method", "code"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
)
LOOP_FAULTS = Counter("benchgen_loop_faults_total", "Passing faults of background loops.", ["loop"])


def configure_logging(service: str, *, level: str, form: str) -> None:
    """Send logs to stderr: for people on a terminal, JSON lines otherwise."""
    console = form == "console" or (form == "auto" and sys.stderr.isatty())
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if console:
        # Plain: the default shows local variables, and those may be secrets.
        processors.append(structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback))
    else:
        processors += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    # Libraries that log through the standard module say what is wrong, and no more.
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
