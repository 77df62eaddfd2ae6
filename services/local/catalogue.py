"""Publishes the environments that come with BenchGen into a new data directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

from benchgen.bundle import MANIFEST_FILE
from benchgen.client import Client
from benchgen.errors import BenchgenError
from services.local import report
from services.local.files import PROGRAM_ROOT, write_private

CATALOGUE = PROGRAM_ROOT / "environments"

#: How long a gateway that went away is waited for; a stack that is being stopped should not wait long for this.
_PATIENCE_SECONDS = 5.0


#: Rules of these types run programs to score the reference solutions, which takes seconds.
_SLOW_RULES = ("code_tests", "program")


def publish_ready_environments(
    grpc_address: str, api_key: str, marker: Path, stopping: Callable[[], bool], *, slow: bool
) -> None:
    """Publish what has not been published from here; reports a line for each.

    A folder that cannot be published is reported and tried again at the next start: the stack is of use without it.

    :param marker: remembers what was published, by the digest of its manifest.
    :param stopping: whether the stack is being stopped: the rest is published at the next start.
    :param slow: those whose reference solutions take time to score, or all others.
    """
    done = json.loads(marker.read_text()) if marker.exists() else {}
    waiting = [
        (folder, digest)
        for folder, digest in _folders()
        if done.get(folder.name) != digest and _is_slow(folder) is slow
    ]
    if not waiting:
        return
    with Client(grpc_address, api_key, patience=_PATIENCE_SECONDS) as client:
        for folder, digest in waiting:
            if stopping():
                return
            try:
                publication = client.push(folder)
            except BenchgenError as error:
                report.trouble(f"{folder.name} was not published: {error}")
                continue
            done[folder.name] = digest
            report.say(f"  published  {publication.environment_version} ({publication.cases} cases)")
            write_private(marker, json.dumps(done))


def _is_slow(folder: Path) -> bool:
    manifest = yaml.safe_load((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    return any(rule.get("type") in _SLOW_RULES for rule in manifest["scoring"])


def _folders() -> Iterator[tuple[Path, str]]:
    for manifest in sorted(CATALOGUE.glob(f"*/{MANIFEST_FILE}")):
        yield manifest.parent, hashlib.sha256(manifest.read_bytes()).hexdigest()
