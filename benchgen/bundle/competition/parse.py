"""Reads a ``competition.yaml`` bundle of any dialect, or says everything that is wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from benchgen.bundle.competition.common import MAX_IMAGE_BYTES
from benchgen.bundle.competition.fields import Fields, Source
from benchgen.bundle.competition.first import read_first
from benchgen.bundle.competition.model import COMPETITION_FILE, Competition, Reference, Task
from benchgen.bundle.competition.nested import Nested
from benchgen.bundle.competition.programs import check_program
from benchgen.bundle.competition.second import read_second
from benchgen.bundle.problems import Problem, ProblemLog, found
from benchgen.bundle.tree import MANIFEST_FILE, BundleTree
from benchgen.bundle.yamldoc import MAX_YAML_BYTES, YamlDocument, read_yaml


@dataclass(frozen=True, slots=True)
class ReadCompetition:
    """A competition that can be used, and what in it was probably not meant."""

    competition: Competition
    warnings: tuple[Problem, ...]


def is_competition(tree: BundleTree) -> bool:
    """Whether a bundle is described by ``competition.yaml``; ``environment.yaml`` goes before it."""
    return COMPETITION_FILE in tree and MANIFEST_FILE not in tree


def read_competition(tree: BundleTree) -> ReadCompetition:
    """The competition, checked as far as that is possible without running anything.

    Raises ``BundleInvalid`` with all problems: of the YAML, of files that it names, of archives in the bundle,
    of programs without a command.
    """
    log, notes = ProblemLog(), ProblemLog()
    competition = _parse(tree, log, notes)
    if competition is not None:
        with Nested(tree, log) as nested:
            _check_files(competition, nested, log, notes)
    log.raise_if_any()
    assert competition is not None
    return ReadCompetition(competition, tuple(notes.problems))


def _parse(tree: BundleTree, log: ProblemLog, notes: ProblemLog) -> Competition | None:
    if COMPETITION_FILE not in tree:
        log.add(COMPETITION_FILE, "expected this file at the top of the bundle, found none")
        return None
    size = tree.size(COMPETITION_FILE)
    if size > MAX_YAML_BYTES:
        log.add(COMPETITION_FILE, f"expected at most {MAX_YAML_BYTES:,} bytes, found {size:,}")
        return None
    document = read_yaml(tree.read(COMPETITION_FILE, MAX_YAML_BYTES), COMPETITION_FILE, log, lenient=True)
    if document is None:
        return None
    if not isinstance(document.data, dict):
        log.add(COMPETITION_FILE, f"expected a mapping, found {found(document.data)}", line=document.line(()))
        return None
    top = Fields(Source(tree, document, log, notes), document.data, ())
    competition = read_second(top) if _is_second(document) else read_first(top)
    if competition is not None and competition.image:
        size = tree.size(competition.image)
        if size > MAX_IMAGE_BYTES:
            top.problem(f"expected an image of at most {MAX_IMAGE_BYTES:,} bytes, found {size:,}", "image")
    return competition


def _is_second(document: YamlDocument) -> bool:
    """Whether the file is of version 2: by what is in it, and only without a sign by the version it names."""
    data = document.data
    if data.get("tasks") is not None:
        return True
    if data.get("html") is not None or isinstance(data.get("phases"), dict):
        return False
    boards = data.get("leaderboard")
    return not (isinstance(boards, dict) and "leaderboards" in boards)


def _check_files(competition: Competition, nested: Nested, log: ProblemLog, notes: ProblemLog) -> None:
    """Opens everything that tasks and solutions name, each file once."""
    checked: set[tuple[Reference, str]] = set()
    for task in competition.tasks:
        for reference, what in _programs(task):
            if (reference, what) not in checked:
                checked.add((reference, what))
                tree = nested.program(reference)
                if tree is not None:
                    check_program(tree, reference.path, what, log)
        for data, what in ((task.reference_data, "reference data"), (task.input_data, "input data")):
            if data is not None and (data, what) not in checked:
                checked.add((data, what))
                files = nested.data(data)
                if files is not None and not files.files:
                    notes.add(data.path, f"expected files as {what}, found none")
    for solution in competition.solutions:
        nested.data(solution.path)


def _programs(task: Task) -> Iterator[tuple[Reference, str]]:
    yield task.scoring_program, "scoring program"
    if task.ingestion_program is not None:
        yield task.ingestion_program, "ingestion program"
