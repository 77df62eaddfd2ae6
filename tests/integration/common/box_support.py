"""What the tests of boxes share."""

from __future__ import annotations

from pathlib import Path


def machine_runs(word: str) -> list[str]:
    """The processes of this machine whose command line has the word."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if word.encode() in (folder / "cmdline").read_bytes():
                found.append(folder.name)
        except OSError:
            continue
    return found
