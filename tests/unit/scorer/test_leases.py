"""Only what the hub signed is a lease, and only what makes sense."""

from __future__ import annotations

import base64
import secrets

import pytest

from benchgen.errors import InvalidInput, PermissionDenied
from benchgen.eval.v1 import lease_pb2, run_pb2
from services.common.signing import Signer, Verifier
from services.scorer.leases import open_lease


def new_key() -> Signer:
    return Signer(base64.b64encode(secrets.token_bytes(32)).decode())


HUB = new_key()


def claims(**changes: object) -> lease_pb2.LeaseClaims:
    spec = run_pb2.RunSpec(run="r1", trials=4)
    made = lease_pb2.LeaseClaims(
        shard="r1-000002", run="r1", attempt=1, first=256, count=6, positions=[64, 65], spec=spec
    )
    made.MergeFrom(lease_pb2.LeaseClaims(**changes))  # type: ignore[arg-type]
    return made


def signed(made: lease_pb2.LeaseClaims, key: Signer = HUB) -> lease_pb2.SignedLease:
    data = made.SerializeToString()
    return lease_pb2.SignedLease(claims=data, signature=key.sign(data))


def opened(lease: lease_pb2.SignedLease) -> lease_pb2.LeaseClaims:
    return open_lease(lease, Verifier(HUB.public_key))


def test_a_lease_of_the_hub() -> None:
    assert opened(signed(claims())) == claims()


@pytest.mark.parametrize("length", [0, 1, 63, 64, 65])
def test_a_signature_of_nobody(length: int) -> None:
    data = claims().SerializeToString()
    with pytest.raises(PermissionDenied, match="the signature of the lease is not valid"):
        opened(lease_pb2.SignedLease(claims=data, signature=secrets.token_bytes(length)))


def test_a_signature_of_somebody_else_and_one_of_another_lease() -> None:
    with pytest.raises(PermissionDenied):
        opened(signed(claims(), new_key()))
    other = signed(claims(attempt=2))
    with pytest.raises(PermissionDenied):
        opened(lease_pb2.SignedLease(claims=claims().SerializeToString(), signature=other.signature))


def test_the_specification_of_another_run() -> None:
    with pytest.raises(PermissionDenied, match="another run"):
        opened(signed(claims(run="r2")))


@pytest.mark.parametrize(
    ("first", "count", "trials", "positions"),
    [
        (256, 6, 4, [64]),
        (256, 6, 4, [64, 65, 66]),
        (255, 6, 4, [63, 64]),
        (0, 1, 1, [0, 1]),
        (0, 0, 1, [0]),
        (0, 1, 0, [0]),
        (0, 1, 1, []),
    ],
)
def test_counts_that_contradict_each_other(first: int, count: int, trials: int, positions: list[int]) -> None:
    made = lease_pb2.LeaseClaims(
        run="r1",
        first=first,
        count=count,
        positions=positions,
        spec=run_pb2.RunSpec(run="r1", trials=trials),
    )
    with pytest.raises(InvalidInput):
        opened(signed(made))
