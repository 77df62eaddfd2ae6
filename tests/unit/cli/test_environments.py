"""`benchgen env`."""

from __future__ import annotations

from pathlib import Path

from benchgen.eval.v1 import environment_pb2
from tests.unit.bundle.competition.support import documented, folder_tree
from tests.unit.cli.conftest import Command
from tests.unit.cli.platform import Platform


def test_from_nothing_to_a_checked_zip_without_a_server(offline: Command, tmp_path: Path) -> None:
    assert offline("env", "init", "My_Task").code == 0
    ended = offline("env", "validate", "My_Task")
    assert ended.code == 0
    assert ended.out.startswith("valid: my-task@0.1.0, 4 cases, digest ")
    packed = offline("env", "pack", "My_Task", "--json").json()
    assert Path(packed["file"]).is_file()
    assert offline("env", "validate", packed["file"], "--json").json()["digest"] == packed["digest"]


def test_init_overwrites_nothing(offline: Command) -> None:
    offline("env", "init", "task")
    ended = offline("env", "init", "task")
    assert ended.code == 2
    assert "exists already" in ended.err


def test_all_problems_with_their_places(offline: Command, folder: Path) -> None:
    manifest = folder / "environment.yaml"
    manifest.write_text(manifest.read_text().replace("type: numeric", "type: numerik"))
    with (folder / "data" / "test.jsonl").open("a") as rows:
        rows.write("{bad\n")
    ended = offline("env", "validate", str(folder))
    assert ended.code == 2
    first, second, last = ended.err.splitlines()
    assert first.startswith("environment.yaml:")
    assert 'did you mean "numeric"?' in first
    assert second.startswith("data/test.jsonl:5:")
    assert last == "error: 2 problems found"
    document = offline("env", "validate", str(folder), "--json").json()
    assert [problem["line"] for problem in document["problems"]][1] == 5


def test_a_folder_that_is_no_environment(offline: Command, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for command in ("validate", "push"):
        ended = offline("env", command, "empty")
        assert ended.code == 2
        assert "empty holds no environment.yaml and no competition.yaml" in ended.err


def test_push_says_what_became_of_it(benchgen: Command, folder: Path) -> None:
    ended = benchgen("env", "push", str(folder))
    assert ended.code == 0
    assert ended.out.startswith("published my-task@0.1.0: 10 cases, digest ")
    assert "verified: the reference solutions score 100.0%, the empty answer scores 0.0%" in ended.out
    assert "rendering prompts…" in ended.err
    assert "is published already with exactly this content" in benchgen("env", "push", str(folder)).out
    assert benchgen("env", "push", str(folder), "--json").json()["already_published"] is True


def test_a_rejected_push_lists_the_problems(benchgen: Command, platform: Platform, folder: Path) -> None:
    platform.problems = [environment_pb2.Problem(file="data/test.jsonl", line=2, message="expected a number")]
    ended = benchgen("env", "push", str(folder))
    assert ended.code == 2
    assert "data/test.jsonl:2: expected a number\nerror: 1 problem found" in ended.err


def test_list_and_show(benchgen: Command) -> None:
    assert "gsm8k-mini   1.0.0        10   reasoning   Grade-school math" in benchgen("env", "list").out
    assert benchgen("env", "list", "--json").json()[0]["category"] == "reasoning"
    shown = benchgen("env", "show", "gsm8k-mini@1.0.0")
    assert "correct (numeric)" in shown.out
    document = benchgen("env", "show", "gsm8k-mini", "--json").json()
    assert document["verification"]["oracle_mean"] == 1.0
    assert document["versions"] == ["1.0.0"]
    assert document["solutions_digest"] is None


def test_pull_gives_back_the_folder(benchgen: Command, folder: Path, tmp_path: Path) -> None:
    benchgen("env", "push", str(folder))
    assert benchgen("env", "pull", "my-task@0.1.0", "-o", "copy").code == 0
    for name in ("environment.yaml", "data/test.jsonl"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / name).read_bytes()
    assert benchgen("env", "pull", "my-task", "-o", "copy.zip").code == 0
    assert (tmp_path / "copy.zip").read_bytes()[:2] == b"PK"
    ended = benchgen("env", "pull", "my-task")
    assert ended.code == 2
    assert "my-task exists already" in ended.err


def test_competition_bundles_are_checked_and_packed(offline: Command, tmp_path: Path) -> None:
    folder_tree(tmp_path / "letters", documented())
    ended = offline("env", "validate", "letters")
    assert ended.code == 0
    assert ended.out.startswith(
        "valid: Letters (competition.yaml, version 2), 1 phase, 1 task, 1 solution, 2 columns, digest "
    )
    packed = offline("env", "pack", "letters", "--json").json()
    assert packed["file"] == "letters.zip"
    checked = offline("env", "validate", "letters.zip", "--json").json()
    assert (checked["valid"], checked["digest"], checked["cases"]) == (True, packed["digest"], 1)
    assert checked["competition"]["columns"][0]["primary"] is True
    (tmp_path / "letters" / "scoring.zip").unlink()
    ended = offline("env", "validate", "letters")
    assert ended.code == 2
    assert (
        "competition.yaml:17: tasks[0].scoring_program: expected a scoring program in the bundle" in ended.err
    )
