"""Structured logs and metrics: one canonical line per RPC, shard, job and HTTP request.

What happens is counted where it happens. What stands in tables, or in a process at this moment, is measured when
somebody asks (``Process.measure``), so that it costs nothing while nobody does.
"""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence

import structlog
from prometheus_client import Counter, Gauge, Histogram, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

RPC_SECONDS = Histogram(
    "benchgen_rpc_seconds",
    "How long RPCs took, by method and code.",
    ["method", "code"],
    buckets=(0.001, 0.005, 0.02, 0.1, 0.5, 2, 10, 60),
)
LOOP_FAULTS = Counter("benchgen_loop_faults_total", "Passing faults of background loops.", ["loop"])
_BUILD = Gauge("benchgen_build_info", "Always 1; the labels say what runs.", ["service", "version", "python"])

#: So many pools or models have labels of their own; the rest is added up as `other`.
MOST_LABELS = 50
OTHER = "other"


def say_build(service: str) -> None:
    """Show what runs in this process."""
    try:
        version = importlib.metadata.version("benchgen")
    except importlib.metadata.PackageNotFoundError:
        version = "unknown"
    _BUILD.labels(service, version, platform.python_version()).set(1)


def gauge(name: str, what: str, labels: Sequence[str], values: Mapping[tuple[str, ...], float]) -> Metric:
    """A gauge as it stands now, by the values of its labels; one without labels has the key ``()``."""
    family = GaugeMetricFamily(name, what, labels=labels)
    for key, value in values.items():
        family.add_metric(key, value)
    return family


def exposition(measured: Iterable[Metric]) -> bytes:
    """Everything that was counted and measured, in Prometheus's text format."""
    return generate_latest() + generate_latest(_Measured(measured))


class _Measured(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


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
