"""Problems of the manifest hide no problems of the rows, and bring none that are not there."""

from __future__ import annotations

import copy
import functools
import json
import operator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from benchgen.bundle import BundleInvalid, load_folder, validate
from benchgen.bundle.salvage import salvage
from benchgen.bundle.yamldoc import YamlDocument

from .support import MANIFEST, example, jsonl, problems, rows, small

# Its second row has the first one's id, its third one neither an answer nor a difficulty.
BAD_ROWS = jsonl([rows(1)[0], rows(1)[0], {"task_id": "t9", "question": "?", "passage": "p"}])
SAID_OF_ROWS = [
    ("data/test.jsonl", 2, "task_id"),
    ("data/test.jsonl", 3, "difficulty"),
    ("data/test.jsonl", 3, "answer"),
    ("data/test.jsonl", 3, "answer"),
]


def places(folder: Path) -> list[tuple[str, int | None, str | None]]:
    return [(problem.file, problem.line, problem.field) for problem in problems(folder)]


def changed(old: str, new: str) -> str:
    assert MANIFEST.count(old) == 1
    return MANIFEST.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ("schema: 1", "schema: 2", "schema"),
        ("name: gsm8k-mini", "name: GSM8K", "name"),
        ("version: 1.0.0", "version: 1.0", "version"),
        ("title: Grade-school math, 100 problems", "title: ''", "title"),
        ("category: reasoning", "category: reasonin", "category"),
        ("license: MIT", "license: MIT\nlicence: MIT", "licence"),
        ("license: MIT", "license: MIT\nverify: {oracle_min: 2}", "verify.oracle_min"),
        ("  split: test", "  splt: test", "dataset.splt"),
        ("cluster: passage", "cluster: 7", "dataset.cluster"),
        ("[difficulty]", "[3, difficulty]", "dataset.slices[0]"),
        ("temperature: 0", "temprature: 0", "harness.generation.temprature"),
        ("max_tokens: 512", "max_tokens: 0.5", "harness.generation.max_tokens"),
        ("type: chat", "type: chatt", "harness"),
        ("type: chat", "type: tools", "harness.type"),
        ("system: You are a careful mathematician.", "system: 5", "harness.system"),
        ("type: numeric", "type: judge", "scoring[0].type"),
        ("type: numeric", "type: numerics", "scoring[0]"),
        ("take: last", "take: lst", "scoring[0].extract.take"),
        ("primary: true", "primary: false", "scoring"),
        ("name: correct", "name: '!'", "scoring[0].name"),
        ("count: 2", "count: two", "dataset.few_shot.count"),
        ("file: data/train.jsonl", "file: ../train.jsonl", "dataset.few_shot.file"),
        ("file: data/train.jsonl", "file: data/train.txt", "dataset.few_shot.file"),
        ("{{ question }}", "{{ question", "harness.prompt"),
        ("tags: [math]", "name: a", "name"),
    ],
)
def test_the_rows_are_judged_whatever_else_is_wrong(tmp_path: Path, old: str, new: str, field: str) -> None:
    found = places(example(tmp_path, manifest=changed(old, new), test=BAD_ROWS))
    assert [place for place in found if place[0] != "environment.yaml"] == SAID_OF_ROWS
    assert [place[2] for place in found if place[0] == "environment.yaml"] == [field]


@pytest.mark.parametrize(
    ("old", "new", "fields"),
    [
        ("data/test.jsonl", "data/tset.jsonl", ["dataset.file"]),
        ("data/test.jsonl", "../test.jsonl", ["dataset.file"]),
        ("  file: data/test.jsonl", "  fil: data/test.jsonl", ["dataset.fil", "dataset.file"]),
        ("id: task_id", "id: 5", ["dataset.id"]),
        ("id: task_id", "idd: task_id", ["dataset.idd"]),
        ("  target: ", "  targt: ", ["dataset.targt"]),
        ("{file: data/train.jsonl, ", "{", []),
        ("{file: data/train", "{fil: data/train", ["dataset.few_shot.fil"]),
        ("seed: 1234}", "seed: 1234, answr: '{{ question }}'}", ["dataset.few_shot.answr"]),
        ("seed: 1234}", "seed: 1234, answer: 5}", ["dataset.few_shot.answer"]),
        ("seed: 1234}", "seed: 1234, answer: '{{'}", ["dataset.few_shot.answer"]),
        ("count: 2", "coun: 2", ["dataset.few_shot.coun", "dataset.few_shot.count"]),
        ("  prompt: |", "  promt: |", ["harness.promt"]),
        ("  prompt: |", "  messages: [{role: user}, {role: usr, content: x}]\n  x: |", None),
        ('oracle: "{{ answer }}"', "oracle: [1]", ["oracle"]),
        ("primary: true", "target: [1]", ["scoring[0].target"]),
        ("    type: numeric", "    type: regex\n    pattern: '('", ["scoring[0].pattern"]),
    ],
)
def test_what_stands_in_for_a_part_is_blamed_for_nothing(
    tmp_path: Path, old: str, new: str, fields: list[str] | None
) -> None:
    folder = example(tmp_path, manifest=changed(old, new), test=jsonl(rows(5)))
    if fields == []:
        validate(load_folder(folder))
        return
    found = problems(folder)
    assert {problem.file for problem in found} == {"environment.yaml"}
    if fields is not None:
        assert sorted(str(problem.field) for problem in found) == fields


def test_a_dataset_alone_is_enough_to_judge_ids_and_syntax(tmp_path: Path) -> None:
    dataset = {"file": "data.jsonl", "id": "id"}
    data = jsonl([{"id": "x"}, {"id": "x"}, {"id": None}, {}]) + b"{"
    folder = small(tmp_path, data, name=None, harness=None, scoring=None, dataset=dataset)
    assert places(folder) == [
        ("environment.yaml", 1, "harness"),
        ("environment.yaml", 1, "scoring"),
        ("environment.yaml", 1, "name"),
        ("data.jsonl", 2, "id"),
        ("data.jsonl", 3, "dataset.id"),
        ("data.jsonl", 5, None),
        ("data.jsonl", 4, "id"),
    ]


def test_examples_are_judged_without_the_dataset(tmp_path: Path) -> None:
    found = places(example(tmp_path, manifest=changed("data/test.jsonl", "/x"), train=b'{"answer": "1"}\n{'))
    assert found == [
        ("environment.yaml", 10, "dataset.file"),
        ("data/train.jsonl", 2, None),
        ("environment.yaml", 16, "dataset.few_shot.count"),
        ("environment.yaml", 20, "harness.prompt"),
    ]


def test_templates_are_judged_without_any_data(tmp_path: Path) -> None:
    folder = small(tmp_path, b"", dataset=None, oracle="{{", harness={"type": "chat", "prompt": "{% if %}"})
    assert [place[2] for place in places(folder)] == ["dataset", "harness.prompt", "oracle"]


def test_a_value_that_yaml_cannot_tell_is_left_out(tmp_path: Path) -> None:
    manifest = changed("count: 2", "count: !!float x").replace("file: data/test", "file: !!x data/test")
    assert [place[2] for place in places(example(tmp_path, manifest=manifest))] == [
        "dataset.file",
        "dataset.few_shot.count",
    ]


@pytest.mark.parametrize("manifest", ["!!x 'y'", "!!x y: 1\ndataset: {file: data/test.jsonl}\n"])
def test_a_manifest_that_yaml_cannot_tell_is_one_problem(tmp_path: Path, manifest: str) -> None:
    assert places(example(tmp_path, manifest=manifest)) == [("environment.yaml", 1, None)]


def test_beyond_all_problems_that_are_told_nothing_is_salvaged() -> None:
    data = {"harness": {"type": "chat", "messages": [{"role": 1, "content": 1} for _ in range(60)]}}
    assert salvage(YamlDocument(data)) is None


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The places of everything in a document."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    return [path, *(inner for key, entry in entries for inner in _paths(entry, (*path, key)))]


EXAMPLE = yaml.safe_load(MANIFEST)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, 5, "", "{{", [], [[]], {}, {"type": "chat"}, {"x": {"target": 1}}, [{"regex": "("}, {"tag": 1}]]
)


@given(st.dictionaries(st.sampled_from(_paths(EXAMPLE)), ODD, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_wrong_is_a_problem(tmp_path: Path, changes: dict[tuple[Any, ...], Any]) -> None:
    document = {"all": copy.deepcopy(EXAMPLE)}
    for path, value in changes.items():
        *around, last = ("all", *path)
        with suppress(TypeError, LookupError):
            functools.reduce(operator.getitem, around, document)[last] = copy.deepcopy(value)
    manifest = json.dumps(document["all"])
    with suppress(BundleInvalid):
        validate(load_folder(example(tmp_path, manifest=manifest)))
