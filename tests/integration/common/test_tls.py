"""Mutual TLS between machines: a token is good only together with the certificate of its identity."""

from __future__ import annotations

import datetime
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from pydantic import SecretStr

from benchgen.errors import BenchgenError, InvalidInput, PermissionDenied, Unauthenticated, Unavailable
from benchgen.eval.v1 import lease_pb2, lease_pb2_grpc
from benchgen.statuses import error_of
from services.common import auth, rpc
from services.common.config import RpcSettings
from services.common.signing import Signer
from tests.integration.runner.support import Hub
from tests.integration.scorer.support import new_seed

Pair = tuple[x509.Certificate, ec.EllipticCurvePrivateKey]


def issue(common_name: str | None, by: Pair | None = None) -> Pair:
    """A certificate for loopback; of an authority when nobody issues it."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [] if common_name is None else [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name(names))
        .issuer_name(x509.Name(names) if by is None else by[0].subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(minutes=5))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.IPAddress(IPv4Address("127.0.0.1")), x509.DNSName("runner"), x509.DNSName("localhost")]
            ),
            critical=False,
        )
    )
    return builder.sign(key if by is None else by[1], hashes.SHA256()), key


def written(folder: Path, name: str, pair: Pair) -> dict[str, Path]:
    """The files of a certificate, by the settings that name them."""
    cert, key = folder / f"{name}.pem", folder / f"{name}.key"
    cert.write_bytes(pair[0].public_bytes(serialization.Encoding.PEM))
    key.write_bytes(
        pair[1].private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return {"tls_cert": cert, "tls_key": key}


@dataclass(frozen=True)
class Machines:
    """A hub that takes a runner and a scorer, and the files of everybody."""

    port: int
    folder: Path
    authority: Pair
    tokens: dict[str, str]

    def files(self, name: str | None, by: Pair | None = None, ca: Path | None = None) -> dict[str, Path]:
        """The files of a caller whose certificate has this name."""
        issued = issue(name, by or self.authority)
        made = written(self.folder, secrets.token_hex(4), issued)
        return made | {"tls_ca": ca or self.folder / "ca.pem"}

    async def call(self, token: str, files: dict[str, Path]) -> None:
        """Call as whoever has the token, with these files.

        :raises BenchgenError: what the call was refused with.
        """
        settings = RpcSettings(service_token=SecretStr(self.tokens.get(token, token)), **files)
        async with rpc.channel(f"127.0.0.1:{self.port}", settings) as channel:
            request = lease_pb2.KeepRunnerRequest(runner="a", shards=1)
            try:
                await lease_pb2_grpc.LeaseServiceStub(channel).KeepRunner(request, timeout=5)
            except grpc.RpcError as failure:
                raise error_of(failure) from None


@asynccontextmanager
async def listening(folder: Path) -> AsyncIterator[Machines]:
    authority = issue("authority")
    written(folder, "ca", authority)
    tokens = {identity: secrets.token_urlsafe() for identity in ("runner", "scorer")}
    settings = RpcSettings(
        peer_tokens=",".join(f"{name}={auth.hash_token(token)}" for name, token in tokens.items()),
        tls_ca=folder / "ca.pem",
        **written(folder, "hub", issue("hub", authority)),
    )
    access = rpc.Access(settings, {"benchgen.eval.v1.LeaseService": frozenset({"runner"})})
    hub = Hub(Signer(new_seed()))

    def register(server: grpc.aio.Server) -> None:
        lease_pb2_grpc.add_LeaseServiceServicer_to_server(hub, server)

    async with rpc.server("127.0.0.1:0", settings, access, register, grace=0) as port:
        yield Machines(port, folder, authority, tokens)


@pytest.fixture
async def machines(tmp_path: Path) -> AsyncIterator[Machines]:
    async with listening(tmp_path) as made:
        yield made


async def refused(machines: Machines, token: str, files: dict[str, Path]) -> BenchgenError:
    with pytest.raises(BenchgenError) as caught:
        await machines.call(token, files)
    return caught.value


async def test_the_certificate_and_the_token_of_one_identity(machines: Machines) -> None:
    await machines.call("runner", machines.files("runner"))


async def test_the_certificate_of_another_identity(machines: Machines) -> None:
    error = await refused(machines, "runner", machines.files("scorer"))
    assert isinstance(error, Unauthenticated)
    assert error.message == "the certificate is not one of `runner`"


async def test_a_certificate_without_a_name(machines: Machines) -> None:
    """Its alternative names do not count either: what is checked is the common name."""
    assert isinstance(await refused(machines, "runner", machines.files(None)), Unauthenticated)


async def test_no_token_with_a_good_certificate(machines: Machines) -> None:
    assert isinstance(await refused(machines, "", machines.files("runner")), Unauthenticated)
    # Who it is does not say what it may do.
    assert isinstance(await refused(machines, "scorer", machines.files("scorer")), PermissionDenied)


async def test_no_certificate(machines: Machines) -> None:
    """Neither without TLS, nor with TLS and nothing to show."""
    assert isinstance(await refused(machines, "runner", {}), Unavailable)
    authority = (machines.folder / "ca.pem").read_bytes()
    credentials = grpc.ssl_channel_credentials(authority)
    async with grpc.aio.secure_channel(f"127.0.0.1:{machines.port}", credentials) as channel:
        stub = lease_pb2_grpc.LeaseServiceStub(channel)
        metadata = ((auth.TOKEN_KEY, machines.tokens["runner"]),)
        with pytest.raises(grpc.RpcError) as caught:
            await stub.KeepRunner(
                lease_pb2.KeepRunnerRequest(runner="a", shards=1), metadata=metadata, timeout=5
            )
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_another_authority(machines: Machines) -> None:
    stranger = issue("authority")
    assert isinstance(await refused(machines, "runner", machines.files("runner", by=stranger)), Unavailable)


async def test_a_server_of_another_authority(machines: Machines) -> None:
    """The caller does not give its token to whoever answers."""
    stranger = machines.folder / "stranger"
    stranger.mkdir()
    written(stranger, "ca", issue("authority"))
    files = machines.files("runner", ca=stranger / "ca.pem")
    assert isinstance(await refused(machines, "runner", files), Unavailable)


@pytest.mark.parametrize("missing", ["tls_cert", "tls_key", "tls_ca"])
async def test_half_of_the_settings(machines: Machines, missing: str) -> None:
    files = machines.files("runner")
    del files[missing]
    assert isinstance(await refused(machines, "runner", files), InvalidInput)
