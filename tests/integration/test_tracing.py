"""One trace leads from the request for a run to the score of a case and to the report, over all services."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from benchgen.client import Client
from benchgen.eval.v1 import run_pb2
from services.local.files import PROGRAM_ROOT
from services.local.state import DataDir
from tests.conftest import local


@dataclass(slots=True)
class Seen:
    """A span as it was exported."""

    service: str
    name: str
    trace: bytes
    ident: bytes
    parent: bytes
    attributes: dict[str, Any]
    failed: bool


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """What processes export to."""

    spans: dict[bytes, Seen] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def Export(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self.lock:
            for group in request.resource_spans:
                service = next(
                    a.value.string_value for a in group.resource.attributes if a.key == "service.name"
                )
                for span in (span for scope in group.scope_spans for span in scope.spans):
                    values = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
                    self.spans[span.span_id] = Seen(
                        service,
                        span.name,
                        span.trace_id,
                        span.span_id,
                        span.parent_span_id,
                        values,
                        span.status.code == span.status.STATUS_CODE_ERROR,
                    )
        return trace_service_pb2.ExportTraceServiceResponse()

    def named(self, name: str) -> list[Seen]:
        with self.lock:
            return [span for span in self.spans.values() if span.name == name]

    def way(self, span: Seen) -> list[tuple[str, str]]:
        """From the root to a span."""
        found = []
        step: Seen | None = span
        while step is not None:
            found.append((step.service.removeprefix("benchgen-"), step.name.rpartition("/")[2]))
            step = self.spans.get(step.parent)
        return found[::-1]


@contextmanager
def collecting() -> Iterator[tuple[Collector, str]]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(1).wait()


@pytest.mark.timeout(180)
def test_a_trace_follows_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with collecting() as (collector, url):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        try:
            started = local("up", "--detach", "--runners", "1", data_dir=tmp_path)
            assert started.returncode == 0, started.stdout
            settings = DataDir(tmp_path).settings()
            with Client(settings.address("gateway.grpc"), settings.credentials.api_key) as client:
                run = client.run("gsm8k-mini", model="builtin/simulated?accuracy=0.5", limit=60)
                for latest in client.watch(run.name):
                    run = latest
                assert run.state == run_pb2.Run.STATE_SUCCEEDED
            deadline = time.monotonic() + 20
            while not collector.named("report") and time.monotonic() < deadline:
                time.sleep(0.05)
        finally:
            local("down", data_dir=tmp_path)

        (created,) = [s for s in collector.named("benchgen.eval.v1.RunService/CreateRun") if not s.parent]
        trace = [span for span in collector.spans.values() if span.trace == created.trace]
        # One call a shard is traced, whatever the shard's size.
        shards = {span.attributes["benchgen.shard"] for span in trace if span.name == "shard"}
        (call, *more) = (span for span in trace if span.name == "model call")
        assert 1 + len(more) == len(shards) < 60
        assert call.attributes["benchgen.outcome"] == "OUTCOME_OK"
        assert "benchgen.case" in call.attributes
        to_shard = [
            ("gateway", "CreateRun"),
            ("hub", "CreateRun"),
            ("hub", "dispatch"),
            ("runner", "shard"),
        ]
        assert collector.way(call) == [*to_shard, ("runner", "model call")]
        score = next(span for span in trace if span.name == "score")
        assert collector.way(score) == [
            *to_shard,
            ("scorer", "RecordResults"),
            ("scorer", "record batch"),
            ("scorer", "score"),
        ]
        lease = next(span for span in trace if span.name.endswith("/LeaseShard"))
        assert collector.way(lease) == [*to_shard, ("hub", "LeaseShard")]
        (report,) = (span for span in trace if span.name == "report")
        assert collector.way(report) == [
            *to_shard[:2],
            ("hub", "seal"),
            ("scorer", "SealRun"),
            ("scorer", "report"),
        ]
        assert [span.name for span in trace if span.failed] == []


def test_without_a_collector_nothing_is_loaded_and_nothing_is_done() -> None:
    code = (
        "import sys, services.hub.app, services.runner.app, services.scorer.app\n"
        "from services.common import tracing\n"
        "with tracing.exporting('hub'), tracing.span('a', root=True) as span:\n"
        "    assert span is None and tracing.carried() == ()\n"
        "assert 'opentelemetry.sdk' not in sys.modules, 'the SDK was imported'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=PROGRAM_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
