"""Files and folders that only their owner may read."""

from __future__ import annotations

import os
from pathlib import Path

ROTATE_BYTES = 8 * 1024 * 1024
PROGRAM_ROOT = Path(__file__).resolve().parents[2]


def private_folder(path: Path) -> Path:
    """Make a folder with mode 0700, parents included, and return it."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    path.chmod(0o700)
    return path


def write_private(path: Path, content: str | bytes) -> None:
    """Replace a file atomically with one of mode 0600."""
    data = content.encode() if isinstance(content, str) else content
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    # O_EXCL keeps a left-over of a killed process with a reused pid from lending us its mode.
    fresh.unlink(missing_ok=True)
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)


def rotate(log: Path) -> None:
    """Keep one older log: a log over 8 MiB becomes ``<name>.1`` before its process starts again."""
    if log.exists() and log.stat().st_size > ROTATE_BYTES:
        log.replace(log.with_name(f"{log.name}.1"))


def tail(log: Path, lines: int = 12) -> str:
    """Return the last lines of a log, or an empty string when there is none."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 16_384))
        text = file.read().decode(errors="replace")
    return "\n".join(text.splitlines()[-lines:])
