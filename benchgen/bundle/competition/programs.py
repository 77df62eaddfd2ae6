"""What a program of a bundle says about itself: its metadata, and the command in it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from benchgen.bundle.competition.nested import metadata_file
from benchgen.bundle.problems import ProblemLog, found
from benchgen.bundle.tree import BundleTree
from benchgen.bundle.yamldoc import read_yaml

_MOST_METADATA_BYTES = 1 << 16
_COMMAND_LINE = re.compile(r"^\s*command\s*:\s*(\S.*?)\s*$", re.MULTILINE)
# Old programs were written for Windows: `$program\evaluate.py`.
_WINDOWS_PATH = re.compile(r"(\$[a-z_]+)\\")


class Role(StrEnum):
    """What a program is run as; placeholders in its command depend on it."""

    INGESTION = "ingestion"
    SUBMISSION = "submission"
    SCORING = "scoring"
    INGESTION_DURING_SCORING = "ingestion-during-scoring"


@dataclass(frozen=True, slots=True)
class Metadata:
    """What a program's metadata says: the commands to run, one after the other, placeholders and all.

    A program without ``file`` has no metadata; one with it and without ``commands`` is not run.
    """

    file: str | None
    commands: tuple[str, ...]


def read_metadata(tree: BundleTree) -> Metadata:
    """The metadata of a program; what cannot be read as YAML is searched for a line with the command."""
    file = metadata_file(tree)
    if file is None or tree.size(file) > _MOST_METADATA_BYTES:
        return Metadata(file, ())
    content = tree.read(file, _MOST_METADATA_BYTES)
    document = read_yaml(content, file, ProblemLog(), lenient=True)
    data = document.data if document is not None else None
    if isinstance(data, dict):
        command = data.get("command")
        if isinstance(command, list) and all(isinstance(part, str | int | float) for part in command):
            return Metadata(file, _listed(command))
        if command is not None and not isinstance(command, dict | list):
            return Metadata(file, _command(str(command)))
        return Metadata(file, ())
    match = _COMMAND_LINE.search(content.decode("utf-8", "replace"))
    return Metadata(file, _command(match[1]) if match else ())


def _command(text: str) -> tuple[str, ...]:
    command = " ".join(text.split())
    return (command,) if command else ()


def _listed(parts: Sequence[object]) -> tuple[str, ...]:
    """A list is several commands where its entries have blanks in them, else one command in pieces."""
    texts = [str(part) for part in parts if str(part).strip()]
    if any(" " in text.strip() for text in texts):
        return tuple(" ".join(text.split()) for text in texts)
    return (" ".join(texts),) if texts else ()


def argv(command: str, role: Role) -> list[str]:
    """The command with its placeholders replaced, in pieces. There is no shell."""
    text = _WINDOWS_PATH.sub(r"\1/", command)
    for name, path in placeholders(role):
        text = text.replace(name, path)
    try:
        return shlex.split(text)
    except ValueError:
        return text.split()


def placeholders(role: Role) -> list[tuple[str, str]]:
    """Placeholders and what stands for them, in the order in which they are replaced.

    They are replaced as plain text, so ``$input_data`` is ``$input`` with ``_data`` behind it. That is how bundles
    came to rely on it.
    """
    scoring = role in (Role.SCORING, Role.INGESTION_DURING_SCORING)
    ingestion = role in (Role.INGESTION, Role.INGESTION_DURING_SCORING)
    return [
        ("$input", "/app/input_data" if ingestion else "/app/input"),
        ("$output", "/app/output"),
        ("$program", "/app/program"),
        ("$ingestion_program", "/app/program"),
        ("$hidden", "/app/input/ref"),
        ("$shared", "/app/shared"),
        ("$submission_program", "/app/ingested_program"),
        ("$tmp", "/app/output"),
        ("$predictions", "/app/input/res" if scoring else "/app/output"),
    ]


def check_program(tree: BundleTree, shown: str, what: str, log: ProblemLog) -> Metadata:
    """The metadata of a program that must have a command; a problem where it has none."""
    metadata = read_metadata(tree)
    if metadata.file is None:
        has = ", ".join(tree.paths[:8]) or "nothing at all"
        log.add(shown, f"expected metadata.yaml with the command of the {what}, found {has}")
    elif not metadata.commands:
        message = f"expected a `command` that runs the {what}, found none"
        log.add(f"{shown}/{metadata.file}", message, field="command")
    else:
        for command in metadata.commands:
            if not argv(command, Role.SCORING):
                log.add(
                    f"{shown}/{metadata.file}", f"expected a command, found {found(command)}", field="command"
                )
    return metadata
