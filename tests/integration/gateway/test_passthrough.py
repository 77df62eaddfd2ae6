"""Public gRPC: what passes, what does not, and what services behind see."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status

from benchgen.eval.v1 import (
    environment_pb2,
    environment_pb2_grpc,
    lease_pb2,
    result_pb2,
    result_pb2_grpc,
    run_pb2,
    run_pb2_grpc,
)
from services.common.auth import PRINCIPAL_KEY, TOKEN_KEY, Principal, Scope, seal_principal
from services.common.signing import Signer
from services.local.credentials import Credentials, generate
from tests.integration.gateway.conftest import Gateway, bearer
from tests.integration.gateway.services import PUBLIC

#: The one that the gateway answers itself.
KEYS = "benchgen.eval.v1.KeyService"


def runs_of(gateway: Gateway) -> run_pb2_grpc.RunServiceAsyncStub:
    return run_pb2_grpc.RunServiceStub(gateway.channel)


async def failure_of(call: Any) -> Any:
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await call
    return failure.value


async def test_an_answer_passes_with_its_trailing_metadata(gateway: Gateway) -> None:
    call = runs_of(gateway).GetRun(run_pb2.GetRunRequest(name="r1"), metadata=gateway.metadata)
    assert (await call).name == "r1"
    assert ("x-said", "by the hub") in list(await call.trailing_metadata())
    assert gateway.services.seen[0].who.scopes == frozenset(Scope)


async def test_a_status_passes_with_its_details(gateway: Gateway) -> None:
    failure = await failure_of(
        runs_of(gateway).GetRun(run_pb2.GetRunRequest(name="missing"), metadata=gateway.metadata)
    )
    assert failure.code() is grpc.StatusCode.NOT_FOUND
    assert failure.details() == "there is no run missing"
    status = rpc_status.from_call(failure)
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "NOT_FOUND",
        "eval.benchgen",
        {"run": "missing"},
    )


async def test_what_a_caller_claims_to_be_is_dropped(
    gateway: Gateway, secrets_of_session: Credentials
) -> None:
    key = await gateway.new_key(Scope.READ)
    everything = Principal("somebody-else", frozenset(Scope))
    for forger in (Signer(generate().principal_seed), Signer(secrets_of_session.principal_seed)):
        await runs_of(gateway).GetRun(
            run_pb2.GetRunRequest(name="r1"),
            metadata=(
                *bearer(key),
                (PRINCIPAL_KEY, seal_principal(everything, forger)),
                (TOKEN_KEY, "mine"),
                ("benchgen-anything", "else"),
                ("x-mine", "1"),
            ),
        )
    for seen in gateway.services.seen:
        assert (seen.who.key_id, seen.who.scopes) == ("k1", frozenset({Scope.READ}))
        assert seen.metadata[TOKEN_KEY] != "mine"
        assert not {"authorization", "benchgen-anything", "x-mine"} & set(seen.metadata)


async def test_internal_services_cannot_be_reached(gateway: Gateway) -> None:
    internal = [
        f"/{service.full_name}/{method.name}"
        for file in (lease_pb2, result_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if service.full_name not in PUBLIC
    ]
    assert len(internal) > 10
    others = ["/RunService/GetRun", "/benchgen.eval.v1.RecordService/../RunService/GetRun"]
    for method in internal + others:
        open_call: Any = gateway.channel.unary_unary(method)
        call = open_call(b"", metadata=gateway.metadata)
        assert (await failure_of(call)).code() is grpc.StatusCode.UNIMPLEMENTED, method


async def test_a_deadline_ends_the_call_behind(gateway: Gateway) -> None:
    failure = await failure_of(
        runs_of(gateway).GetRun(run_pb2.GetRunRequest(name="slow"), metadata=gateway.metadata, timeout=0.3)
    )
    assert failure.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await asyncio.wait_for(gateway.services.cancelled.wait(), 5)


@pytest.mark.parametrize("kind", ["unary", "stream", "upload"])
async def test_a_caller_who_leaves_ends_the_call_behind(gateway: Gateway, kind: str) -> None:
    async def unfinished() -> AsyncIterator[environment_pb2.UploadBundleRequest]:
        yield environment_pb2.UploadBundleRequest(header=environment_pb2.UploadHeader())
        await asyncio.sleep(60)

    call: Any
    match kind:
        case "unary":
            call = runs_of(gateway).GetRun(run_pb2.GetRunRequest(name="slow"), metadata=gateway.metadata)
        case "stream":
            watch = runs_of(gateway).WatchRun(
                run_pb2.WatchRunRequest(name="endless"), metadata=gateway.metadata
            )
            assert (await anext(aiter(watch))).name
            call = watch
        case _:
            environments = environment_pb2_grpc.EnvironmentServiceStub(gateway.channel)
            call = environments.UploadBundle(unfinished(), metadata=gateway.metadata)
    while not gateway.services.seen:
        await asyncio.sleep(0.01)
    call.cancel()
    await asyncio.wait_for(gateway.services.cancelled.wait(), 5)


async def test_streams_pass_both_ways(gateway: Gateway) -> None:
    environments = environment_pb2_grpc.EnvironmentServiceStub(gateway.channel)
    chunks = [bytes([number]) * 1_000_000 for number in range(30)]

    async def requests() -> AsyncIterator[environment_pb2.UploadBundleRequest]:
        yield environment_pb2.UploadBundleRequest(header=environment_pb2.UploadHeader())
        for chunk in chunks:
            yield environment_pb2.UploadBundleRequest(chunk=chunk)

    publication = await environments.UploadBundle(requests(), metadata=gateway.metadata)
    assert publication.digest == hashlib.sha256(b"".join(chunks)).hexdigest()
    # A service may answer before it has heard all.
    gateway.services.answers_uploads_early = True
    for _ in range(10):
        assert (await environments.UploadBundle(requests(), metadata=gateway.metadata)).already_published
    download = environments.DownloadBundle(
        environment_pb2.DownloadBundleRequest(name="a"), metadata=gateway.metadata
    )
    assert [part.chunk[0] async for part in download] == list(range(20))


async def test_an_answer_that_is_too_long_is_said_to_be(gateway: Gateway) -> None:
    results = result_pb2_grpc.ResultServiceStub(gateway.channel)
    long = await failure_of(
        results.ListResults(result_pb2.ListResultsRequest(run="long"), metadata=gateway.metadata)
    )
    assert long.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "page_size" in (long.details() or "")


async def test_reflection_knows_the_public_services_only(gateway: Gateway) -> None:
    def reflected() -> tuple[list[str], list[str]]:
        with grpc.insecure_channel(gateway.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            names = list(database.get_services())
            file = pool.FindFileContainingSymbol("benchgen.eval.v1.ResultService")
            found = [service.full_name for service in file.services_by_name.values()]
            found += [
                service.full_name
                for dependency in file.dependencies
                for service in dependency.services_by_name.values()
            ]
            return names, found

    names, found = await asyncio.to_thread(reflected)
    assert set(names) == {*PUBLIC, KEYS, "grpc.reflection.v1alpha.ServerReflection"}
    assert set(found) <= {*PUBLIC, KEYS}


async def test_health(gateway: Gateway) -> None:
    health: Any = health_pb2_grpc.HealthStub(gateway.channel)
    for service in ("", *PUBLIC):
        answer = await health.Check(health_pb2.HealthCheckRequest(service=service))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_gateway_that_stops_ends_its_streams(gateway: Gateway) -> None:
    watch = runs_of(gateway).WatchRun(run_pb2.WatchRunRequest(name="endless"), metadata=gateway.metadata)
    assert (await anext(aiter(watch))).name
    gateway.process.stopping.set()

    async def to_the_end() -> None:
        async for _ in watch:
            pass

    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await asyncio.wait_for(to_the_end(), 3)
    assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "stopping" in (ended.value.details() or "")
