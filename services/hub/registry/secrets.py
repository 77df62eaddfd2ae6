"""Secrets of models at rest: AES-256-GCM under the hub's master key, bound to the model they belong to."""

from __future__ import annotations

import base64
import binascii
import hashlib
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from benchgen.errors import FailedPrecondition, InvalidInput

_KEY_BYTES = 32
_ID_BYTES = 4
_NONCE_BYTES = 12


class Vault:
    """Seals and opens secrets with a master key, 32 bytes in base64.

    A sealed secret is the key's id (4 bytes), a random nonce (12) and the ciphertext with its tag. The id
    lets a later version hold several keys, and tells a wrong key from damaged data.

    :raises InvalidInput: the master key is no such key; the message does not repeat it.
    """

    def __init__(self, master_key: SecretStr) -> None:
        try:
            key = base64.b64decode(master_key.get_secret_value(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != _KEY_BYTES:
            raise InvalidInput("BENCHGEN_MASTER_KEY: expected 32 bytes in base64")
        self._cipher = AESGCM(key)
        self._id = hashlib.sha256(b"benchgen master key id" + key).digest()[:_ID_BYTES]

    def encrypt(self, model: str, secret: str) -> bytes:
        """Seal a secret for one model: under another model's name it does not open."""
        nonce = os.urandom(_NONCE_BYTES)
        return self._id + nonce + self._cipher.encrypt(nonce, secret.encode(), model.encode())

    def decrypt(self, model: str, sealed: bytes) -> str:
        """Open the secret of a model.

        :raises FailedPrecondition: it was sealed with another key or for another model, or it is damaged.
        """
        nonce = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        if sealed[:_ID_BYTES] != self._id or len(nonce) != _NONCE_BYTES:
            raise FailedPrecondition(
                f"the secret of `{model}` was encrypted with another master key; register the model again"
            )
        try:
            return self._cipher.decrypt(nonce, sealed[_ID_BYTES + _NONCE_BYTES :], model.encode()).decode()
        except InvalidTag:
            raise FailedPrecondition(
                f"the secret of `{model}` cannot be opened; register the model again"
            ) from None
