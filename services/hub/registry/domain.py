"""Registered models as values, and what makes one acceptable."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any
from urllib.parse import SplitResult, urlsplit, urlunsplit

import orjson

from benchgen.errors import InvalidInput

DEFAULT_CONCURRENCY = 64
MOST_CONCURRENCY = 100_000
#: Built-in subjects have no endpoint to protect.
BUILTIN_CONCURRENCY = 256

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_PRICE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,12})?")
_SECRET = re.compile(r"[\x21-\x7e]{1,4096}")
#: What the runner writes into every request itself.
_RESERVED = frozenset({"model", "messages", "stream", "temperature", "top_p", "max_tokens", "stop"})


@dataclass(frozen=True, slots=True)
class Generation:
    """How a model is asked; None leaves it to the endpoint. ``extra`` are further fields of the request."""

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def problems(self) -> list[str]:
        """Everything that is wrong with it, a line each."""
        found: list[str] = []
        if self.temperature is not None and not 0 <= self.temperature <= 10:
            found.append(f"generation.temperature: expected 0 to 10, found {self.temperature:g}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            found.append(f"generation.top_p: expected above 0 and at most 1, found {self.top_p:g}")
        if self.max_tokens is not None and self.max_tokens < 1:
            found.append(f"generation.max_tokens: expected at least 1, found {self.max_tokens}")
        if len(self.stop) > 16 or not all(self.stop) or len(set(self.stop)) != len(self.stop):
            found.append("generation.stop: expected at most 16 different texts, none of them empty")
        if "\0" in "".join(self.stop) or b"\\u0000" in orjson.dumps(dict(self.extra)):
            found.append("generation: expected text without NUL characters, found one")
        reserved = sorted(_RESERVED & self.extra.keys())
        if reserved:
            found.append(
                f"generation.extra_json: expected no field that is set elsewhere, found {', '.join(reserved)}"
            )
        return found


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens as decimal strings; None is unknown."""

    input: str | None = None
    output: str | None = None
    cached: str | None = None

    def problems(self) -> list[str]:
        """Everything that is wrong with it, a line each."""
        return [
            f"price.{kind.name}_usd_per_mtok: expected a decimal number such as 0.15, found {value[:40]!r}"
            for kind in fields(self)
            if (value := getattr(self, kind.name)) is not None and not _PRICE.fullmatch(value)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRow:
    """A registered endpoint."""

    name: str
    base_url: str
    model_id: str
    price: Price
    max_concurrency: int
    generation: Generation
    description: str
    has_secret: bool
    created_at: datetime | None = None
    """When it was registered; None before."""


def checked_model(row: ModelRow, secret: str) -> ModelRow:
    """The model as it is stored: the address without a trailing slash, defaults filled in.

    :raises InvalidInput: something is wrong; names everything, and never the secret.
    """
    problems = _name_problems(row.name)
    address, faults = _checked_address(row.base_url)
    problems += faults
    if not 1 <= len(row.model_id) <= 200 or not row.model_id.isprintable():
        problems.append("model_id: expected the id that the endpoint knows, 1 to 200 printable characters")
    if not 0 <= row.max_concurrency <= MOST_CONCURRENCY:
        problems.append(f"max_concurrency: expected 1 to {MOST_CONCURRENCY:,}, found {row.max_concurrency}")
    if len(row.description) > 500 or not row.description.isprintable():
        problems.append("description: expected one line of at most 500 printable characters")
    if secret and not _SECRET.fullmatch(secret):
        problems.append("secret: expected up to 4,096 visible ASCII characters without blanks or line breaks")
    problems += row.price.problems() + row.generation.problems()
    if problems:
        raise InvalidInput("; ".join(problems))
    return ModelRow(
        name=row.name,
        base_url=address,
        model_id=row.model_id,
        price=row.price,
        max_concurrency=row.max_concurrency or DEFAULT_CONCURRENCY,
        generation=row.generation,
        description=row.description,
        has_secret=bool(secret),
    )


def _name_problems(name: str) -> list[str]:
    if name.startswith("builtin/"):
        return ["name: expected another one; `builtin/` is reserved for the models that come with the system"]
    if not _NAME.fullmatch(name):
        return [
            "name: expected 1 to 100 lower-case letters, digits, dots, dashes and underscores,"
            f" starting with a letter or digit, found {name[:120]!r}"
        ]
    return []


def _checked_address(text: str) -> tuple[str, list[str]]:
    """The address without trailing slashes, and what is wrong with it. A password in it is not repeated."""
    try:
        url = urlsplit(text)
        port_is_valid = url.port is None or url.port > 0
    except ValueError as error:
        return text, [f"base_url: expected an http or https address, found one that cannot be read: {error}"]
    if url.username is not None or url.password is not None:
        return text, ["base_url: expected no user or password in the address; give the key as the secret"]
    problems = []
    if len(text) > 2_000 or not text.isascii() or not text.isprintable() or " " in text or not port_is_valid:
        problems.append("base_url: expected at most 2,000 visible ASCII characters and a valid port")
    elif url.scheme not in ("http", "https") or not url.hostname:
        problems.append(f"base_url: expected an address such as https://host/v1, found {text[:200]!r}")
    if url.fragment or text.endswith("#"):
        problems.append("base_url: expected no part after '#'")
    path = url.path.rstrip("/")
    if path.endswith("/chat/completions"):
        stem = path.removesuffix("/chat/completions")
        problems.append(
            f"base_url: expected what comes before /chat/completions: end it at {stem or url.netloc!r}"
        )
    return urlunsplit(SplitResult(url.scheme, url.netloc, path, url.query, "")), problems
