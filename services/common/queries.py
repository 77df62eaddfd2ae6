"""Named SQL: each ``-- name: x`` in a ``.sql`` file starts the statement ``x``."""

from __future__ import annotations

import re
from pathlib import Path

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_queries(path: Path) -> dict[str, str]:
    """Read a file of named statements.

    :raises ValueError: a name is used twice.
    """
    parts = _NAME.split(path.read_text(encoding="utf-8"))
    queries: dict[str, str] = {}
    for name, body in zip(parts[1::2], parts[2::2], strict=True):
        if name in queries:
            raise ValueError(f"{path}: {name} is defined twice")
        queries[name] = body.strip().rstrip(";")
    return queries
