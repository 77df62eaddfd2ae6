"""Canonical JSON, and the digest of a tree of files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any, Protocol

import orjson


class HashedFile(Protocol):
    """What a digest needs to know of a file."""

    @property
    def path(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises ``TypeError`` where the value has no JSON form: integers over 64 bits, lone surrogates, unknown
    types.
    """
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def sha256_hex(data: bytes) -> str:
    """The sha256 of the bytes, in lower-case hex."""
    return hashlib.sha256(data).hexdigest()


def json_digest(value: Any) -> str:
    """The sha256 of the canonical JSON of a value."""
    return sha256_hex(canonical_json(value))


def tree_digest(files: Iterable[HashedFile]) -> str:
    """The digest of a bundle: sha256 over the canonical JSON of its files, sorted by path.

    JSON delimits every path and number, so two different sets of files never share the hashed bytes.
    """
    entries = sorted((file.path, file.size, file.sha256) for file in files)
    return json_digest([{"path": path, "sha256": sha256, "size": size} for path, size, sha256 in entries])
