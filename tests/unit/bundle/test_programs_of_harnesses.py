"""`harness: program`: what a manifest may say, what the program is given, and what it must not see."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml

from benchgen.bundle import BundleInvalid, Materialised, load_folder, materialise, validate

from .support import jsonl, write

HARNESS: dict[str, Any] = {
    "type": "program",
    "files": "agent",
    "command": ["python3", "agent.py"],
    "fields": ["question"],
}
ROWS = [{"id": f"c{n}", "question": f"{n}?", "answer": str(n), "note": None} for n in range(3)]


def bundle(folder: Path, harness: dict[str, Any], **files: str | bytes) -> Path:
    manifest = {
        "schema": 1,
        "name": "agents",
        "version": "1.0.0",
        "dataset": {"file": "data/test.jsonl", "id": "id", "target": "answer"},
        "harness": harness,
        "oracle": "{{ answer }}",
        "scoring": [{"name": "correct", "type": "exact_match"}],
    }
    given: dict[str, str | bytes] = {
        "environment.yaml": yaml.safe_dump(manifest),
        "data/test.jsonl": jsonl(ROWS),
        "data/more.txt": "answers",
        "agent/agent.py": "print()",
        "agent/lib/tools.py": "",
        "README.md": "hello",
    }
    return write(folder, given | files)


def made(folder: Path, tmp_path: Path) -> tuple[Materialised, dict[str, Any], list[str]]:
    """What was materialised, the first row of the inputs, and the names in the program's zip."""
    tree = load_folder(folder)
    out = tmp_path / "out"
    done = materialise(tree, validate(tree), out)
    harness = orjson.loads(done.harness_json)
    (part,) = (out / "inputs" / "parts").iterdir()
    with zipfile.ZipFile(out / "inputs" / "programs" / f"{harness['program']}.zip") as packed:
        names = packed.namelist()
    return done, orjson.loads(part.read_bytes().splitlines()[0]), names


def test_the_program_gets_its_folder_and_the_fields_that_are_named(tmp_path: Path) -> None:
    done, row, names = made(bundle(tmp_path / "env", HARNESS | {"fields": ["question", "note"]}), tmp_path)
    assert names == ["agent.py", "lib/tools.py"]
    assert row["fields"] == {"question": "0?", "note": None}
    assert row["messages"] == []
    assert b"answer" not in orjson.dumps(row)
    harness = orjson.loads(done.harness_json)
    assert (harness["command"], harness["io"], harness["batch"], harness["calls"]) == (
        ["python3", "agent.py"],
        "jsonl",
        1,
        50,
    )
    assert harness["limits"] == {
        "seconds": 300.0,
        "cpu_seconds": 300.0,
        "memory_mb": 1024,
        "processes": 64,
        "disk_mb": 512,
        "output_mb": 1,
    }


def test_the_same_bundle_is_the_same_bytes(tmp_path: Path) -> None:
    first, *_ = made(bundle(tmp_path / "a", HARNESS), tmp_path / "1")
    second, *_ = made(bundle(tmp_path / "b", HARNESS), tmp_path / "2")
    assert first == second
    other, *_ = made(bundle(tmp_path / "c", HARNESS, **{"agent/agent.py": "print(1)"}), tmp_path / "3")
    assert other.harness_json != first.harness_json
    assert other.inputs_digest == first.inputs_digest


def test_the_whole_bundle_is_all_but_data_and_judges(tmp_path: Path) -> None:
    text = {"type": "program", "files": ".", "command": ["python3", "agent.py"], "io": "text"}
    folder = bundle(tmp_path / "env", text | {"prompt": "{{ question }}"}, **{"agent.py": "print(42)"})
    _, row, names = made(folder, tmp_path)
    assert names == ["README.md", "agent.py", "agent/agent.py", "agent/lib/tools.py"]
    assert row["messages"] == [{"role": "user", "content": "0?"}]
    assert row["fields"] == {}


def test_what_judges_is_no_part_of_what_is_judged(tmp_path: Path) -> None:
    folder = bundle(tmp_path / "env", HARNESS | {"files": "."}, **{"judge/score.py": "print()"})
    path = folder / "environment.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["scoring"] = [
        {"name": "correct", "type": "program", "files": "judge", "command": ["python3", "score.py"]}
    ]
    path.write_text(yaml.safe_dump(manifest))
    _, _, names = made(folder, tmp_path)
    assert names == ["README.md", "agent/agent.py", "agent/lib/tools.py"]
    manifest["harness"]["files"] = "judge"
    path.write_text(yaml.safe_dump(manifest))
    with pytest.raises(BundleInvalid, match="shares nothing with data and judges"):
        validate(load_folder(folder))


def test_fields_are_part_of_what_is_asked(tmp_path: Path) -> None:
    _, plain, _ = made(bundle(tmp_path / "a", HARNESS), tmp_path / "1")
    _, more, _ = made(bundle(tmp_path / "b", HARNESS | {"fields": ["question", "id"]}), tmp_path / "2")
    assert plain["digest"] != more["digest"]


@pytest.mark.parametrize(
    ("changes", "place", "said"),
    [
        ({"files": "agents"}, "harness.files", 'did you mean "agent"?'),
        ({"files": "data"}, "harness.files", "shares nothing with data and judges"),
        ({"files": "../x"}, "harness.files", "a plain relative path"),
        ({"command": []}, "harness.command", "at least 1 entries"),
        ({"fields": ["questions"]}, "harness.fields[0]", 'did you mean "question"?'),
        ({"fields": []}, "harness", "the program has to see something of a case"),
        ({"io": "text", "fields": []}, "harness", "the program has to see something of a case"),
        ({"io": "text"}, "harness", "which is what the program reads"),
        ({"io": "text", "prompt": "a {{ id }}", "batch": 2, "fields": []}, "harness", "expected `batch: 1`"),
        ({"system": "x"}, "harness", "beside `system`"),
        ({"batch": 300}, "harness.batch", "a number of at most 256"),
        ({"limits": {"seconds": 0}}, "harness.limits.seconds", "a number above 0"),
        ({"limits": {"second": 1}}, "harness.limits.second", 'did you mean "seconds"?'),
        ({"call": 3}, "harness.call", 'did you mean "calls"?'),
    ],
)
def test_what_is_wrong_is_said_with_its_place(
    tmp_path: Path, changes: dict[str, Any], place: str, said: str
) -> None:
    with pytest.raises(BundleInvalid) as invalid:
        validate(load_folder(bundle(tmp_path, HARNESS | changes)))
    (problem,) = invalid.value.problems
    assert problem.field == place
    assert said in problem.message
    assert problem.line


def test_problems_of_rows_are_found_beside_those_of_the_harness(tmp_path: Path) -> None:
    folder = bundle(tmp_path, HARNESS | {"files": "nowhere", "command": "python3 agent.py"})
    (folder / "data" / "test.jsonl").write_bytes(jsonl([{"id": "a", "answer": "1"}, *ROWS]))
    with pytest.raises(BundleInvalid) as invalid:
        validate(load_folder(folder))
    assert [problem.field for problem in invalid.value.problems] == [
        "harness.command",
        "harness.files",
        "question",
    ]
