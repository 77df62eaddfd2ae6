"""A folder for unfinished files, which nobody has to clean up by hand after a crash."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "hub-"
_LOCK_FILE = ".lock"


@contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A folder of this process's own below ``parent``; removes those whose process is gone first.

    A process holds a lock on a file in its folder, which the kernel lets go whatever ends the process.
    """
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    for folder in parent.glob(f"{_PREFIX}*"):
        _remove_if_left(folder)
    mine = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    descriptor = os.open(mine / _LOCK_FILE, os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield mine
    finally:
        shutil.rmtree(mine, ignore_errors=True)
        os.close(descriptor)


def _remove_if_left(folder: Path) -> None:
    try:
        descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR)
    except FileNotFoundError:
        # Made this very moment by another process, or removed.
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)
