"""From an upload to a version: a real hub service and job loop, PostgreSQL, object storage and a real scorer."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import grpc
import orjson
import psutil
import pytest
from pydantic import SecretStr

from benchgen.bundle import open_zip, pack
from benchgen.errors import FailedPrecondition, NotFound
from benchgen.eval.v1 import environment_pb2, environment_pb2_grpc, result_pb2_grpc
from services.common import auth, db, rpc
from services.common.auth import Scope
from services.common.claims import ClaimLost
from services.common.config import RpcSettings
from services.common.objects import Bucket, ObjectStore
from services.common.parts import CaseReader
from services.common.signing import Signer
from services.hub.publishing import ledger, store
from services.hub.publishing.domain import State
from services.hub.publishing.jobs import Publisher
from services.hub.publishing.sandbox import Limits
from services.hub.publishing.scratch import scratch_folder
from services.hub.publishing.service import EnvironmentService
from services.local.ports import free_port
from tests import conftest
from tests.integration.hub.support import (
    MIGRATIONS,
    ROOT,
    ROWS,
    Called,
    bundle,
    manifest,
    object_settings,
    seed,
    served,
    upload_messages,
    zipped,
)

Publication = environment_pb2.Publication
LIMITS = Limits()
LOOP = "{% for a in range(9999) %}"
# Where problems of the prompt are: file, line, field.
PROMPT = ("environment.yaml", 12, "harness.prompt")
PROMPT_OF_A_ROW = ("data/test.jsonl", 1, "harness.prompt")
FOREVER = f'"{LOOP * 3}{"{% endfor %}" * 3}x"'


@dataclass
class Scorer:
    """Where the scorer is, or will be, and what the hub presents to it."""

    database: conftest.Database
    objects: conftest.ObjectStore
    port: int = field(default_factory=free_port)
    token: str = field(default_factory=secrets.token_urlsafe)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Run ``python -m services.scorer``."""
        settings = {
            "GRPC_LISTEN": f"127.0.0.1:{self.port}",
            "POSTGRES_DSN": self.database.dsn("scorer"),
            "S3_ENDPOINT": self.objects.endpoint,
            "S3_ACCESS_KEY": self.objects.access_key("scorer"),
            "S3_SECRET_KEY": self.objects.secret_key("scorer"),
            "BUCKET_PREFIX": self.objects.prefix,
            "PEER_TOKENS": f"hub={auth.hash_token(self.token)}",
            "LEASE_PUBLIC_KEY": Signer(seed()).public_key,
            "PRINCIPAL_PUBLIC_KEY": Signer(seed()).public_key,
        }
        environ = {"PATH": os.defpath, **{f"BENCHGEN_{name}": value for name, value in settings.items()}}
        process = subprocess.Popen([sys.executable, "-m", "services.scorer"], cwd=ROOT, env=environ)
        try:
            yield
        finally:
            process.terminate()
            process.wait(20)


@dataclass
class Hub:
    """The publishing half of a hub."""

    pool: asyncpg.Pool
    objects: ObjectStore
    called: Called
    stub: environment_pb2_grpc.EnvironmentServiceAsyncStub
    records: result_pb2_grpc.RecordServiceAsyncStub
    scratch: Path
    stopping: asyncio.Event

    def publisher(self, limits: Limits = LIMITS, *, claim_seconds: float = 30.0) -> Publisher:
        return Publisher(
            self.pool,
            self.objects,
            self.records,
            self.scratch,
            limits,
            self.stopping,
            claim_seconds=claim_seconds,
            pause_seconds=0.05,
        )

    async def upload(self, data: bytes, *, request_id: str | None = None) -> environment_pb2.Publication:
        messages = upload_messages(data, request_id=request_id)
        return await self.stub.UploadBundle(messages, metadata=self.called.as_(Scope.PUBLISH))

    async def get(self, name: str) -> environment_pb2.Publication:
        request = environment_pb2.GetPublicationRequest(name=name)
        return await self.stub.GetPublication(request, metadata=self.called.as_(Scope.READ, Scope.PUBLISH))

    async def publish(self, data: bytes, limits: Limits = LIMITS) -> environment_pb2.Publication:
        """Upload, work until there is nothing to do, and return how it ended."""
        made = await self.upload(data)
        await self.publisher(limits).step()
        return await self.get(made.name)

    async def version(self, name: str) -> environment_pb2.EnvironmentVersion:
        request = environment_pb2.GetEnvironmentVersionRequest(name=name)
        return await self.stub.GetEnvironmentVersion(
            request, metadata=self.called.as_(Scope.READ, Scope.ANSWERS)
        )

    async def yank(self, name: str) -> environment_pb2.EnvironmentVersion:
        request = environment_pb2.YankEnvironmentVersionRequest(name=name)
        return await self.stub.YankEnvironmentVersion(request, metadata=self.called.as_(Scope.PUBLISH))


@pytest.fixture
def scorer(database: Callable[[], conftest.Database], object_store: conftest.ObjectStore) -> Scorer:
    return Scorer(database(), object_store)


@pytest.fixture
async def hub(scorer: Scorer, tmp_path: Path) -> AsyncIterator[Hub]:
    """A hub whose scorer is started by the tests that need it."""
    async with (
        db.pool(scorer.database.dsn("hub"), MIGRATIONS, size=4) as pool,
        ObjectStore(object_settings(scorer.objects, "hub")) as objects,
        rpc.channel(
            f"127.0.0.1:{scorer.port}", RpcSettings(service_token=SecretStr(scorer.token))
        ) as channel,
    ):
        with scratch_folder(tmp_path / "scratch") as scratch:
            service = EnvironmentService(pool, objects, scratch, asyncio.Event(), most_upload_bytes=4 << 20)

            def register(server: grpc.aio.Server) -> None:
                environment_pb2_grpc.add_EnvironmentServiceServicer_to_server(service, server)

            async with served("EnvironmentService", register) as called:
                yield Hub(
                    pool=pool,
                    objects=objects,
                    called=called,
                    stub=environment_pb2_grpc.EnvironmentServiceStub(called.channel),
                    records=result_pb2_grpc.RecordServiceStub(channel),
                    scratch=scratch,
                    stopping=asyncio.Event(),
                )


@pytest.fixture
def scored(scorer: Scorer) -> Iterator[None]:
    """A running scorer."""
    with scorer.running():
        yield


@asynccontextmanager
async def refused(code: grpc.StatusCode, words: str) -> AsyncIterator[None]:
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        yield
    assert caught.value.code() is code


def left(hub: Hub) -> list[str]:
    """What lies about in the scratch folder."""
    return [path.name for path in hub.scratch.iterdir() if path.name != ".lock"]


@pytest.mark.usefixtures("scored")
async def test_a_ready_environment_is_published_and_read_back(
    hub: Hub, scorer: Scorer, tmp_path: Path
) -> None:
    packed = pack(ROOT / "environments" / "gsm8k-mini", tmp_path / "bundle.zip")
    data = (tmp_path / "bundle.zip").read_bytes()
    uploaded = await hub.upload(data)
    assert uploaded.state == Publication.STATE_UPLOADED
    await hub.publisher().step()
    ended = await hub.get(uploaded.name)
    assert ended.state == Publication.STATE_READY, ended.problems
    assert (ended.digest, ended.already_published) == (packed.digest, False)
    assert ended.verification.state == environment_pb2.Verification.STATE_VERIFIED
    assert ended.verification.oracle_mean == 1.0
    assert ended.verification.empty_mean == 0.0

    version = await hub.version(ended.environment_version)
    assert version == await hub.version("gsm8k-mini") == await hub.version(packed.digest)
    assert version.name == ended.environment_version
    assert (version.cases, version.primary_rule) == (ended.cases, "correct")
    assert version.scoring_digest == hashlib.sha256(version.scoring_json.encode()).hexdigest()
    assert version.manifest_yaml == (ROOT / "environments/gsm8k-mini/environment.yaml").read_text()
    assert version.category == environment_pb2.CATEGORY_REASONING

    await assert_stored_apart(scorer, version)
    request = environment_pb2.DownloadBundleRequest(name="gsm8k-mini")
    chunks = hub.stub.DownloadBundle(request, metadata=hub.called.as_(Scope.ANSWERS))
    downloaded = b"".join([message.chunk async for message in chunks])
    assert downloaded == data
    assert left(hub) == []


async def assert_stored_apart(scorer: Scorer, version: environment_pb2.EnvironmentVersion) -> None:
    """Each store has every case, and what a runner may read holds no answer."""
    async with ObjectStore(object_settings(scorer.objects, "scorer")) as objects:
        inputs, targets, solutions = (
            CaseReader(bucket, objects, None) for bucket in (Bucket.INPUTS, Bucket.TARGETS, Bucket.SOLUTIONS)
        )
        last = [version.cases - 1]
        (asked,) = await inputs.rows(version.inputs_digest, last)
        (expected,) = await targets.rows(version.targets_digest, last)
        (solution,) = await solutions.rows(version.solutions_digest, last)
    assert asked["id"] == expected["id"] == solution["id"]
    assert set(asked) == {"position", "id", "messages", "digest"}
    assert solution["solution"] not in orjson.dumps(asked).decode()


@pytest.mark.usefixtures("scored")
async def test_the_same_content_is_the_same_version(hub: Hub, tmp_path: Path) -> None:
    files = bundle(manifest())
    data = zipped(files, tmp_path / "a.zip")
    first = await hub.publish(data)
    assert first.state == Publication.STATE_READY, first.problems

    same_zip = await hub.upload(data)
    assert (same_zip.state, same_zip.already_published) == (Publication.STATE_READY, True)
    other_zip = await hub.publish(zipped(files, tmp_path / "b.zip", top="sums-main/"))
    assert (other_zip.state, other_zip.already_published) == (Publication.STATE_READY, True)
    for again in (same_zip, other_zip):
        assert again.environment_version == first.environment_version
        assert (again.digest, again.cases) == (first.digest, first.cases)
        assert again.verification == first.verification
    assert await hub.pool.fetchval("SELECT count(*) FROM versions") == 1


@pytest.mark.usefixtures("scored")
async def test_changed_content_needs_a_new_version(hub: Hub, tmp_path: Path) -> None:
    await hub.publish(zipped(bundle(manifest()), tmp_path / "a.zip"))
    changed = await hub.publish(zipped(bundle(manifest(), rows=ROWS[:5]), tmp_path / "b.zip"))
    assert changed.state == Publication.STATE_REJECTED
    (problem,) = changed.problems
    assert problem.field == "version"
    assert problem.message.startswith("sums@1.0.0 is published already with other content (digest ")
    assert (await hub.version("sums")).cases == len(ROWS)


async def test_all_problems_of_a_bad_bundle_are_kept_and_nothing_else(hub: Hub, tmp_path: Path) -> None:
    text = manifest().replace("title: A few sums", "titel: A few sums").replace("1.0.0", "one")
    rows = [{"id": "a", "question": "?", "answer": "1"}, {"id": "a", "question": "?", "answer": "2"}]
    ended = await hub.publish(zipped(bundle(text, rows=rows), tmp_path / "a.zip"))
    assert ended.state == Publication.STATE_REJECTED
    fields = {problem.field for problem in ended.problems}
    assert {"titel", "version"} <= fields
    assert all(problem.line > 0 for problem in ended.problems)
    assert await hub.pool.fetchval("SELECT count(*) FROM environments") == 0
    assert await ledger.claim(hub.pool, 1.0) is None
    assert left(hub) == []


@pytest.mark.parametrize(
    ("found", "written", "field"),
    [("A few sums", '"A few\\0sums"', "title"), ("category", '"cat\\0egory"', "cat\ufffdegory")],
)
async def test_characters_that_cannot_be_stored_are_a_problem_too(
    hub: Hub, tmp_path: Path, found: str, written: str, field: str
) -> None:
    ended = await hub.publish(zipped(bundle(manifest().replace(found, written)), tmp_path / "a.zip"))
    assert ended.state == Publication.STATE_REJECTED
    assert [problem.field for problem in ended.problems] == [field]


async def test_something_that_is_no_zip_is_refused(hub: Hub) -> None:
    ended = await hub.publish(b"PK\x03\x04 and then nothing of the kind")
    assert ended.state == Publication.STATE_REJECTED
    assert "zip" in ended.problems[0].message


@pytest.mark.parametrize(
    ("prompt", "seconds", "place", "words"),
    [
        ('"{{ id * 60000000 }}"', 60.0, PROMPT_OF_A_ROW, "at most 1,048,576 characters, found 300,000,000"),
        ("\"{{ 'x' * 300000000 }}\"", 60.0, PROMPT, "needs more than 1,024 MiB of memory"),
        ('"{{ id * 2000000000 }}"', 60.0, PROMPT_OF_A_ROW, "needs more than 1,024 MiB of memory"),
        (FOREVER, 2.0, ("", 0, ""), "needs more than 2 s"),
    ],
    ids=["300 MB", "300 MB when compiled", "10 GB", "for ever"],
)
async def test_a_template_cannot_take_all_memory_or_time(
    hub: Hub, tmp_path: Path, prompt: str, seconds: float, place: tuple[str, int, str], words: str
) -> None:
    data = zipped(bundle(manifest(prompt=prompt)), tmp_path / "a.zip")
    ended = await asyncio.wait_for(hub.publish(data, Limits(seconds=seconds)), 60)
    assert ended.state == Publication.STATE_REJECTED
    first = ended.problems[0]
    assert (first.file, first.line, first.field) == place
    assert words in first.message
    assert left(hub) == []


async def test_a_bundle_cannot_fill_the_disk(hub: Hub, tmp_path: Path) -> None:
    rows = [{"id": str(n), "question": "?", "answer": "1"} for n in range(4_000)]
    data = zipped(bundle(manifest(prompt="\"{{ 'x' * 1000000 }}\""), rows=rows), tmp_path / "a.zip")
    ended = await asyncio.wait_for(hub.publish(data, Limits(output_bytes=64 << 20)), 60)
    assert ended.state == Publication.STATE_REJECTED
    assert "writes more than 64 MiB" in ended.problems[0].message


@pytest.mark.usefixtures("scored")
async def test_broken_promises_are_refused_with_their_numbers(hub: Hub, tmp_path: Path) -> None:
    oracle = "\"{{ answer if id != 'sum-3' else 1000 }}\""
    ended = await hub.publish(zipped(bundle(manifest(oracle=oracle)), tmp_path / "a.zip"))
    assert ended.state == Publication.STATE_REJECTED
    assert ended.problems[0].field == "oracle"
    assert "at least 1 on `correct`, found a mean of 0.95 over 20 cases" in ended.problems[0].message
    assert ended.verification.state == environment_pb2.Verification.STATE_FAILED
    assert any("sum-3" in problem.message for problem in ended.problems)


@pytest.mark.usefixtures("scored")
async def test_without_an_oracle_a_version_is_unverified(hub: Hub, tmp_path: Path) -> None:
    ended = await hub.publish(zipped(bundle(manifest(oracle=None)), tmp_path / "a.zip"))
    assert ended.state == Publication.STATE_READY, ended.problems
    assert ended.verification.state == environment_pb2.Verification.STATE_UNVERIFIED
    version = await hub.version("sums")
    assert version.solutions_digest == ""
    assert version.generation.max_tokens == 64
    assert orjson.loads(version.generation.extra_json) == {"top_k": 5}


async def test_publishing_waits_for_the_scorer(hub: Hub, scorer: Scorer, tmp_path: Path) -> None:
    made = await hub.upload(zipped(bundle(manifest()), tmp_path / "a.zip"))
    working = asyncio.create_task(hub.publisher(claim_seconds=2.0).step())
    while (await hub.get(made.name)).state != Publication.STATE_VERIFYING:
        await asyncio.sleep(0.05)
    # Longer than the claim: it is renewed all the while.
    await asyncio.sleep(2.5)
    assert await ledger.claim(hub.pool, 1.0) is None
    with scorer.running():
        await asyncio.wait_for(working, 30)
        assert (await hub.get(made.name)).state == Publication.STATE_READY


async def test_work_is_handed_back_at_once_when_the_hub_stops(hub: Hub, tmp_path: Path) -> None:
    made = await hub.upload(zipped(bundle(manifest(prompt=FOREVER)), tmp_path / "a.zip"))
    working = asyncio.create_task(hub.publisher(Limits(seconds=60)).step())
    while not (
        children := [child for child in psutil.Process().children() if "child" in str(child.cmdline())]
    ):
        await asyncio.sleep(0.02)
    while (await hub.get(made.name)).state != Publication.STATE_VALIDATING:
        await asyncio.sleep(0.02)
    # What renders untrusted templates knows no secret.
    assert set(children[0].environ()) <= {"PATH", "LANG", "LC_CTYPE"}
    hub.stopping.set()
    await asyncio.wait_for(working, 5)
    assert not children[0].is_running()
    assert left(hub) == []
    claim = await ledger.claim(hub.pool, 1.0)
    assert claim is not None
    assert claim.publication == made.name


async def test_a_child_that_keeps_dying_is_given_up(hub: Hub, tmp_path: Path) -> None:
    made = await hub.upload(zipped(bundle(manifest()), tmp_path / "a.zip"))
    # Too little for an interpreter to get anywhere.
    publisher = hub.publisher(Limits(memory_bytes=4 << 20))
    for _ in range(3):
        assert (await hub.get(made.name)).state != Publication.STATE_REJECTED
        await publisher.step()
        await asyncio.sleep(0.1)
    ended = await hub.get(made.name)
    assert ended.state == Publication.STATE_REJECTED
    assert "failed 3 times and was given up" in ended.problems[0].message


async def test_whoever_lost_a_claim_changes_nothing(hub: Hub, tmp_path: Path) -> None:
    made = await hub.upload(zipped(bundle(manifest()), tmp_path / "a.zip"))
    late = await ledger.claim(hub.pool, 0.0)
    assert late is not None
    held = await ledger.claim(hub.pool, 30.0)
    assert held is not None
    assert held.publication == late.publication == made.name
    assert not await ledger.renew(hub.pool, late, 30.0)
    with pytest.raises(ClaimLost):
        await ledger.advance(hub.pool, late, State.VERIFYING)
    with pytest.raises(ClaimLost):
        await ledger.reject(hub.pool, late, [])
    await ledger.release(hub.pool, late, pause=0.0)
    assert await ledger.claim(hub.pool, 1.0) is None
    assert (await hub.get(made.name)).state == Publication.STATE_UPLOADED


@pytest.mark.usefixtures("scored")
async def test_latest_follows_precedence_and_yanking(hub: Hub, tmp_path: Path) -> None:
    for number, version in enumerate(["1.9.0", "1.10.0", "1.10.0-rc.1"]):
        files = bundle(manifest(version=version), rows=ROWS[: number + 1])
        ended = await hub.publish(zipped(files, tmp_path / "a.zip"))
        assert ended.state == Publication.STATE_READY, ended.problems
    assert (await hub.version("sums")).version == "1.10.0"
    assert await versions(hub, page_size=2) == ["1.10.0", "1.10.0-rc.1", "1.9.0"]

    digest = (await hub.version("sums@1.10.0")).digest
    for _ in range(2):
        yanked = await hub.yank("sums@1.10.0")
        assert yanked.yanked
    assert (await hub.version("sums")).version == "1.10.0-rc.1"
    assert await versions(hub, page_size=50) == ["1.10.0-rc.1", "1.9.0"]
    async with hub.pool.acquire() as conn:
        assert (await store.find_version(conn, digest)).yanked
        assert (await store.find_version(conn, "sums")).version == "1.10.0-rc.1"
        with pytest.raises(FailedPrecondition, match=f"can still be run by its digest, {digest}"):
            await store.find_version(conn, "sums@1.10.0")
        with pytest.raises(
            NotFound, match=r"`sums` has no version '2.0.0'; the newest are 1.10.0-rc.1, 1.9.0"
        ):
            await store.find_version(conn, "sums@2.0.0")
        with pytest.raises(NotFound, match="no environment `sum`; did you mean `sums`"):
            await store.find_version(conn, "sum")
        with pytest.raises(NotFound, match="no version has the digest"):
            await store.find_version(conn, "0" * 64)
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "expected name@version"):
        await hub.yank("sums")


async def versions(hub: Hub, *, page_size: int) -> list[str]:
    """All versions of ``sums``, page by page."""
    found: list[str] = []
    request = environment_pb2.ListEnvironmentVersionsRequest(environment="sums", page_size=page_size)
    while True:
        page = await hub.stub.ListEnvironmentVersions(request, metadata=hub.called.as_(Scope.READ))
        found += [version.version for version in page.environment_versions]
        if not page.next_page_token:
            return found
        request.page_token = page.next_page_token


@pytest.mark.usefixtures("scored")
async def test_environments_are_listed_by_name_in_pages(hub: Hub, tmp_path: Path) -> None:
    for name in ("sums", "org/sums", "a-sums"):
        ended = await hub.publish(zipped(bundle(manifest(name=name)), tmp_path / "a.zip"))
        assert ended.state == Publication.STATE_READY, ended.problems
    request = environment_pb2.ListEnvironmentsRequest(page_size=2)
    first = await hub.stub.ListEnvironments(request, metadata=hub.called.as_(Scope.READ))
    request.page_token = first.next_page_token
    second = await hub.stub.ListEnvironments(request, metadata=hub.called.as_(Scope.READ))
    listed = [*first.environments, *second.environments]
    assert [environment.name for environment in listed] == ["a-sums", "org/sums", "sums"]
    assert not second.next_page_token
    assert (listed[0].title, listed[0].cases, listed[0].latest_version) == ("A few sums", 20, "1.0.0")
    request.page_token = "made-up"
    async with refused(grpc.StatusCode.INVALID_ARGUMENT, "page_token"):
        await hub.stub.ListEnvironments(request, metadata=hub.called.as_(Scope.READ))


@pytest.mark.usefixtures("scored")
async def test_a_version_cannot_be_changed_even_by_our_own_statements(hub: Hub, tmp_path: Path) -> None:
    await hub.publish(zipped(bundle(manifest()), tmp_path / "a.zip"))
    for statement in ("UPDATE versions SET cases = 1", "DELETE FROM versions"):
        with pytest.raises(asyncpg.RaiseError, match="never changes"):
            await hub.pool.execute(statement)


async def test_an_upload_repeated_is_the_same_upload(hub: Hub, tmp_path: Path) -> None:
    data = zipped(bundle(manifest()), tmp_path / "a.zip")
    ident = str(uuid.uuid4())
    first = await hub.upload(data, request_id=ident)
    assert await hub.upload(data, request_id=ident) == first
    together = str(uuid.uuid4())
    made = await asyncio.gather(*(hub.upload(data, request_id=together) for _ in range(5)))
    assert len({publication.name for publication in made}) == 1
    assert await hub.pool.fetchval("SELECT count(*) FROM publications") == 2


async def test_uploads_that_cannot_be_used_leave_nothing(hub: Hub) -> None:
    may = hub.called.as_(Scope.PUBLISH)
    upload = hub.stub.UploadBundle
    bad = grpc.StatusCode.INVALID_ARGUMENT
    async with refused(bad, "at most 4,194,304 bytes"):
        await upload(upload_messages(b"x", size=5 << 20), metadata=may)
    async with refused(bad, "at most 4,194,304 bytes"):
        await upload(upload_messages(b"x" * (5 << 20), size=0), metadata=may)
    async with refused(bad, "at most 1,048,576 bytes"):
        await upload(upload_messages(b"x" * (2 << 20), chunk=2 << 20), metadata=may)
    async with refused(bad, "expected the announced 10 bytes, found 3"):
        await upload(upload_messages(b"abc", size=10), metadata=may)
    async with refused(bad, "found nothing"):
        await upload(upload_messages(b""), metadata=may)
    async with refused(bad, "expected a UUID"):
        await upload(upload_messages(b"x", request_id="mine"), metadata=may)
    async with refused(bad, "expected a header"):
        await upload(iter([environment_pb2.UploadBundleRequest(chunk=b"x")]), metadata=may)
    async with refused(grpc.StatusCode.PERMISSION_DENIED, "lacks the scope `publish`"):
        await upload(upload_messages(b"x"), metadata=hub.called.as_(Scope.READ))
    assert await hub.pool.fetchval("SELECT count(*) FROM publications") == 0
    assert left(hub) == []


@pytest.mark.parametrize("announced", [None, 0], ids=["with its size", "without"])
async def test_a_client_that_goes_away_leaves_nothing(
    hub: Hub, tmp_path: Path, announced: int | None
) -> None:
    data = zipped(bundle(manifest()), tmp_path / "a.zip")
    messages = list(upload_messages(data, size=announced, chunk=len(data) // 2 + 1))
    call = hub.stub.UploadBundle(metadata=hub.called.as_(Scope.PUBLISH))
    await call.write(messages[0])
    await call.write(messages[1])
    while not left(hub):
        await asyncio.sleep(0.01)
    call.cancel()
    while left(hub):
        await asyncio.sleep(0.01)
    assert await hub.pool.fetchval("SELECT count(*) FROM publications") == 0


async def test_reading_needs_scopes_and_bundles_need_more(hub: Hub) -> None:
    reader = hub.called.as_(Scope.READ)
    denied = grpc.StatusCode.PERMISSION_DENIED
    async with refused(denied, "lacks the scope `answers`"):
        request = environment_pb2.DownloadBundleRequest(name="sums")
        await hub.stub.DownloadBundle(request, metadata=reader).read()
    async with refused(denied, "lacks the scope `publish`"):
        await hub.stub.YankEnvironmentVersion(
            environment_pb2.YankEnvironmentVersionRequest(name="sums@1.0.0"), metadata=reader
        )
    async with refused(denied, "lacks the scope `read`"):
        await hub.stub.GetEnvironment(
            environment_pb2.GetEnvironmentRequest(name="sums"), metadata=hub.called.as_(Scope.RUN)
        )
    async with refused(grpc.StatusCode.NOT_FOUND, "no environment `sums`"):
        await hub.stub.GetEnvironment(environment_pb2.GetEnvironmentRequest(name="sums"), metadata=reader)
    async with refused(grpc.StatusCode.NOT_FOUND, "no publication"):
        await hub.get("p000000000000")


def test_folders_of_dead_processes_are_removed(tmp_path: Path) -> None:
    abandoned = tmp_path / "hub-abandoned"
    abandoned.mkdir()
    (abandoned / ".lock").touch()
    (abandoned / "upload-1").touch()
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


async def test_a_parquet_dataset_fits_the_limits(hub: Hub, tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "test.parquet")
    text = manifest().replace("test.jsonl", "test.parquet")
    files = {"environment.yaml": text.encode(), "data/test.parquet": (tmp_path / "test.parquet").read_bytes()}
    made = await hub.upload(zipped(files, tmp_path / "a.zip"))
    working = asyncio.create_task(hub.publisher().step())
    while (await hub.get(made.name)).state not in (Publication.STATE_VERIFYING, Publication.STATE_REJECTED):
        await asyncio.sleep(0.05)
    hub.stopping.set()
    await working
    ended = await hub.get(made.name)
    assert ended.state == Publication.STATE_VERIFYING, ended.problems
    assert open_zip(tmp_path / "a.zip").digest == ended.digest
