"""Traces: one case from the request for its run to its score, over all services.

Off, and next to free, unless the standard ``OTEL_EXPORTER_OTLP_ENDPOINT`` is set: OpenTelemetry's SDK is not even
imported then. The other ``OTEL_*`` variables mean what they mean everywhere.

Only the gateway starts traces; everything else continues one that it was handed, or does nothing. The context
travels in gRPC metadata, in the headers of rings, and beside the run in the hub's tables, because what happens to a
run is not done by the call that created it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

#: What carries the context: https://www.w3.org/TR/trace-context/
HEADER = "traceparent"

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_NOTHING: AbstractContextManager[None] = nullcontext()
#: A collector that is away must not keep a process from stopping, seconds.
_FLUSH_SECONDS = 3.0
#: Of a big run the first shards are traced, and then one of so many: a trace has to be readable.
_FIRST_SHARDS, _ONE_SHARD_OF = 16, 64

_tracer: Tracer | None = None


def enabled() -> bool:
    """Whether this process exports spans."""
    return _tracer is not None


@contextmanager
def exporting(service: str) -> Iterator[None]:
    """Export the spans of this process during the block, if the environment says where to."""
    if not any(os.environ.get(name) for name in _ENDPOINTS):
        yield
        return
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    provider = TracerProvider(
        resource=Resource.create({"service.name": f"benchgen-{service}"}), shutdown_on_exit=False
    )
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    with _use(provider):
        yield
    flush = threading.Thread(target=provider.shutdown, name="flush spans", daemon=True)
    flush.start()
    flush.join(_FLUSH_SECONDS)


@contextmanager
def _use(provider: TracerProvider) -> Iterator[None]:
    global _tracer  # noqa: PLW0603 - set once, while a process starts
    _tracer = provider.get_tracer("benchgen")
    try:
        yield
    finally:
        _tracer = None


def span(
    name: str, *, parent: str | None = None, root: bool = False, when: bool = True, **attributes: str | int
) -> AbstractContextManager[Span | None]:
    """A span during the block, the parent of those that begin within; none where there is nothing to continue.

    :param parent: the ``traceparent`` that was received, empty if none was; by default the span around.
    :param root: whether to begin a trace where there is none to continue.
    :param when: False for work that is not among the sampled.
    """
    if _tracer is None or not when:
        return _NOTHING
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    context = None if parent is None else TraceContextTextMapPropagator().extract({HEADER: parent})
    if not root and not trace.get_current_span(context).get_span_context().is_valid:
        return _NOTHING
    return _tracer.start_as_current_span(
        name, context, attributes={f"benchgen.{key}": value for key, value in attributes.items()}
    )


def traceparent() -> str:
    """The span around, for whoever continues it; empty where there is none."""
    if _tracer is None:
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(HEADER, "")


def carried() -> tuple[tuple[str, str], ...]:
    """The same as metadata of a call, or headers of a message."""
    here = traceparent()
    return ((HEADER, here),) if here else ()


def is_traced(shard_number: int) -> bool:
    """Whether a shard of a traced run is traced itself."""
    return shard_number < _FIRST_SHARDS or shard_number % _ONE_SHARD_OF == 0
