"""One child process: started so that it dies with us, known again by more than its pid, stopped in time."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from services.local.files import rotate

# psutil derives start times from the boot time, which the clock's corrections move a little.
_START_TOLERANCE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Command:
    """How a process is started and stopped.

    ``enter`` is put before the program (a namespace, for instance). ``grace_seconds`` is how long the process
    may take after ``stop_signal`` before it is killed. ``user`` is the number of a user to become.
    ``death_signal`` is what the kernel sends when we are killed, ``stop_signal`` where it is ``None``.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    enter: tuple[str, ...] = ()
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    user: int | None = None
    death_signal: signal.Signals | None = None


@dataclass(frozen=True, slots=True)
class ProcessRecord:
    """Enough to know a process again: a pid alone may belong to somebody else by now."""

    name: str
    pid: int
    started: float
    argv: tuple[str, ...] = field(default=())
    stop_signal: int = signal.SIGTERM

    def find(self) -> psutil.Process | None:
        """Return the live process that this record means, or ``None``."""
        try:
            process = psutil.Process(self.pid)
            same_start = abs(process.create_time() - self.started) < _START_TOLERANCE_SECONDS
            if not same_start or process.status() == psutil.STATUS_ZOMBIE:
                return None
            return process if tuple(process.cmdline()) == self.argv else None
        except psutil.Error:
            return None


def record_of(name: str, pid: int) -> ProcessRecord:
    """Describe a running process of ours, this one included."""
    process = psutil.Process(pid)
    return ProcessRecord(name, pid, process.create_time(), tuple(process.cmdline()))


def _dies_with_us(command: Command) -> tuple[str, ...]:
    """Return the prefix that makes the kernel send a signal when the thread that started the process ends.

    ``setpriv`` sets it after the fork and then becomes the program, which costs a millisecond. A function
    between fork and exec would run in a copy of a process with threads, where any lock may be held for ever.
    It stands after a namespace's prefix, because entering one clears the setting.
    """
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        return ()
    death_signal = command.death_signal or command.stop_signal
    return (setpriv, "--pdeathsig", death_signal.name.removeprefix("SIG"), "--")


class Child:
    """A process of a `Command`, its output in a log. Make it on the main thread only: see `_dies_with_us`."""

    def __init__(self, name: str, command: Command, log: Path) -> None:
        self.name = name
        self.command = command
        self.log = log
        rotate(log)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command.enter, *_dies_with_us(command), *command.argv],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=command.cwd,
                env=dict(command.env),
                # Its own session: Ctrl-C reaches the supervisor alone, which stops things in order.
                start_new_session=True,
                user=command.user,
                group=command.user,
                extra_groups=None if command.user is None else [],
            )
        self.started_at = time.time()
        self.started = time.monotonic()

    @property
    def pid(self) -> int:
        """The process id, the same before and after the prefixes have become the program."""
        return self._process.pid

    def record(self) -> ProcessRecord:
        """Return what `down` or the next `up` needs to know this process again."""
        started = self.started_at
        with contextlib.suppress(psutil.Error):
            started = psutil.Process(self.pid).create_time()
        return ProcessRecord(self.name, self.pid, started, self.command.argv, self.command.stop_signal)

    def exit_code(self) -> int | None:
        """Return the exit code, negative for a signal, or ``None`` while it runs."""
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Send the stop signal; nothing happens when it has ended."""
        if self.exit_code() is None:
            self._process.send_signal(self.command.stop_signal)

    def kill(self) -> None:
        """End the process and everything it started in its session."""
        if self.exit_code() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    def stop(self) -> int:
        """Stop within the grace, else kill; wait until it is gone and return the exit code."""
        self.ask_to_stop()
        try:
            return self._process.wait(self.command.grace_seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.wait()


def end_stale(records: list[ProcessRecord], grace_seconds: float) -> list[ProcessRecord]:
    """End processes that a killed supervisor left behind; return those that were still there.

    Most are on their way out already, because the kernel told them. A pid that means another process now is
    let be.
    """
    found = [(record, process) for record in records if (process := record.find())]
    for record, process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(record.stop_signal)
    _, alive = psutil.wait_procs([process for _, process in found], timeout=grace_seconds)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)
    return [record for record, _ in found]
