"""Which results may be recorded: those under a lease that the hub signed."""

from __future__ import annotations

from benchgen.errors import InvalidInput, PermissionDenied
from benchgen.eval.v1 import lease_pb2
from services.common.signing import Verifier


def open_lease(lease: lease_pb2.SignedLease, hub: Verifier) -> lease_pb2.LeaseClaims:
    """The claims of a lease.

    :param hub: holds the hub's public key.
    :raises PermissionDenied: the hub did not sign it, or it is a lease for another run than its specification's.
    :raises InvalidInput: the claims make no sense.
    """
    hub.verify(lease.claims, lease.signature, what="lease")
    claims = lease_pb2.LeaseClaims.FromString(lease.claims)
    spec = claims.spec
    if claims.run != spec.run:
        raise PermissionDenied("the lease is for another run than the specification in it")
    if not spec.trials or not claims.count or not claims.positions:
        raise InvalidInput("the lease names no trials")
    slots = (claims.first + claims.count - 1) // spec.trials - claims.first // spec.trials + 1
    if slots != len(claims.positions):
        raise InvalidInput(f"the lease spans {slots} cases and names {len(claims.positions)}")
    return claims
