"""The parent's side of the child process: starts it without secrets, watches its limits, ends all of it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from benchgen.bundle.problems import Problem
from services.hub.publishing.child import MIB
from services.hub.publishing.domain import Wanted
from services.hub.publishing.outcome import RESULT_FILE, Result, Stage, read_result, read_stage

log = structlog.get_logger()

_ROOT = Path(__file__).resolve().parents[3]
_LOG_FILE = "child.log"
_NOTHING_WANTED = Wanted("", "")


@dataclass(frozen=True, slots=True)
class Limits:
    """What processing one bundle may use."""

    seconds: float = 120.0
    """Time, by the clock and of the processor."""
    memory_bytes: int = 1 << 30
    """Address space."""
    output_bytes: int = 8 << 30
    """Everything that is written, together."""


class ChildDiedError(Exception):
    """The child ended without a result and without having reached a limit; the message says how."""


async def run_child(
    archive: Path,
    out: Path,
    limits: Limits,
    on_stage: Callable[[Stage], Awaitable[None]],
    wanted: Wanted = _NOTHING_WANTED,
) -> Result:
    """Process a bundle.

    :param wanted: how it is to be called if it does not say it itself.
    :param out: an empty folder, which holds the stores and the canonical bundle afterwards.
    :param on_stage: hears how far it is; what it raises ends the child.
    :raises ChildDiedError: it ended in a way that is not the bundle's fault as far as we can tell.
    """
    process = await _start(archive, out, limits, wanted)
    try:
        async with asyncio.timeout(limits.seconds) as bound:
            watch = asyncio.create_task(_watch_output(out, limits.output_bytes, process))
            try:
                await _follow(process, on_stage)
                code = await process.wait()
            finally:
                watch.cancel()
    except TimeoutError:
        if not bound.expired():
            raise
        return _refused(f"found that it needs more than {limits.seconds:g} s")
    finally:
        if process.returncode is None:
            # The whole session: whatever the child may have started ends with it.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if watch.done() and not watch.cancelled():
        watch.result()
        return _refused(f"found that it writes more than {limits.output_bytes // MIB:,} MiB")
    if code == -signal.SIGXCPU:
        return _refused(f"found that it needs more than {limits.seconds:g} s of processor time")
    if code != 0:
        raise ChildDiedError(_last_words(code, out))
    try:
        return read_result(await asyncio.to_thread((out / RESULT_FILE).read_bytes))
    except (OSError, ValueError) as error:
        raise ChildDiedError("it left no result") from error


async def _start(archive: Path, out: Path, limits: Limits, wanted: Wanted) -> asyncio.subprocess.Process:
    arguments = ["--memory", str(limits.memory_bytes), "--cpu", str(max(1, int(limits.seconds)))]
    arguments += [f"--name={wanted.name}", f"--version={wanted.version}"]
    with (out / _LOG_FILE).open("wb") as output:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "services.hub.publishing.child",
            str(archive),
            str(out),
            *arguments,
            cwd=_ROOT,
            env={"PATH": os.defpath, "LANG": "C.UTF-8"},
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=output,
            start_new_session=True,
        )


async def _follow(process: asyncio.subprocess.Process, on_stage: Callable[[Stage], Awaitable[None]]) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        await on_stage(read_stage(line))


async def _watch_output(out: Path, most: int, process: asyncio.subprocess.Process) -> None:
    """End the child when it has written too much; returns only then."""
    while True:
        if await asyncio.to_thread(_written, out) > most:
            break
        await asyncio.sleep(1.0)
    with suppress(ProcessLookupError):
        process.kill()


def _written(folder: Path) -> int:
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            # Files come and go while it works.
            with suppress(FileNotFoundError):
                total += os.stat(os.path.join(place, name)).st_size
    return total


def _refused(what: str) -> Result:
    return Result(None, (Problem("", f"expected a bundle that can be processed, {what}"),))


def _last_words(code: int, out: Path) -> str:
    """How the child ended. What it wrote about it is for our log: it may name places of this machine."""
    how = f"it was ended by {signal.Signals(-code).name}" if code < 0 else f"it ended with exit code {code}"
    log.error("publishing.child_died", how=how, output=(out / _LOG_FILE).read_text(errors="replace")[-4_000:])
    return how
