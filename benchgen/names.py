"""Names as people write them."""

from __future__ import annotations

from typing import NamedTuple

#: What stands for the newest run where a run is asked for.
LATEST = "latest"


class EnvironmentRef(NamedTuple):
    """An environment and, unless the latest is meant, one of its versions."""

    name: str
    version: str | None


def environment_ref(text: str) -> EnvironmentRef:
    """Split `name@version`; without a version the latest is meant."""
    name, _, version = text.partition("@")
    return EnvironmentRef(name, version or None)
