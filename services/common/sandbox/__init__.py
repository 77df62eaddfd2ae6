"""Boxes for code that nobody trusts: what bundles bring, and what models write.

A box has no network but its own loopback, sees nothing of this machine but what its job names, has its own user
without rights, and limits on everything. What it writes lies in its memory and goes with it. ``docs/sandbox.md`` says
what it guarantees and what not.
"""

from services.common.sandbox.health import watch
from services.common.sandbox.select import SandboxSettings, provider_of
from services.common.sandbox.types import (
    Archive,
    Ended,
    Finished,
    Job,
    Limits,
    Mount,
    Provider,
    Running,
    SandboxFailed,
    run,
)

__all__ = [
    "Archive",
    "Ended",
    "Finished",
    "Job",
    "Limits",
    "Mount",
    "Provider",
    "Running",
    "SandboxFailed",
    "SandboxSettings",
    "provider_of",
    "run",
    "watch",
]
