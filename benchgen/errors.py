"""Every error that BenchGen raises on purpose.

::

    BenchgenError
    ├── InvalidInput            what the caller sent cannot be used
    │   └── BundleInvalid       an environment has problems (benchgen.bundle.problems)
    ├── NotFound                no such environment, model, run, ...
    ├── AlreadyExists           the name is taken by something else
    ├── FailedPrecondition      not now: the state of the thing forbids it
    │   └── LeaseLost           somebody else holds the shard, or the run was cancelled
    ├── PermissionDenied        the caller may not do this
    ├── Unauthenticated         the caller did not say who it is, or could not prove it
    ├── Exhausted               a limit was reached
    └── Unavailable             a server cannot be reached; trying again may help

The docstring of a class is its default message. ``services.common.rpc`` maps each class to one gRPC code, and
``reason`` travels as the reason of the ``google.rpc.ErrorInfo``.
"""

from __future__ import annotations

import inspect


class BenchgenError(Exception):
    """Something went wrong."""

    reason = "INTERNAL"

    def __init__(self, message: str | None = None, **metadata: str) -> None:
        self.message = message or inspect.cleandoc(type(self).__doc__ or "").splitlines()[0]
        self.metadata = metadata
        super().__init__(self.message)


class InvalidInput(BenchgenError):
    """The input cannot be used."""

    reason = "INVALID_INPUT"


class NotFound(BenchgenError):
    """There is no such thing."""

    reason = "NOT_FOUND"


class AlreadyExists(BenchgenError):
    """The name is taken."""

    reason = "ALREADY_EXISTS"


class FailedPrecondition(BenchgenError):
    """The state of the thing forbids this."""

    reason = "FAILED_PRECONDITION"


class LeaseLost(FailedPrecondition):
    """The shard is held by somebody else, or its run was cancelled."""

    reason = "LEASE_LOST"


class PermissionDenied(BenchgenError):
    """The caller may not do this."""

    reason = "PERMISSION_DENIED"


class Unauthenticated(BenchgenError):
    """No valid credential was presented."""

    reason = "UNAUTHENTICATED"


class Exhausted(BenchgenError):
    """A limit was reached."""

    reason = "EXHAUSTED"


class Unavailable(BenchgenError):
    """A server cannot be reached."""

    reason = "UNAVAILABLE"
