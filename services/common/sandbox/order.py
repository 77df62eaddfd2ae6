"""A job as the launcher of a box reads it: plain values, sent by ``marshal``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypedDict

from services.common.sandbox import seccomp
from services.common.sandbox.types import Job

#: What one box may leave behind for us: so many files.
MOST_FILES = 10_000
#: What one box may have: so many files and folders. Each takes about a kilobyte of the kernel's memory.
INODES = 32_768


class Order(TypedDict):
    """The job as it is sent."""

    argv: list[str]
    env: dict[str, str]
    cwd: str
    folders: list[str]
    covered: list[str]
    """Folders of the machine that are shown below a place that can be written, and are covered by it."""
    collect: list[str]
    stdin: bytes
    port: int
    uid: int
    own_users: bool
    """Whether the program gets a user namespace of its own rather than a user of its own."""
    contained: bool
    """Whether a container engine has made folders and mounts."""
    filter: bytes
    etc: dict[str, bytes]
    wall: float
    cpu: float
    memory: int
    processes: int
    file: int
    disk: int
    inodes: int
    output: int
    entries: int


def order_for(
    job: Job,
    *,
    uid: int,
    env: Mapping[str, str],
    etc: Mapping[str, bytes],
    own_users: bool,
    contained: bool,
    covered: Sequence[str] = (),
) -> Order:
    """A job as the launcher needs it.

    :param uid: the program's user.
    :param env: what the program has besides what its job says.
    :param etc: files of ``/etc``.
    """
    limits = job.limits
    return {
        "argv": list(job.command), "env": {**env, "HOME": "/tmp/home", "LANG": "C.UTF-8", **job.env},  # noqa: S108
        "cwd": job.cwd, "folders": list(job.folders), "covered": list(covered), "collect": list(job.collect),
        "stdin": bytes(job.stdin),
        "port": job.port or 0, "uid": uid, "own_users": own_users, "contained": contained,
        "filter": seccomp.program(), "etc": dict(etc), "wall": limits.wall_seconds, "cpu": limits.cpu_seconds,
        "memory": limits.memory_bytes, "processes": limits.processes, "file": limits.file_bytes,
        "disk": limits.disk_bytes, "inodes": INODES, "output": limits.output_bytes, "entries": MOST_FILES,
    }  # fmt: skip
