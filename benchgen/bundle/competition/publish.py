"""Turns a competition into data: one case for each task of each phase, and its programs and files as packed zips.

As in every environment inputs, targets and solutions are apart. What the prediction may see is with the inputs; the
scoring program and the reference data are with the targets.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchgen.bundle.competition.model import Competition, Page, Phase, Reference, Solution, Task
from benchgen.bundle.competition.nested import Nested
from benchgen.bundle.competition.parse import ReadCompetition
from benchgen.bundle.competition.programs import read_metadata
from benchgen.bundle.competition.ranking import order_of
from benchgen.bundle.digest import canonical_json, json_digest, sha256_hex
from benchgen.bundle.problems import ProblemLog
from benchgen.bundle.tree import CHUNK_BYTES, BundleTree

# Changes whenever the same bundle would give other bytes: runs are comparable within one version only.
COMPETITION_MATERIALISER = "competition-1"
FOLDER = "programs"
ASSETS = "assets"

_EPOCH = (1980, 1, 1, 0, 0, 0)
_MODE = 0o100755 << 16


class Pack(NamedTuple):
    """A packed folder: the sha256 of its zip, and how many bytes its files have."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class PublishedCompetition:
    """What publishing wrote, as ``Materialised`` says it of other environments, and what the competition is.

    ``run_json`` is what a run needs of it, ``about_json`` what people read; both are canonical JSON.
    """

    cases: int
    inputs_digest: str
    targets_digest: str
    solutions_digest: str
    scoring_json: str
    scoring_digest: str
    run_json: str
    about_json: str


def publish_competition(tree: BundleTree, read: ReadCompetition, out: Path) -> PublishedCompetition:
    """Write the stores of a competition below ``out``. The same tree gives the same bytes.

    Raises ``BundleInvalid`` where an archive cannot be read, which ``read_competition`` would have told.
    """
    competition = read.competition
    log = ProblemLog()
    with Nested(tree, log) as nested:
        writer = _Writer(tree, nested, out)
        cases = list(_cases(competition))
        rows = [writer.rows(competition, position, case) for position, case in enumerate(cases)]
        log.raise_if_any()
        solutions = [row.solution for row in rows if row.solution is not None]
        digests = {
            "inputs": _write_store(out / "inputs", "inputs", [row.input for row in rows]),
            "targets": _write_store(out / "targets", "targets", [row.target for row in rows]),
            "solutions": _write_store(out / "solutions", "solutions", solutions) if solutions else "",
        }
        about = _about(competition, writer, [str(warning) for warning in read.warnings])
    scoring = canonical_json(scoring_rules(competition))
    return PublishedCompetition(
        cases=len(cases),
        inputs_digest=digests["inputs"],
        targets_digest=digests["targets"],
        solutions_digest=digests["solutions"],
        scoring_json=scoring.decode(),
        scoring_digest=sha256_hex(scoring),
        run_json=canonical_json(_run(competition, cases)).decode(),
        about_json=canonical_json(about).decode(),
    )


class _Case(NamedTuple):
    id: str
    phase: Phase
    task: Task


def _cases(competition: Competition) -> Iterator[_Case]:
    """Each task of each phase, in order. A case is called as they are: ``Development/Letters``."""
    seen: dict[str, int] = {}
    for phase in competition.phases:
        for index in phase.tasks:
            task = competition.task(index)
            name = f"{phase.name}/{task.name}"
            seen[name] = count = seen.get(name, 0) + 1
            yield _Case(name if count == 1 else f"{name} ({count})", phase, task)


def scoring_rules(competition: Competition) -> list[dict[str, Any]]:
    """The columns as scoring rules, in the order in which scores number them."""
    primary = competition.board.primary.key
    return [
        {"name": column.key, "primary": column.key == primary, "type": "column"}
        for column in competition.columns
    ]


class _Rows(NamedTuple):
    input: dict[str, Any]
    target: dict[str, Any]
    solution: dict[str, Any] | None


class _Writer:
    """Packs what tasks name, each thing once for each store that needs it."""

    def __init__(self, tree: BundleTree, nested: Nested, out: Path) -> None:
        self._tree = tree
        self._nested = nested
        self._out = out
        self._packed: dict[tuple[str, Reference, bool], dict[str, Any] | None] = {}

    def rows(self, competition: Competition, position: int, case: _Case) -> _Rows:
        """A case as the three stores hold it."""
        task, phase = case.task, case.phase
        common = {"seconds": phase.seconds, "ingestion_during_scoring": task.ingestion_only_during_scoring}
        asked = {
            **common,
            "ingestion_program": self._pack("inputs", task.ingestion_program, program=True),
            "input_data": self._pack("inputs", task.input_data),
        }
        judged = {
            **common,
            "scoring_program": self._pack("targets", task.scoring_program, program=True),
            "reference_data": self._pack("targets", task.reference_data),
        }
        if task.ingestion_only_during_scoring:
            judged["ingestion_program"] = self._pack("targets", task.ingestion_program, program=True)
            judged["input_data"] = self._pack("targets", task.input_data)
        head = {"position": position, "id": case.id}
        input_digest = json_digest(asked)
        slices = {"phase": phase.name, "task": task.name}
        target = {**head, "target": None, "rules": {}, "cluster": None, "slices": slices, "task": judged}
        solutions = [self._solution(one) for one in competition.solutions if task.index in one.tasks]
        return _Rows(
            {**head, "messages": [], "digest": input_digest, "task": asked},
            {**target, "digest": json_digest([case.id, input_digest, judged])},
            {**head, "solution": "", "solutions": solutions} if competition.solutions else None,
        )

    def _solution(self, solution: Solution) -> dict[str, Any]:
        return {"name": solution.name, "files": self._pack("solutions", solution.path)}

    def _pack(
        self, store: str, reference: Reference | None, *, program: bool = False
    ) -> dict[str, Any] | None:
        """A packed program or data, as rows name it; None where there is none."""
        if reference is None:
            return None
        key = (store, reference, program)
        if key not in self._packed:
            tree = self._nested.program(reference) if program else self._nested.data(reference)
            self._packed[key] = None
            if tree is not None:
                pack: dict[str, Any] = write_pack(tree, self._out / store / FOLDER)._asdict()
                if program:
                    pack["commands"] = list(read_metadata(tree).commands)
                self._packed[key] = pack
        return self._packed[key]

    def asset(self, path: str) -> dict[str, Any]:
        """A file that people may read, stored by digest."""
        with self._tree.open(path) as stream:
            data = stream.read()
        sha256 = sha256_hex(data)
        folder = self._out / ASSETS
        folder.mkdir(parents=True, exist_ok=True)
        (folder / sha256).write_bytes(data)
        return {"sha256": sha256, "bytes": len(data)}


def write_pack(tree: BundleTree, folder: Path) -> Pack:
    """Write the files of a tree as a zip that is named by its sha256.

    Nothing is compressed: no version of any library has a say in the bytes.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unfinished = folder / ".unfinished"
    with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive:
        for file in tree.files:
            info = zipfile.ZipInfo(file.path, _EPOCH)
            info.external_attr = _MODE
            info.create_system = 3
            info.file_size = file.size
            with tree.open(file.path) as source, archive.open(info, "w") as target:
                while chunk := source.read(CHUNK_BYTES):
                    target.write(chunk)
    sha256 = _sha256_of(unfinished)
    unfinished.replace(folder / f"{sha256}.zip")
    return Pack(sha256, sum(file.size for file in tree.files))


def _sha256_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _write_store(folder: Path, kind: str, rows: list[dict[str, Any]]) -> str:
    """One part and its index: competitions have few cases."""
    data = b"".join(canonical_json(row) + b"\n" for row in rows)
    part = {"bytes": len(data), "count": len(rows), "first": 0, "sha256": sha256_hex(data)}
    index = canonical_json({"cases": len(rows), "kind": kind, "parts": [part], "schema": 1})
    for name, suffix, content in (("parts", "jsonl", data), ("index", "json", index)):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{sha256_hex(content)}.{suffix}").write_bytes(content)
    return sha256_hex(index)


def _run(competition: Competition, cases: list[_Case]) -> dict[str, Any]:
    """What runs and scorers need: how scores are read, what ranks, and which cases are of which phase."""
    return {
        "schema": 1,
        "dialect": competition.dialect.value,
        "image": competition.docker_image,
        "columns": [asdict(column) for column in competition.columns],
        "order": [column.key for column in order_of(competition.board)],
        "phases": [phase.name for phase in competition.phases],
        "cases": [
            {
                "phase": case.phase.index,
                "task": case.task.name,
                "seconds": case.phase.seconds,
                "ingestion": case.task.ingestion_program is not None,
            }
            for case in cases
        ],
    }


def _about(competition: Competition, writer: _Writer, warnings: list[str]) -> dict[str, Any]:
    """What people read of a competition."""
    board = competition.board

    def page(shown: Page) -> dict[str, Any]:
        return {"title": shown.title, "format": shown.format, **writer.asset(shown.file)}

    return {
        "version": competition.dialect.value,
        "title": competition.title,
        "description": competition.description,
        "image": writer.asset(competition.image) if competition.image else None,
        "terms": page(competition.terms) if competition.terms else None,
        "pages": [page(one) for one in competition.pages],
        "phases": [_phase(competition, phase) for phase in competition.phases],
        "solutions": [{"name": one.name, "description": one.description} for one in competition.solutions],
        "leaderboard": {
            "title": board.title,
            "key": board.key,
            "hidden": board.hidden,
            "submission_rule": board.submission_rule,
            "primary": board.primary.key,
            "columns": [asdict(column) for column in competition.columns],
        },
        "fact_sheet": [asdict(question) for question in competition.fact_sheet],
        "docker_image": competition.docker_image,
        "contact_email": competition.contact_email,
        "reward": competition.reward,
        "competition_type": competition.kind,
        "enable_detailed_results": competition.detailed_results,
        "warnings": warnings,
    }


def _phase(competition: Competition, phase: Phase) -> dict[str, Any]:
    tasks = [competition.task(index) for index in phase.tasks]
    return {
        "index": phase.index,
        "name": phase.name,
        "description": phase.description,
        "start": phase.start and phase.start.isoformat(),
        "end": phase.end and phase.end.isoformat(),
        "execution_time_limit": phase.seconds,
        "max_submissions_per_day": phase.max_submissions_per_day,
        "max_submissions": phase.max_submissions,
        "auto_migrate_to_this_phase": phase.auto_migrate,
        "hide_output": phase.hide_output,
        "hide_prediction_output": phase.hide_prediction_output,
        "hide_score_output": phase.hide_score_output,
        "tasks": [
            {
                "name": task.name,
                "description": task.description,
                "ingestion": task.ingestion_program is not None,
                "ingestion_only_during_scoring": task.ingestion_only_during_scoring,
            }
            for task in tasks
        ],
    }
