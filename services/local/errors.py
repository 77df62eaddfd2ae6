"""What can go wrong before or while the local stack runs."""

from __future__ import annotations

from benchgen.errors import BenchgenError


class LocalStackError(BenchgenError):
    """The local stack cannot run here."""

    reason = "LOCAL_STACK"


class MissingPackageError(LocalStackError):
    """A server's package is not installed."""

    reason = "MISSING_PACKAGE"
