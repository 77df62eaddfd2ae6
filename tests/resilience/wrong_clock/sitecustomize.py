"""A process whose machine's clock is wrong by ``WRONG_CLOCK_SECONDS``: Python imports this before anything else.

Monotonic time runs on, as it does on such a machine. Only Python's own clock can be shifted from here; gRPC counts
deadlines from the wall clock, in Python and in C, so all of it keeps the true one.
"""

import datetime
import os
import sys
import time
import types

_AHEAD = float(os.environ["WRONG_CLOCK_SECONDS"])
_time, _time_ns = time.time, time.time_ns
_DateTime = datetime.datetime

import grpc.aio  # noqa: E402, F401 - what it imports now, it must have from the true clock

_true = types.ModuleType("time")
_true.__dict__.update(time.__dict__)
for _name, _module in list(sys.modules.items()):
    if _name.partition(".")[0] == "grpc" and getattr(_module, "time", None) is time:
        _module.time = _true  # type: ignore[attr-defined]


class _Kind(type(_DateTime)):  # type: ignore[misc]
    """What the true class made is an instance of the shifted one as well."""

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, _DateTime)


class _Shifted(_DateTime, metaclass=_Kind):
    """Tells the wrong time."""

    __slots__ = ()

    @classmethod
    def now(cls, tz: datetime.tzinfo | None = None) -> _DateTime:  # type: ignore[override]
        return _DateTime.fromtimestamp(_time() + _AHEAD, tz)

    @classmethod
    def utcnow(cls) -> _DateTime:  # type: ignore[override]
        return _DateTime.fromtimestamp(_time() + _AHEAD, datetime.UTC).replace(tzinfo=None)


time.time = lambda: _time() + _AHEAD
time.time_ns = lambda: _time_ns() + int(_AHEAD * 1e9)
datetime.datetime = _Shifted  # type: ignore[misc]
