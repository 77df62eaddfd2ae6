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


def _read_key(name: str, encoded: SecretStr) -> tuple[bytes, AESGCM]:
    """The id and the cipher of a key."""
    try:
        key = base64.b64decode(encoded.get_secret_value(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _KEY_BYTES:
        raise InvalidInput(f"{name}: expected 32 bytes in base64")
    return hashlib.sha256(b"benchgen master key id" + key).digest()[:_ID_BYTES], AESGCM(key)


class Vault:
    """Seals secrets with a master key, 32 bytes in base64, and opens what was sealed with it or with the old one.

    A sealed secret is the key's id (4 bytes), a random nonce (12) and the ciphertext with its tag. The id
    says which key it needs, and tells a wrong key from damaged data.

    :param old_key: the key before this one, while it is being replaced; empty when there is none.
    :raises InvalidInput: a key is no such key; the message does not repeat it.
    """

    def __init__(self, master_key: SecretStr, old_key: SecretStr | None = None) -> None:
        self._id, cipher = _read_key("BENCHGEN_MASTER_KEY", master_key)
        self._cipher = cipher
        self._ciphers = {self._id: cipher}
        if old_key is not None and old_key.get_secret_value():
            old_id, old_cipher = _read_key("BENCHGEN_MASTER_KEY_OLD", old_key)
            self._ciphers.setdefault(old_id, old_cipher)

    def is_current(self, sealed: bytes) -> bool:
        """Whether a secret is sealed with the master key, and not with an older one."""
        return sealed[:_ID_BYTES] == self._id

    def encrypt(self, model: str, secret: str) -> bytes:
        """Seal a secret for one model: under another model's name it does not open."""
        nonce = os.urandom(_NONCE_BYTES)
        return self._id + nonce + self._cipher.encrypt(nonce, secret.encode(), model.encode())

    def decrypt(self, model: str, sealed: bytes) -> str:
        """Open the secret of a model.

        :raises FailedPrecondition: it was sealed with another key or for another model, or it is damaged.
        """
        nonce = sealed[_ID_BYTES : _ID_BYTES + _NONCE_BYTES]
        cipher = self._ciphers.get(sealed[:_ID_BYTES])
        if cipher is None or len(nonce) != _NONCE_BYTES:
            raise FailedPrecondition(
                f"the secret of `{model}` was encrypted with another master key; register the model again"
            )
        try:
            return cipher.decrypt(nonce, sealed[_ID_BYTES + _NONCE_BYTES :], model.encode()).decode()
        except InvalidTag:
            raise FailedPrecondition(
                f"the secret of `{model}` cannot be opened; register the model again"
            ) from None
