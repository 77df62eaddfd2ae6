"""What is wrong with a bundle is told with its place, all of it at once, and nothing gets out of the bundle."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from benchgen.bundle import reader
from benchgen.bundle.competition import Nested
from benchgen.bundle.competition.model import Reference
from benchgen.bundle.problems import ProblemLog

from .support import (
    CODABENCH,
    DOCUMENTED,
    OLD,
    PROGRAM,
    codabench,
    documented,
    old,
    reading,
    refused,
    zip_tree,
    zipped,
)


def changed(old_text: str, new_text: str, yaml: str = DOCUMENTED) -> str:
    assert old_text in yaml
    return yaml.replace(old_text, new_text)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("title: Letters\ndesc", "desc", "expected a `title`, found none"),
        (
            "index: 0\n    name: Letters",
            "name: Letters",
            "expected an `index` by which phases name this task",
        ),
        ("scoring_program: scoring.zip", "x: y", "tasks[0]: expected a `scoring_program`, found none"),
        (
            "scoring_program: scoring.zip",
            "scoring_program: scorin.zip",
            'found no "scorin.zip"; did you mean "scoring.zip"?',
        ),
        ("tasks: [0]\ntasks", "tasks: [7]\ntasks", "expected indexes of tasks (0), found 7"),
        ("tasks: [0]\ntasks", "x: 1\ntasks", "expected `tasks` with the indexes of the tasks of this phase"),
        ("file: pages/overview.md", "file: pages/over.md", 'found no file "pages/over.md"'),
        ("file: pages/overview.md", "file: ../../etc/passwd", "expected a path inside the bundle"),
        ("file: pages/overview.md", "file: /etc/passwd", "expected a path inside the bundle"),
        ("terms: pages/terms.md", "terms: pages/../../x", "expected a path inside the bundle"),
        ("scoring_program: scoring.zip", "scoring_program: .", "expected a path inside the bundle"),
        ("reference_data: reference.zip", "reference_data: /etc", "expected a path inside the bundle"),
        ("image: logo.png", "image: logo.jpg", 'expected an image in the bundle, found no file "logo.jpg"'),
        ("path: solution.zip", "path: [a]", "expected a path inside the bundle, found a list"),
        ("path: solution.zip", "x: 1", "expected a `path` to the files of this solution"),
        (
            "reference_data: reference.zip",
            "reference_data: 542e4557-9170-48c5-83e2-110921bcab45",
            "of something stored on another server",
        ),
        (
            "scoring_program: scoring.zip",
            "key: 542e4557-9170-48c5-83e2-110921bcab45",
            "found the key of a task",
        ),
        ("leaderboard:", "board:", "expected a list `leaderboard` with the columns"),
        ("    columns:", "    cols:", "expected `columns` with at least one column"),
        ("key: count, index: 1", "key: count, index: 0", "expected each column index once, found 0 again"),
        (
            "key: count, index: 1",
            "key: accuracy, index: 1",
            'expected each column key once, found "accuracy" again',
        ),
        (
            "key: count, index: 1",
            "key: count, index: 1, computation: median, computation_indexes: [0]",
            'found "median"',
        ),
        ("key: count, index: 1", "key: count, index: 1, computation: avg", "expected `computation_indexes`"),
        (
            "key: count, index: 1",
            "key: count, index: 1, computation: avg, computation_indexes: [5]",
            "found [5]",
        ),
        (
            "key: count, index: 1",
            "key: count, index: 1, computation: avg, computation_indexes: [1]",
            "needs itself",
        ),
        ("sorting: desc", "sorting: down", 'expected asc or desc, found "down"'),
        (
            "tasks: [0]\ntasks",
            "tasks: [0]\n    execution_time_limit: soon\ntasks",
            "expected a whole number of at least 0",
        ),
        ("phases:\n", "phases: []\nold_phases:\n", "expected a list `phases` with at least one phase"),
    ],
)
def test_a_fault_is_told_with_its_place(tmp_path: Path, before: str, after: str, expected: str) -> None:
    said = refused(tmp_path, documented(competition_DOT_yaml=changed(before, after)))
    assert expected in "\n".join(said)
    assert all(line.startswith("competition.yaml") for line in said)
    assert len(said) == 1


def test_two_tasks_with_one_index(tmp_path: Path) -> None:
    files = codabench()
    files["competition.yaml"] = CODABENCH.replace('index: "0"', "index: 1")
    said = refused(tmp_path, files)
    assert "expected each task index once, found 1 again" in said[0]


def test_all_faults_at_once(tmp_path: Path) -> None:
    text = DOCUMENTED
    for before, after in (
        ("image: logo.png", "image: none.png"),
        ("terms: pages/terms.md", "terms: /terms.md"),
        ("start: 2026-01-01", "start: soon"),
        ("sorting: desc", "sorting: up"),
    ):
        text = changed(before, after, text)
    files = documented(
        competition_DOT_yaml=text,
        scoring_DOT_zip=zipped({"score.py": "print()"}),
        reference_DOT_zip=b"no zip",
        solution_DOT_zip=zipped({"../out": "x"}),
    )
    said = "\n".join(refused(tmp_path, files))
    for expected in (
        "competition.yaml:4: image: expected an image in the bundle",
        "competition.yaml:5: terms: expected a path inside the bundle",
        "competition.yaml:11: phases[0].start: expected a date",
        "sorting: expected asc or desc",
        "scoring.zip: expected metadata.yaml with the command of the scoring program, found score.py",
        "reference.zip: expected a zip archive",
        "solution.zip/../out: expected a plain path",
    ):
        assert expected in said


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (
            "description: none",
            "scoring.zip/metadata.yaml: command: expected a `command` that runs the scoring program",
        ),
        ("command:", "expected a `command`"),
        ("command: {a: b}", "expected a `command`"),
        ("", "expected a `command`"),
    ],
)
def test_a_scoring_program_without_a_command(tmp_path: Path, metadata: str, expected: str) -> None:
    files = documented(scoring_DOT_zip=zipped({**PROGRAM, "metadata.yaml": metadata}))
    (said,) = refused(tmp_path, files)
    assert expected in said


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (
            "    scoring_program: score.zip\n    reference_data: reference.zip",
            "    x: 1",
            "expected a `scoring_program`",
        ),
        (
            "overview: overview.html",
            "overview: ../overview.html",
            "html.overview: expected a path inside the bundle",
        ),
        ("data: data.html", "data: datta.html", "did you mean"),
        ("  leaderboards:\n", "  boards:\n", "leaderboard: expected a mapping `leaderboards`, found none"),
        ("start_date: 2018-03-01", "start_date: later", "expected a date"),
    ],
)
def test_faults_of_old_bundles(tmp_path: Path, before: str, after: str, expected: str) -> None:
    said = "\n".join(refused(tmp_path, old(changed(before, after, OLD))))
    assert expected in said


def test_odd_dates_and_empty_pages_stop_nothing(tmp_path: Path) -> None:
    files = documented(
        competition_DOT_yaml=changed("end: 2026-02-01", "end: 2025-02-01"), pages__terms_DOT_md=""
    )
    said = [str(warning) for warning in reading(tmp_path, files).warnings]
    assert any("ends (2025-02-01) before it starts" in line for line in said)
    assert any('the page "pages/terms.md" is empty' in line for line in said)


def test_no_yaml_and_no_mapping(tmp_path: Path) -> None:
    (said,) = refused(tmp_path, documented(competition_DOT_yaml="title: [\n"))
    assert said.startswith("competition.yaml:2: expected valid YAML")
    (said,) = refused(tmp_path, documented(competition_DOT_yaml="- a\n"))
    assert "expected a mapping, found a list" in said


def test_a_bomb_in_an_inner_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "RATIO_FLOOR_BYTES", 1 << 20)
    files = documented(reference_DOT_zip=zipped({"zeros": b"\0" * (8 << 20)}))
    (said,) = refused(tmp_path, files)
    assert said.startswith("reference.zip/zeros: expected a compression ratio of at most 200 : 1")


def test_inner_archives_share_the_bounds_of_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = documented(
        reference_DOT_zip=zipped({"a": os.urandom(40_000)}),
        solution_DOT_zip=zipped({"b": os.urandom(40_000)}),
    )
    outer = sum(file.size for file in zip_tree(tmp_path, files).files)
    monkeypatch.setattr(reader, "MAX_TREE_BYTES", outer + 60_000)
    (said,) = refused(tmp_path, files)
    assert "expected at most" in said
    assert "in all files, found more" in said
    monkeypatch.setattr(reader, "MAX_TREE_BYTES", 1 << 31)
    monkeypatch.setattr(reader, "MAX_ENTRIES", 10)
    assert "files in all archives, found more" in "\n".join(refused(tmp_path, files))


@pytest.mark.parametrize("kind", [0o120777, 0o010644])
def test_links_and_special_files_in_inner_archives(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("answers.txt")
    info.create_system = 3
    info.external_attr = kind << 16
    path = tmp_path / "inner.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, "/etc/passwd")
    said = "\n".join(refused(tmp_path, documented(reference_DOT_zip=path.read_bytes())))
    assert said.startswith("reference.zip/answers.txt: expected a file or a folder")


def test_zips_in_zips_are_opened_to_a_small_depth(tmp_path: Path) -> None:
    program = zipped(PROGRAM)
    for _ in range(5):
        program = zipped({"program.zip": program})
    tree = zip_tree(tmp_path, documented(scoring_DOT_zip=program))
    log = ProblemLog()
    with Nested(tree, log) as nested:
        found = nested.program(Reference("zip", "scoring.zip"))
        assert found is not None
        assert found.paths == ["program.zip"]
