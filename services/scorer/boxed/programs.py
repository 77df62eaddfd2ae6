"""Runs code as a program, once for each standard input, in a box, and says what it printed.

Nothing here knows what should have been printed: that is compared outside of the box.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Any

_FILE = "/app/output/solution.py"
_MOST = 1 << 20
_MOST_WORDS = 300


def main() -> None:
    """Do it, up to the first one that does not end as it should."""
    with open(0, "rb") as stream:
        job = json.loads(stream.read())
    with open(_FILE, "w", encoding="utf-8") as file:
        file.write(job["code"])
    found = []
    for text in job["stdins"]:
        found.append(_printed(text, job["cpu_seconds"], job["wall_seconds"]))
        if found[-1]["why"]:
            break
    os.write(1, json.dumps(found).encode())


def _printed(text: str, cpu_seconds: float, wall_seconds: float) -> dict[str, Any]:
    def limit() -> None:
        seconds = int(cpu_seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))

    with open("/tmp/stdout", "w+b") as out, open("/tmp/stderr", "w+b") as errors:  # noqa: S108
        process = subprocess.Popen(
            [sys.executable, _FILE], stdin=subprocess.PIPE, stdout=out, stderr=errors, start_new_session=True,
            cwd="/app/output", preexec_fn=limit,  # noqa: PLW1509 - there are no threads here
        )  # fmt: skip
        why = ""
        try:
            process.communicate(text.encode(), timeout=wall_seconds)
        except subprocess.TimeoutExpired:
            why = f"no end after {wall_seconds:g} s on the clock"
        except BrokenPipeError:
            process.wait(timeout=wall_seconds)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        out.seek(0)
        errors.seek(0)
        printed = out.read(_MOST + 1)
        words = errors.read(_MOST).decode(errors="replace").strip().splitlines()
        if not why and process.returncode == -signal.SIGKILL:
            why = f"no end after {cpu_seconds:g} s of computing"
        elif not why and process.returncode:
            why = f"ended with code {process.returncode}: {words[-1] if words else ''}".rstrip(": ")
        elif len(printed) > _MOST:
            why = f"printed more than {_MOST:,} bytes"
        return {"stdout": printed[:_MOST].decode(errors="replace"), "why": why[:_MOST_WORDS]}
