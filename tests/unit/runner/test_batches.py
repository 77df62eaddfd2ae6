"""How results are cut into batches."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchgen.eval.v1 import lease_pb2, result_pb2, result_pb2_grpc
from services.runner.recording import MAX_BYTES, MAX_RESULTS, RecordStream


@pytest.fixture
async def stream() -> AsyncIterator[RecordStream]:
    """A stream to nowhere."""
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        yield RecordStream(
            result_pb2_grpc.RecordServiceStub(channel), lease_pb2.SignedLease(), lambda _: None
        )


def batches(stream: RecordStream, sizes: list[int]) -> list[result_pb2.ResultBatch]:
    for position, size in enumerate(sizes):
        stream.add(result_pb2.TrialResult(position=position, response="x" * size))
    assert stream.outstanding == len(sizes)
    taken = []
    while stream.outstanding:
        taken.append(result_pb2.ResultBatch(sequence=2**32 - 1, results=stream._take()))
    return taken


async def test_at_most_256_results(stream: RecordStream) -> None:
    assert [len(batch.results) for batch in batches(stream, [1] * 600)] == [MAX_RESULTS, MAX_RESULTS, 88]


async def test_at_most_a_mebibyte(stream: RecordStream) -> None:
    taken = batches(stream, [64 * 1024] * 40)
    assert [len(batch.results) for batch in taken] == [15, 15, 10]
    assert all(batch.ByteSize() <= MAX_BYTES for batch in taken)


async def test_a_result_that_is_larger_than_a_batch_goes_alone(stream: RecordStream) -> None:
    taken = batches(stream, [10, 2 * MAX_BYTES, 3 * MAX_BYTES, 10, 10])
    assert [[len(r.response) for r in batch.results] for batch in taken] == [
        [10],
        [2 * MAX_BYTES],
        [3 * MAX_BYTES],
        [10, 10],
    ]


@given(st.lists(st.integers(min_value=0, max_value=300_000), max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
async def test_every_result_goes_once_in_order_and_within_bounds(
    stream: RecordStream, sizes: list[int]
) -> None:
    taken = batches(stream, sizes)
    assert [len(result.response) for batch in taken for result in batch.results] == sizes
    assert all(0 < len(batch.results) <= MAX_RESULTS for batch in taken)
    assert all(batch.ByteSize() <= MAX_BYTES or len(batch.results) == 1 for batch in taken)
