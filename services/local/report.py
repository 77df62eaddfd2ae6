"""What `up`, `status` and `down` tell a person: one line a fact, colours on a terminal only."""

from __future__ import annotations

import os
import sys
import time

from services.local.ports import LOOPBACK
from services.local.state import ServiceState, StackState

_GREEN, _YELLOW, _DIM, _BOLD = "32", "33", "2", "1"


def _paint(text: str, code: str) -> str:
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{code}m{text}\x1b[0m"


def say(text: str) -> None:
    """Print a line at once, also into a file or pipe."""
    print(text, flush=True)


def started(name: str, port: int, pid: int, seconds: float) -> None:
    """Tell that a process does its work."""
    line = f"  {name:<10} {LOOPBACK}:{port:<6} pid {pid:<8}"
    say(f"{line}{_paint(f'{seconds:4.1f} s', _DIM)}")


def trouble(text: str) -> None:
    """Tell what went wrong and is being dealt with."""
    say(_paint(f"  {text}", _YELLOW))


def ready(state: StackState, seconds: float) -> None:
    """Tell that everything runs and how to use it."""
    say(_paint(f"ready in {seconds:.1f} s", f"{_BOLD};{_GREEN}"))
    where(state)


def where(state: StackState) -> None:
    """Tell where the stack is reached."""
    if state.api:
        say(f"  API        {state.api}")
        say(f"  gRPC       {state.grpc}")
    say(f"  API key    {state.api_key_file}")
    say(f"  data       {state.data_dir}")


def duration(seconds: float) -> str:
    """Write a duration the short way: ``42 s``, ``3 min``, ``5 h 2 min``, ``2 d 3 h``."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 24:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


def status_line(service: ServiceState, health: str) -> None:
    """Tell how one process is."""
    age = duration(time.time() - service.started_at)
    again = f", restarted {service.restarts}x" if service.restarts else ""
    mark = _paint(f"{health:<10}", _GREEN if health == "ready" else _YELLOW)
    say(f"  {service.name:<10} {mark} {LOOPBACK}:{service.port:<6} pid {service.pid:<8} up {age}{again}")
