"""The public gRPC server: what passes through, health, and reflection of the public services."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from benchgen.eval.v1 import key_pb2, key_pb2_grpc
from services.common.rpc import MAX_MESSAGE
from services.gateway.key_service import KeyService
from services.gateway.passthrough import PUBLIC_SERVICES, Passthrough

#: How long calls under way may take to end when the process stops, seconds.
_GRACE_SECONDS = 5.0

#: What passes through, and what is answered here.
_SERVICES = (*PUBLIC_SERVICES, key_pb2.DESCRIPTOR.services_by_name["KeyService"])

_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    ("grpc.max_send_message_length", MAX_MESSAGE),
    # Watching a run can be silent for a second or two; clients may ask whether the connection lives.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.so_reuseport", 0),
]


@asynccontextmanager
async def server(listen: str, passthrough: Passthrough, keys: KeyService) -> AsyncIterator[int]:
    """A running server; yields its port. On exit it takes no new calls and waits for those under way."""
    running = grpc.aio.server(handlers=[passthrough], options=_OPTIONS)
    key_pb2_grpc.add_KeyServiceServicer_to_server(keys, running)
    names = [service.full_name for service in _SERVICES]
    reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], running, _public_pool())
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, running)
    port = running.add_insecure_port(listen)
    await running.start()
    for name in ("", *names):
        await status.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        yield port
    finally:
        await status.enter_graceful_shutdown()
        passthrough.end_streams()
        await running.stop(_GRACE_SECONDS)


def _public_pool() -> DescriptorPool:
    """The contracts without the services that only services call."""
    pool = DescriptorPool()
    public = {service.full_name for service in _SERVICES}
    added: set[str] = set()

    def add(file: FileDescriptor) -> None:
        if file.name in added:
            return
        added.add(file.name)
        for dependency in file.dependencies:
            add(dependency)
        copy = FileDescriptorProto()
        file.CopyToProto(copy)
        kept = [service for service in copy.service if f"{copy.package}.{service.name}" in public]
        del copy.service[:]
        copy.service.extend(kept)
        pool.Add(copy)

    for service in _SERVICES:
        add(service.file)
    return pool
