"""A scorer as it is deployed, an environment in its object store, and leases as a hub signs them."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import orjson
from pydantic import SecretStr

from benchgen import bundle
from benchgen.errors import BenchgenError
from benchgen.eval.v1 import lease_pb2, model_pb2, result_pb2, result_pb2_grpc, run_pb2
from benchgen.statuses import error_of
from services.common import auth, rpc
from services.common.auth import Principal, Scope
from services.common.config import ObjectSettings, RpcSettings
from services.common.objects import Bucket, ObjectStore
from services.common.signing import Signer
from services.scorer import app
from services.scorer.config import ScorerSettings
from tests import conftest

CASES = 1100
#: Every tenth case has a weight that is no number: the rule `near` cannot judge it.
_UNJUDGED = 9

MANIFEST = """\
schema: 1
name: sums
version: 1.0.0
title: A few sums
category: reasoning
dataset:
  file: data/test.jsonl
  id: id
  target: answer
  cluster: story
  slices: [level]
harness:
  type: chat
  prompt: "{{ question }}"
  generation: {temperature: 0, max_tokens: 64}
oracle: "{{ answer }}"
scoring:
  - name: correct
    type: exact_match
    primary: true
  - name: near
    type: numeric
    target: weight
"""

PRICE = model_pb2.Price(input_usd_per_mtok="1", output_usd_per_mtok="2")


def case_rows(cases: int = CASES) -> list[dict[str, Any]]:
    """The dataset: the answer to case n is 2n."""
    return [
        {
            "id": f"sum-{n}",
            "question": f"{n} + {n} = ?",
            "answer": str(2 * n),
            "story": f"story-{n % 7}",
            "level": "hard" if n % 4 == 0 else "easy",
            "weight": "heavy" if n % 10 == _UNJUDGED else 2 * n,
        }
        for n in range(cases)
    ]


def materialise(
    folder: Path,
    rows: Iterable[dict[str, Any]],
    manifest: str = MANIFEST,
    files: Mapping[str, str] | None = None,
) -> Environment:
    """Write an environment down and make data of it, as the hub does."""
    source, out = folder / "source", folder / "out"
    (source / "data").mkdir(parents=True)
    (source / "environment.yaml").write_text(manifest)
    (source / "data" / "test.jsonl").write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    for name, content in (files or {}).items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(content)
    tree = bundle.load_folder(source)
    return Environment(tree.digest, bundle.materialise(tree, bundle.validate(tree), out), out)


@dataclass(frozen=True, slots=True)
class Environment:
    """Materialised data in a folder."""

    digest: str
    data: bundle.Materialised
    folder: Path

    async def upload(self, objects: ObjectStore) -> None:
        """Put all of it where services read it."""
        for bucket in (Bucket.INPUTS, Bucket.TARGETS, Bucket.SOLUTIONS):
            for path in (self.folder / bucket).rglob("*.*"):
                key = path.relative_to(self.folder / bucket).as_posix()
                await objects.put(bucket, key, path.read_bytes())

    def spec(self, run: str = "", *, trials: int = 1, cases: int = CASES, **fields: Any) -> run_pb2.RunSpec:
        """The specification of a run over the first cases."""
        fields.setdefault("subject", run_pb2.Subject(model=model_pb2.Model(name="m", price=PRICE)))
        return run_pb2.RunSpec(
            run=run or f"r{secrets.token_hex(6)}",
            environment="sums@1.0.0",
            digest=self.digest,
            inputs_digest=self.data.inputs_digest,
            targets_digest=self.data.targets_digest,
            solutions_digest=self.data.solutions_digest,
            scoring_json=self.data.scoring_json,
            scoring_digest=self.data.scoring_digest,
            materialiser=self.data.materialiser,
            trials=trials,
            cases=cases,
            planned=cases * trials,
            max_tries=1,
            call_timeout_seconds=5,
            primary_rule="correct",
            **{"harness_json": self.data.harness_json} | fields,
        )


async def stored(environment: Environment, store: conftest.ObjectStore) -> Environment:
    """The same, put where services read it."""
    async with ObjectStore(object_settings(store, "hub")) as objects:
        await environment.upload(objects)
    return environment


def uploaded(environment: Environment, store: conftest.ObjectStore) -> Environment:
    """The same for a fixture of the session, which has no event loop."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        return executor.submit(asyncio.run, stored(environment, store)).result()


def subject(name: str) -> run_pb2.Subject:
    """A model without a price."""
    return run_pb2.Subject(model=model_pb2.Model(name=name))


def new_seed() -> str:
    """A new private key in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


def object_settings(store: conftest.ObjectStore, identity: str) -> ObjectSettings:
    """How an identity reaches a test's buckets."""
    return ObjectSettings(
        s3_endpoint=store.endpoint,
        s3_access_key=store.access_key(identity),
        s3_secret_key=SecretStr(store.secret_key(identity)),
        bucket_prefix=store.prefix,
    )


def claims_of(
    spec: run_pb2.RunSpec,
    *,
    first: int = 0,
    count: int = 256,
    attempt: int = 1,
    epoch: int = 0,
    positions: Sequence[int] | None = None,
) -> lease_pb2.LeaseClaims:
    """What a lease of a shard says; positions are those of a run over the first cases."""
    count = min(count, spec.planned - first)
    if positions is None:
        positions = range(first // spec.trials, (first + count - 1) // spec.trials + 1)
    return lease_pb2.LeaseClaims(
        shard=f"{spec.run}-{first // 256:06d}",
        run=spec.run,
        attempt=attempt,
        epoch=epoch,
        runner="runner-1",
        first=first,
        count=count,
        positions=positions,
        spec=spec,
    )


def answer(
    position: int, response: str | None = None, trial: int = 0, **fields: Any
) -> result_pb2.TrialResult:
    """A result as a runner sends it; the right answer when none is given."""
    fields.setdefault("outcome", result_pb2.OUTCOME_OK)
    fields.setdefault("calls", 1)
    fields.setdefault("usage", result_pb2.Usage(input_tokens=10, output_tokens=5))
    fields.setdefault("latency_ms", 12.5)
    return result_pb2.TrialResult(
        position=position,
        trial=trial,
        case_id=f"sum-{position}",
        response=str(2 * position) if response is None else response,
        **fields,
    )


def fault(position: int, trial: int = 0, **fields: Any) -> result_pb2.TrialResult:
    """A result that is not the model's doing."""
    fields.setdefault("outcome", result_pb2.OUTCOME_PROVIDER_ERROR)
    return answer(position, "", trial, error="server_error: it broke", usage=None, **fields)


class Stream:
    """One recording stream, driven by hand."""

    def __init__(self, stub: result_pb2_grpc.RecordServiceAsyncStub) -> None:
        self._stub = stub
        self._call: Any = None
        self._sequence = 0

    async def open(self, lease: lease_pb2.SignedLease) -> list[int]:
        """Send the lease; returns the offsets that are held."""
        return list((await self.send_raw(result_pb2.RecordResultsRequest(lease=lease))).held.offsets)

    async def send(self, *results: result_pb2.TrialResult) -> list[result_pb2.Rejection]:
        """Send a batch and wait for its acknowledgement; returns what was refused."""
        self._sequence += 1
        batch = result_pb2.ResultBatch(sequence=self._sequence, results=results)
        ack = (await self.send_raw(result_pb2.RecordResultsRequest(batch=batch))).ack
        assert ack.sequence == self._sequence
        return list(ack.rejections)

    async def send_raw(self, request: result_pb2.RecordResultsRequest) -> result_pb2.RecordResultsResponse:
        """Send any message and wait for the answer."""
        if self._call is None:
            self._call = self._stub.RecordResults()
        message: Any = grpc.aio.EOF
        # A stream that has ended takes no message and gives none: its status says why.
        with suppress(asyncio.InvalidStateError, grpc.RpcError):
            await self._call.write(request)
            message = await self._call.read()
        if message is not grpc.aio.EOF:
            assert isinstance(message, result_pb2.RecordResultsResponse)
            return message
        code, details = await self._call.code(), await self._call.details()
        trailing = await self._call.trailing_metadata()
        raise error_of(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details))

    def close(self) -> None:
        """Hang up."""
        if self._call is not None:
            self._call.cancel()


@dataclass(slots=True)
class Scorer:
    """A running scorer and how its callers reach it."""

    settings: ScorerSettings
    port: int
    hub_key: Signer
    gateway_key: Signer
    tokens: dict[str, str]
    channels: dict[str, grpc.aio.Channel] = field(default_factory=dict)

    def records(self, identity: str) -> result_pb2_grpc.RecordServiceAsyncStub:
        """RecordService as one of `hub`, `runner`, `gateway` calls it."""
        return result_pb2_grpc.RecordServiceStub(self.channels[identity])

    @property
    def results(self) -> result_pb2_grpc.ResultServiceAsyncStub:
        """ResultService as the gateway calls it; every call needs the metadata of :meth:`as_`."""
        return result_pb2_grpc.ResultServiceStub(self.channels["gateway"])

    def as_(self, *scopes: Scope) -> tuple[tuple[str, str | bytes], ...]:
        """The metadata of a caller with these scopes; all when none is given."""
        who = Principal("key-1", frozenset(scopes or Scope))
        return ((auth.PRINCIPAL_KEY, auth.seal_principal(who, self.gateway_key)),)

    def sign(self, claims: lease_pb2.LeaseClaims, key: Signer | None = None) -> lease_pb2.SignedLease:
        """A lease; signed by the hub unless another key is given."""
        data = claims.SerializeToString()
        return lease_pb2.SignedLease(claims=data, signature=(key or self.hub_key).sign(data))

    @asynccontextmanager
    async def stream(self, claims: lease_pb2.LeaseClaims) -> AsyncIterator[Stream]:
        """An open stream under a lease."""
        stream = Stream(self.records("runner"))
        await stream.open(self.sign(claims))
        try:
            yield stream
        finally:
            stream.close()

    async def record(self, claims: lease_pb2.LeaseClaims, *results: result_pb2.TrialResult) -> None:
        """Record results under a lease; none may be refused."""
        async with self.stream(claims) as stream:
            for start in range(0, len(results), 256):
                assert await stream.send(*results[start : start + 256]) == []

    async def seal(
        self, spec: run_pb2.RunSpec, *, epoch: int = 0, state: str = "STATE_SUCCEEDED", seconds: float = 2.5
    ) -> result_pb2.SealRunResponse.State.ValueType:
        """Ask once for the seal and the report."""
        request = result_pb2.SealRunRequest(
            spec=spec, epoch=epoch, final_state=run_pb2.Run.State.Value(state), seconds=seconds
        )
        return (await self.records("hub").SealRun(request)).state

    async def report(self, run: str) -> result_pb2.Report:
        """The report of a run."""
        return await self.results.GetReport(result_pb2.GetReportRequest(run=run), metadata=self.as_())

    async def progress(self, run: str) -> run_pb2.RunProgress:
        """How far a run is."""
        answer = await self.records("hub").GetProgress(result_pb2.GetProgressRequest(runs=[run]))
        return answer.progress[run]

    async def list(self, run: str, *scopes: Scope, **fields: Any) -> result_pb2.ListResultsResponse:
        """A page of results."""
        request = result_pb2.ListResultsRequest(run=run, **fields)
        return await self.results.ListResults(request, metadata=self.as_(*scopes))


@asynccontextmanager
async def scoring(dsn: str, store: conftest.ObjectStore, **changes: Any) -> AsyncIterator[Scorer]:
    """A scorer on a database and buckets, and a channel for each of its callers."""
    hub_key, gateway_key = Signer(new_seed()), Signer(new_seed())
    tokens = {identity: secrets.token_urlsafe() for identity in ("hub", "runner", "gateway")}
    settings = ScorerSettings(
        grpc_listen="127.0.0.1:0",
        postgres_dsn=SecretStr(dsn),
        lease_public_key=hub_key.public_key,
        principal_public_key=gateway_key.public_key,
        peer_tokens=",".join(f"{name}={auth.hash_token(token)}" for name, token in tokens.items()),
        **dict(object_settings(store, "scorer")),
    ).model_copy(update=changes)
    async with app.listening(settings) as port:
        scorer = Scorer(settings, port, hub_key, gateway_key, tokens)
        async with (
            calling(port, tokens["hub"]) as hub,
            calling(port, tokens["runner"]) as runner,
            calling(port, tokens["gateway"]) as gateway,
        ):
            scorer.channels = {"hub": hub, "runner": runner, "gateway": gateway}
            yield scorer


@asynccontextmanager
async def calling(port: int, token: str) -> AsyncIterator[grpc.aio.Channel]:
    """A channel that presents a token."""
    async with rpc.channel(f"127.0.0.1:{port}", RpcSettings(service_token=SecretStr(token))) as channel:
        yield channel


async def refusal(call: Any) -> BenchgenError:
    """What a call was refused with."""
    try:
        await call
    except grpc.RpcError as failure:
        return error_of(failure)
    except BenchgenError as error:
        return error
    raise AssertionError("the call was not refused")
