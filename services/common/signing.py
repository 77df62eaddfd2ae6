"""Ed25519 signatures over bytes: leases by the hub, principals by the gateway."""

from __future__ import annotations

import base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from benchgen.errors import PermissionDenied


class Signer:
    """Signs with the seed of a private key, 32 bytes in base64."""

    def __init__(self, seed: str) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(base64.b64decode(seed, validate=True))

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    @property
    def public_key(self) -> str:
        """The public key in base64, for whoever verifies."""
        return base64.b64encode(self._key.public_key().public_bytes_raw()).decode()


class Verifier:
    """Checks signatures with a public key, 32 bytes in base64.

    Several, separated by commas, are all good: while a key is being replaced, there are two.
    """

    def __init__(self, public_key: str) -> None:
        self._keys = [
            Ed25519PublicKey.from_public_bytes(base64.b64decode(key, validate=True))
            for key in public_key.split(",")
        ]

    def verify(self, message: bytes, signature: bytes, *, what: str) -> None:
        """:raises PermissionDenied: the signature is not of this message by the holder of the key."""
        for key in self._keys:
            try:
                key.verify(signature, message)
            except InvalidSignature:
                continue
            return
        raise PermissionDenied(f"the signature of the {what} is not valid")
