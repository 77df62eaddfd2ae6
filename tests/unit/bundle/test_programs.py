"""Rules that run programs: what a manifest may say, how programs are packed, and where code and tests end up."""

from __future__ import annotations

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchgen.bundle import lint, load_folder, materialise, open_zip, pack, validate
from benchgen.scoring.spec import CodeTests, ProgramRule, parse_rules

from .support import jsonl, problems, small, stores, write

ROW = {
    "q": "def f():\n",
    "a": "    return 1",
    "name": "f",
    "t": "assert f() == 1",
    "io": [{"stdin": "1", "stdout": "2"}],
}
CODE = {"name": "passes", "type": "code_tests", "setup": "q", "tests": "{{ t }}\n", "entry_point": "name"}
PROGRAM = {"name": "judged", "type": "program", "files": "scoring", "command": ["python3", "score.py"]}


def env(folder: Path, *rules: dict[str, Any], row: dict[str, Any] = ROW, **changes: Any) -> Path:
    rules = tuple({**rule, "primary": index == 0} for index, rule in enumerate(rules))
    changes.setdefault("dataset", {"file": "data.jsonl"})
    small(folder, jsonl([row]), scoring=list(rules), oracle="a", **changes)
    return write(folder, {"scoring/score.py": "print()\n", "scoring/lib/more.py": "x = 1\n"})


def test_code_and_tests_are_kept_with_the_targets(tmp_path: Path) -> None:
    found = stores(env(tmp_path / "env", CODE), tmp_path / "out")
    (target,) = found["targets"]
    assert target["rules"] == {
        "passes": {"setup": "def f():\n", "tests": "assert f() == 1", "entry_point": "f"}
    }
    assert target["target"] is None
    assert "assert" not in orjson.dumps(found["inputs"]).decode()
    assert found["solutions"][0]["solution"] == "    return 1"


def test_tests_may_be_what_a_program_reads_and_prints(tmp_path: Path) -> None:
    found = stores(env(tmp_path / "env", {**CODE, "tests": "io"}), tmp_path / "out")
    assert found["targets"][0]["rules"]["passes"]["tests"] == [{"stdin": "1", "stdout": "2"}]


def test_a_program_is_packed_the_same_from_a_folder_and_from_a_zip(tmp_path: Path) -> None:
    folder = env(tmp_path / "env", PROGRAM)
    pack(folder, tmp_path / "env.zip")
    digests = set()
    for number, tree in enumerate((load_folder(folder), open_zip(tmp_path / "env.zip"))):
        out = tmp_path / f"out{number}"
        done = materialise(tree, validate(tree), out)
        (rule,) = parse_rules(orjson.loads(done.scoring_json))
        assert isinstance(rule, ProgramRule)
        (packed,) = (out / "targets" / "programs").iterdir()
        data = packed.read_bytes()
        assert packed.name == f"{rule.program}.zip"
        assert hashlib.sha256(data).hexdigest() == rule.program
        assert not (out / "inputs" / "programs").exists()
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            assert archive.namelist() == ["lib/more.py", "score.py"]
            assert archive.read("lib/more.py") == b"x = 1\n"
        digests.add(rule.program)
    assert len(digests) == 1


def test_a_change_of_the_program_is_a_change_of_the_scoring(tmp_path: Path) -> None:
    folder = env(tmp_path / "env", PROGRAM)
    tree = load_folder(folder)
    before = materialise(tree, validate(tree), tmp_path / "before")
    (folder / "scoring" / "lib" / "more.py").write_text("x = 2\n")
    tree = load_folder(folder)
    after = materialise(tree, validate(tree), tmp_path / "after")
    assert before.scoring_digest != after.scoring_digest
    assert before.targets_digest == after.targets_digest


def test_limits_that_are_not_given_keep_the_default_of_the_type() -> None:
    code, program = parse_rules([{**CODE, "limits": {"processes": 4}}, {**PROGRAM, "limits": {"seconds": 2}}])
    assert isinstance(code, CodeTests)
    assert isinstance(program, ProgramRule)
    assert (code.limits.seconds, code.limits.memory_mb, code.limits.processes) == (10.0, 512, 4)
    assert (program.limits.seconds, program.limits.memory_mb, program.batch) == (2.0, 1024, 64)


@pytest.mark.parametrize(
    ("rule", "field", "expected"),
    [
        ({**PROGRAM, "files": "scorin"}, "scoring[0].files", 'none at "scorin"; did you mean "scoring"?'),
        (
            {**PROGRAM, "files": "data.jsonl"},
            "scoring[0].files",
            "expected a folder of the bundle, found a file",
        ),
        ({**PROGRAM, "files": "../x"}, "scoring[0].files", "expected a plain relative path"),
        ({**PROGRAM, "command": []}, "scoring[0].command", "expected at least 1 entries"),
        ({**PROGRAM, "command": "python3 score.py"}, "scoring[0].command", "expected a list"),
        ({**PROGRAM, "batch": 257}, "scoring[0].batch", "at most 256"),
        ({**PROGRAM, "program": "0" * 64}, "scoring[0].program", "publishing sets it"),
        ({**PROGRAM, "limits": {"second": 1}}, "scoring[0].limits.second", 'did you mean "seconds"?'),
        ({**PROGRAM, "limits": {"seconds": 0}}, "scoring[0].limits.seconds", "above 0"),
        ({**CODE, "setup": "qq"}, "scoring[0].setup", 'found "qq"; did you mean "q"?'),
        ({**CODE, "entry_point": None}, "scoring[0].join", "expected an `entry_point`"),
        ({**CODE, "language": "pyton"}, "scoring[0].language", "expected 'python'"),
        ({"name": "x", "type": "code_tests"}, "scoring[0].tests", "required field"),
    ],
)
def test_problems_are_told_with_their_place(
    tmp_path: Path, rule: dict[str, Any], field: str, expected: str
) -> None:
    rule = {key: value for key, value in rule.items() if value is not None}
    found = problems(env(tmp_path, rule))
    assert [problem.field for problem in found] == [field]
    assert expected in found[0].message


@pytest.mark.parametrize(
    ("tests", "expected"),
    [
        ([], "expected source code, or a list of {stdin, stdout}"),
        ([{"stdin": "1"}], "expected a list of {stdin, stdout}"),
        ([{"stdin": 1, "stdout": "1"}], "to be texts"),
        ("  ", "expected tests, found an empty text"),
        (7, "expected source code"),
    ],
)
def test_tests_that_are_none_are_told_with_their_row(tmp_path: Path, tests: Any, expected: str) -> None:
    found = problems(env(tmp_path, {**CODE, "tests": "t"}, row={**ROW, "t": tests}))
    assert [(problem.file, problem.line, problem.field) for problem in found] == [
        ("data.jsonl", 1, "scoring[0].tests")
    ]
    assert expected in found[0].message


def test_lint_finds_a_script_that_is_not_there(tmp_path: Path) -> None:
    folder = env(tmp_path, {**PROGRAM, "command": ["python3", "scores.py"]})
    (warning,) = lint(load_folder(folder))
    assert warning.field == "scoring[0].command[1]"
    assert 'found none at "scoring/scores.py"; did you mean "scoring/score.py"?' in warning.message
