"""Competition bundles of every dialect, written for these tests."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from benchgen.bundle import BundleInvalid, BundleTree, load_folder, open_zip
from benchgen.bundle.competition import Competition, ReadCompetition, read_competition

Files = dict[str, bytes | str]

SCORE = """
import json, sys
truth = open("/app/input/ref/truth.txt").read().split()
given = open("/app/input/res/answers.txt").read().split()
right = sum(a == b for a, b in zip(truth, given))
json.dump({"accuracy": right / len(truth), "count": right}, open("/app/output/scores.json", "w"))
"""
METADATA = "command: python3 score.py $input $output\n"
PROGRAM: Files = {"metadata.yaml": METADATA, "score.py": SCORE}
REFERENCE: Files = {"truth.txt": "a b c d\n"}

# As the documentation of BenchGen shows it: no version, `leaderboard` a list, dates without times.
DOCUMENTED = """
title: Letters
description: Name the letters.
image: logo.png
terms: pages/terms.md
pages:
  - {title: Overview, file: pages/overview.md}
phases:
  - index: 0
    name: Development
    start: 2026-01-01
    end: 2026-02-01
    tasks: [0]
tasks:
  - index: 0
    name: Letters
    scoring_program: scoring.zip
    reference_data: reference.zip
solutions:
  - {index: 0, path: solution.zip, tasks: [0]}
leaderboard:
  - title: Results
    key: main
    columns:
      - {title: Accuracy, key: accuracy, index: 0, sorting: desc}
      - {title: Count, key: count, index: 1}
"""

# With the plural, a version, folders, several tasks, computed columns, and keys that nobody reads.
CODABENCH = """
version: 2
title: "Çhars & Words!"
image: logo.png
terms: pages/terms.md
docker_image: codalab/codalab-legacy:py37
registration_auto_approve: True
is_public: yes
pages:
  - {title: Overview, file: pages/overview.md}
tasks:
  - index: 1
    name: Words
    description: null
    is_public: true
    input_data: words/input/
    reference_data: ./words/reference
    ingestion_program: ingestion
    scoring_program: scoring
    ingestion_only_during_scoring: true
  - index: "0"
    name: Chars
    scoring_program: scoring/
    reference_data: words/reference/
solutions: []
fact_sheet:
  method: {key: method, type: select, title: Method, selection: [tree, net], is_required: "false",
           is_on_leaderboard: "true"}
phases:
  - index: 4
    name: Final
    start: "10-07-2025"
    max_submissions_per_day: 0
    max_submissions: ""
    execution_time_limit: 30
    tasks: [0, 1]
    auto_migrate_to_this_phase: true
  - index: 2
    name: Development
    start: 2019-12-12 13:30:00
    end: "2020-03-01T08:15:00+02:00"
    tasks: [1]
leaderboards:
  - index: 0
    title: Results
    key: main
    submission_rule: Force_Best
    columns:
      - {title: Mean, key: mean, index: 0, computation: avg, computation_indexes: [1, 2], precision: 4}
      - {title: A, key: a, index: 1, computation: null}
      - {title: B, key: b, index: 2, sorting: asc, hidden: false}
"""

OLD = """
title: Old letters
description: From another age.
image: logo.png
has_registration: True
competition_docker_image: ""
end_date: null
admin_names: someone
html:
  overview: overview.html
  terms: terms.html
  data: data.html
phases:
  2:
    phasenumber: 2
    label: "Test"
    start_date: 2018-03-01
    scoring_program: score.zip
    reference_data: reference.zip
    max_submissions: 3
    auto_migration: True
  1:
    phasenumber: 1
    label: "Trial"
    start_date: 2018-02-10
    scoring_program: score.zip
    reference_data: !!python/unicode 'reference.zip'
    color: orange
leaderboard:
  leaderboards:
    RESULTS: &RESULTS
      label: Results
      rank: 1
    EXTRA: &EXTRA
      label: Extra
      rank: 2
  column_groups: {}
  columns:
    count:
      leaderboard: *RESULTS
      label: Count
      rank: 2
    accuracy:
      leaderboard: *RESULTS
      label: Accuracy
      numeric_format: 4
      rank: 1
      sort: desc
    seconds:
      leaderboard: *EXTRA
      label: Seconds
      rank: 1
      sort: asc
    overall:
      leaderboard: *RESULTS
      label: <Rank>
      rank: 3
      computed: {operation: Avg, fields: accuracy}
"""

PARALLEL = """
title: Parallel
html: {terms: terms.html}
phases:
  1: {phasenumber: 1, label: All, start_date: 2019-04-14, is_parallel_parent: True, scoring_program: score.zip}
  2: {phasenumber: 2, label: Set 1, start_date: 2019-04-14, parent_phasenumber: 1, scoring_program: score.zip,
      reference_data: reference.zip, ingestion_program_only_during_scoring: True, execution_time_limit: 1200}
  3: {phasenumber: 3, label: Set 2, start_date: 2019-04-14, parent_phasenumber: 1, scoring_program: score.zip,
      reference_data: reference.zip}
leaderboard:
  leaderboards: {Results: &R {label: RESULTS, rank: 1}}
  columns: {score: {leaderboard: *R, label: Score, rank: 1}}
"""


def zipped(files: Mapping[str, bytes | str]) -> bytes:
    """A zip with these files."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in files.items():
            archive.writestr(path, content)
    return buffer.getvalue()


def within(folder: str, files: Files) -> Files:
    """The files below a folder."""
    return {f"{folder}/{path}": content for path, content in files.items()}


def documented(**changes: bytes | str | None) -> Files:
    """The documented bundle; keyword arguments with ``__`` for ``/`` and ``_DOT_`` for ``.`` replace files."""
    files: Files = {
        "competition.yaml": DOCUMENTED,
        "logo.png": b"\x89PNG",
        "pages/terms.md": "Be fair.",
        "pages/overview.md": "# Letters",
        "scoring.zip": zipped(PROGRAM),
        "reference.zip": zipped(REFERENCE),
        "solution.zip": zipped({"answers.txt": "a b c x"}),
    }
    return _changed(files, changes)


def codabench() -> Files:
    """The bundle with folders and two tasks."""
    return {
        "competition.yaml": CODABENCH,
        "logo.png": b"\x89PNG",
        "pages/terms.md": "Be fair.",
        "pages/overview.md": "# Words",
        **within("scoring", PROGRAM),
        **within(
            "ingestion", {"metadata": "command: python3 $program/run.py $input $output\n", "run.py": ""}
        ),
        **within("words/input", {"words.txt": "x"}),
        **within("words/reference", REFERENCE),
    }


def old(yaml: str = OLD) -> Files:
    """A bundle of version 1.5 or 1.8."""
    pages: Files = {f"{name}.html": f"<p>{name}" for name in ("overview", "terms", "data")}
    return {
        "competition.yaml": yaml,
        "logo.png": b"\x89PNG",
        **pages,
        "score.zip": zipped(PROGRAM),
        "reference.zip": zipped(REFERENCE),
    }


def _changed(files: Files, changes: Mapping[str, bytes | str | None]) -> Files:
    for name, content in changes.items():
        path = name.replace("__", "/").replace("_DOT_", ".")
        if content is None:
            del files[path]
        else:
            files[path] = content
    return files


def folder_tree(folder: Path, files: Files) -> BundleTree:
    """The files as a folder on disk."""
    for path, content in files.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_folder(folder)


def zip_tree(folder: Path, files: Files) -> BundleTree:
    """The files as a zip on disk."""
    path = folder / "bundle.zip"
    path.write_bytes(zipped(files))
    return open_zip(path)


def read(folder: Path, files: Files) -> Competition:
    """The competition in these files, which must have no problem."""
    return reading(folder, files).competition


def reading(folder: Path, files: Files) -> ReadCompetition:
    """The competition in these files with its warnings."""
    return read_competition(zip_tree(folder, files))


def refused(folder: Path, files: Files) -> list[str]:
    """What is wrong with these files, one text a problem."""
    with pytest.raises(BundleInvalid) as caught:
        read_competition(zip_tree(folder, files))
    return [str(problem) for problem in caught.value.problems]
