"""A hub's services on a real server, called as the gateway calls them; environments that are made on the spot."""

from __future__ import annotations

import base64
import secrets
import uuid
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import orjson
from pydantic import SecretStr

from benchgen.eval.v1 import environment_pb2
from services.common import auth, rpc
from services.common.auth import Principal, Scope
from services.common.config import ObjectSettings, RpcSettings
from services.common.signing import Signer, Verifier
from tests import conftest

ROOT = Path(__file__).resolve().parents[3]
MIGRATIONS = ROOT / "services" / "hub" / "migrations"

Metadata = tuple[tuple[str, str | bytes], ...]


def seed() -> str:
    """A new private key, or any other 32 bytes in base64."""
    return base64.b64encode(secrets.token_bytes(32)).decode()


@dataclass(frozen=True, slots=True)
class Called:
    """A running server and how to call it."""

    channel: grpc.aio.Channel
    signer: Signer

    def as_(self, *scopes: Scope) -> Metadata:
        """The metadata of a caller with these scopes; all when none is given."""
        who = Principal("key-1", frozenset(scopes or Scope))
        return ((auth.PRINCIPAL_KEY, auth.seal_principal(who, self.signer)),)


@asynccontextmanager
async def served(service: str, register: Callable[[grpc.aio.Server], None]) -> AsyncIterator[Called]:
    """Serve one public service; only the gateway may call it."""
    signer, token = Signer(seed()), secrets.token_urlsafe()
    hub = RpcSettings(peer_tokens=f"gateway={auth.hash_token(token)}")
    name = f"benchgen.eval.v1.{service}"
    access = rpc.Access(
        hub, {name: frozenset({"gateway"})}, public=[name], principals=Verifier(signer.public_key)
    )
    async with (
        rpc.server("127.0.0.1:0", hub, access, register, grace=0.5) as port,
        rpc.channel(f"127.0.0.1:{port}", RpcSettings(service_token=SecretStr(token))) as channel,
    ):
        yield Called(channel, signer)


def object_settings(store: conftest.ObjectStore, identity: str) -> ObjectSettings:
    """How an identity reaches a test's buckets."""
    return ObjectSettings(
        s3_endpoint=store.endpoint,
        s3_access_key=store.access_key(identity),
        s3_secret_key=SecretStr(store.secret_key(identity)),
        bucket_prefix=store.prefix,
    )


MANIFEST = """\
schema: 1
name: {name}
version: {version}
title: A few sums
category: reasoning
dataset:
  file: data/test.jsonl
  id: id
  target: answer
harness:
  type: chat
  prompt: {prompt}
  generation: {{temperature: 0, max_tokens: 64, top_k: 5}}
{oracle}scoring:
  - name: correct
    type: numeric
"""
ROWS = [{"id": f"sum-{n}", "question": f"{n} + {n} = ?", "answer": str(2 * n)} for n in range(20)]


def manifest(
    name: str = "sums",
    version: str = "1.0.0",
    prompt: str = '"{{ question }}"',
    oracle: str | None = '"{{ answer }}"',
) -> str:
    """An ``environment.yaml``; ``prompt`` and ``oracle`` are YAML."""
    line = "" if oracle is None else f"oracle: {oracle}\n"
    return MANIFEST.format(name=name, version=version, prompt=prompt, oracle=line)


def bundle(text: str, *, rows: list[dict[str, str]] | None = None, **more: bytes) -> Mapping[str, bytes]:
    """The files of a small environment."""
    lines = b"".join(orjson.dumps(row) + b"\n" for row in (ROWS if rows is None else rows))
    return {"environment.yaml": text.encode(), "data/test.jsonl": lines, **more}


def zipped(files: Mapping[str, bytes], path: Path, *, top: str = "") -> bytes:
    """The files as a zip, below a top folder if one is named."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(f"{top}{name}", content)
    return path.read_bytes()


def upload_messages(
    data: bytes, *, request_id: str | None = None, size: int | None = None, chunk: int = 1 << 20
) -> Iterator[environment_pb2.UploadBundleRequest]:
    """The messages that upload a zip."""
    header = environment_pb2.UploadHeader(
        request_id=request_id or str(uuid.uuid4()), size_bytes=len(data) if size is None else size
    )
    yield environment_pb2.UploadBundleRequest(header=header)
    for start in range(0, len(data), chunk):
        yield environment_pb2.UploadBundleRequest(chunk=data[start : start + chunk])
