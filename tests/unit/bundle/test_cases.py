"""What rows become: prompts, targets, few-shot examples, and the problems of single rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchgen.bundle import cases, load_folder, render, validate
from benchgen.bundle.problems import OutOfMemory

from .support import MANIFEST, example, jsonl, problems, rows, small, stores

GOOD = {"q": "1 + 1?", "a": "2"}


def test_the_example_becomes_messages_targets_and_solutions(tmp_path: Path) -> None:
    found = stores(example(tmp_path / "env"), tmp_path / "out")
    first = found["inputs"][0]
    assert set(first) == {"position", "id", "messages", "digest"}
    assert [message["role"] for message in first["messages"]] == [
        "system",
        *["user", "assistant"] * 2,
        "user",
    ]
    assert first["messages"][0]["content"] == "You are a careful mathematician."
    assert first["messages"][-1]["content"] == 'What is t 0 + 0?\nEnd with a line "#### <number>".'
    assert first["messages"][2]["content"].startswith("3 + 3 = 6")
    target = found["targets"][3]
    assert {key: target[key] for key in ("position", "id", "target", "rules", "cluster", "slices")} == {
        "position": 3,
        "id": "t3",
        "target": "6",
        "rules": {},
        "cluster": "p1",
        "slices": {"difficulty": "easy"},
    }
    assert found["solutions"][2] == {"position": 2, "id": "t2", "solution": "2 + 2 = 4\n#### 4"}


@pytest.mark.parametrize(
    ("data", "changes", "expected"),
    [
        (
            [GOOD, {"q": "x"}],
            {},
            ["data.jsonl:2: a: expected this field, which dataset.target needs, found none"],
        ),
        ([{"q": "x", "b": "1"}], {}, ['dataset.target: expected a field of data.jsonl (b, q), found "a"']),
        ([GOOD, {"a": "2"}], {}, ["data.jsonl:2: q: expected this field, which harness.prompt needs"]),
        (
            [{"question": "x", "a": "1"}],
            {"harness": {"type": "chat", "prompt": "{{ quest }}"}},
            ["environment.yaml:9: harness.prompt: expected a field of data.jsonl (a, question), found"],
        ),
        ([GOOD, {"q": " ", "a": "2"}], {}, ["data.jsonl:2: harness.prompt: expected a message with content"]),
        (
            [GOOD, {"q": None, "a": "2"}],
            {},
            ["data.jsonl:2: harness.prompt: expected a value to print, found null"],
        ),
        (
            [GOOD, {"q": "x", "a": None}],
            {},
            ["data.jsonl:2: dataset.target: expected a target, found nothing (null)"],
        ),
        (
            [GOOD, {"q": "x", "a": 2**70}],
            {},
            ["data.jsonl:2: dataset.target: expected a value that JSON can hold"],
        ),
        ([], {}, ["data.jsonl: expected at least one row, found none"]),
        (
            [GOOD, {**GOOD, "q": "abc"}],
            {"oracle": "{{ q.split('+')[1] }}"},
            ["data.jsonl:2: oracle: expected the template to render, found: list object has no element 1"],
        ),
        (
            [GOOD],
            {"oracle": "{{ q.__class__.__mro__ }}"},
            ["data.jsonl:1: oracle: expected the template to render, found: access to attribute '__class__'"],
        ),
        (
            [GOOD],
            {"oracle": "{{ q.upper }}"},
            ["oracle: expected a value to print, found a builtin_function"],
        ),
        ([GOOD], {"oracle": "{{ range(99999) | list }}"}, ["oracle: expected a range of at most 10,000"]),
        (
            [GOOD],
            {"oracle": "{{ 1 / 0 }}"},
            ["oracle: expected the template to render, found ZeroDivisionError"],
        ),
        (
            [GOOD],
            {"oracle": "{{ 'x' * 2000000 }}"},
            ["oracle: expected at most 1,048,576 characters, found 2,000,000"],
        ),
        (
            [GOOD],
            {"oracle": "{{ lipsum() }}"},
            ['oracle: expected a field of data.jsonl (a, q), found "lipsum"'],
        ),
        (
            [GOOD],
            {"scoring": [{"name": "c", "type": "choice", "choices": "q"}]},
            ["data.jsonl:1: scoring[0].choices: expected a list of option texts, found the text '1 + 1?'"],
        ),
        (
            [GOOD],
            {"dataset": {"file": "other.jsonl", "target": "a"}},
            ['environment.yaml:5: dataset.file: expected a file of the bundle, found none at "other.jsonl"'],
        ),
        (
            [GOOD],
            {"dataset": {"file": "environment.yaml", "target": "a"}},
            ["dataset.file: expected one of .jsonl, .json, .csv, .tsv, .parquet, plain or with .gz or .zst"],
        ),
        (
            [{**GOOD, "id": "x"}, {**GOOD, "id": "y"}, {**GOOD, "id": "x"}],
            {"dataset": {"file": "data.jsonl", "target": "a", "id": "id"}},
            ['data.jsonl:3: id: expected each id once, found "x" again (first at line 1)'],
        ),
        (
            [{**GOOD, "id": True}, {**GOOD, "id": ""}, {**GOOD, "id": 7}],
            {"dataset": {"file": "data.jsonl", "target": "a", "id": "id"}},
            [
                "data.jsonl:1: dataset.id: expected an id that is",
                "data.jsonl:2: dataset.id: expected an id of 1 to",
            ],
        ),
        (
            [{**GOOD, "s": [1]}],
            {"dataset": {"file": "data.jsonl", "target": "a", "slices": ["s"], "cluster": "s"}},
            [
                "dataset.slices[0]: expected a single value, found a list",
                "dataset.cluster: expected a single value",
            ],
        ),
        (
            [GOOD],
            {"dataset": {"file": "data.jsonl", "target": "a", "few_shot": {"count": 1}}},
            ["dataset.few_shot.count: expected at most the 0 examples that data.jsonl offers, found 1"],
        ),
        (
            [GOOD, GOOD],
            {"dataset": {"file": "data.jsonl", "target": "a", "few_shot": {"count": 1, "answer": "b"}}},
            ['dataset.few_shot.answer: expected a field of data.jsonl (a, q), found "b"'],
        ),
    ],
)
def test_problems_of_rows(
    tmp_path: Path, data: list[Any], changes: dict[str, Any], expected: list[str]
) -> None:
    found = [str(problem) for problem in problems(small(tmp_path, jsonl(data), **changes))]
    assert len(found) == len(expected), found
    for problem, words in zip(found, expected, strict=True):
        assert words in problem


def test_problems_of_files_templates_and_rows_come_together(tmp_path: Path) -> None:
    manifest = MANIFEST.replace("{{ question }}", "{{ question").replace("data/train", "data/trian")
    manifest = manifest.replace('oracle: "{{ answer }}"\n', "")
    good, other = rows(2)
    del other["answer"]
    test = jsonl([good]) + b"{\n" + jsonl([other])
    found = [str(p) for p in problems(example(tmp_path, manifest=manifest, test=test))]
    assert len(found) == 4
    assert "harness.prompt: expected a valid template" in found[0]
    assert 'found none at "data/trian.jsonl"; did you mean "data/train.jsonl"?' in found[1]
    assert found[2].startswith("data/test.jsonl:2: expected a JSON object")
    assert found[3].startswith("data/test.jsonl:3: answer: expected this field, which dataset.target needs")


def test_a_case_has_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cases, "MAX_CASE_CHARACTERS", 5)
    (problem,) = problems(small(tmp_path, jsonl([GOOD])))
    assert (problem.line, problem.message) == (1, "expected a case of at most 5 characters, found more")


def test_fields_and_expressions_keep_their_type(tmp_path: Path) -> None:
    data = [{"q": "?", "a": [1, {"b": None}], "n": 2, "options": ["x", 3], "on": True}]
    scoring = [
        {"name": "whole", "type": "json_match", "primary": True},
        {"name": "sum", "type": "numeric", "target": "{{ n + 1 }}"},
        {"name": "text", "type": "exact_match", "target": "n={{ n }}"},
        {"name": "pick", "type": "choice", "target": "n", "choices": "{{ options | map('string') }}"},
    ]
    dataset = {"file": "data.jsonl", "target": "a", "cluster": "n", "slices": ["on"]}
    folder = small(tmp_path / "env", jsonl(data), scoring=scoring, dataset=dataset)
    (target,) = stores(folder, tmp_path / "out")["targets"]
    assert target["id"] == "0"
    assert target["target"] == [1, {"b": None}]
    assert target["cluster"] == "2"
    assert target["slices"] == {"on": "true"}
    assert target["rules"] == {
        "sum": {"target": 3},
        "text": {"target": "n=2"},
        "pick": {"target": 2, "choices": ["x", "3"]},
    }


def test_without_an_oracle_there_are_no_solutions(tmp_path: Path) -> None:
    assert set(stores(small(tmp_path / "env", jsonl([GOOD])), tmp_path / "out")) == {"inputs", "targets"}


def test_examples_from_the_dataset_leave_the_case_itself_out(tmp_path: Path) -> None:
    data = [{"q": f"q{n}", "a": f"a{n}"} for n in range(6)]
    dataset = {"file": "data.jsonl", "target": "a", "few_shot": {"count": 5, "seed": 3}}
    found = stores(small(tmp_path / "env", jsonl(data), dataset=dataset), tmp_path / "out")["inputs"]
    orders = set()
    for number, row in enumerate(found):
        questions = [message["content"] for message in row["messages"] if message["role"] == "user"]
        assert questions[-1] == f"q{number}"
        assert sorted(questions) == [f"q{n}" for n in range(6)]
        answers = [message["content"] for message in row["messages"] if message["role"] == "assistant"]
        assert [answer[1:] for answer in answers] == [question[1:] for question in questions[:-1]]
        orders.add(tuple(questions[:-1]))
    assert len(orders) > 1


def test_another_seed_draws_other_examples(tmp_path: Path) -> None:
    def drawn(seed: int) -> list[Any]:
        manifest = MANIFEST.replace("seed: 1234", f"seed: {seed}")
        folder = example(tmp_path / f"env{seed}", manifest=manifest, train=jsonl(rows(50, "s")))
        return [row["messages"] for row in stores(folder, tmp_path / f"out{seed}")["inputs"]]

    assert drawn(1) != drawn(2)


def test_a_conversation_of_fixed_messages(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hello! What is it?"},
        {"role": "user", "content": "{{ q }}"},
    ]
    dataset = {"file": "data.jsonl", "target": "a", "few_shot": {"count": 1, "answer": "It is {{ a }}."}}
    harness = {"type": "chat", "messages": messages}
    folder = small(tmp_path / "env", jsonl([GOOD, GOOD]), dataset=dataset, harness=harness)
    row = stores(folder, tmp_path / "out")["inputs"][0]
    turns = ["Hello", "Hello! What is it?", "1 + 1?"]
    assert [m["content"] for m in row["messages"]] == ["Be brief.", *turns, "It is 2.", *turns]


def test_a_column_with_a_space_is_reached_through_row(tmp_path: Path) -> None:
    harness = {"type": "chat", "prompt": "{{ row['The Question'] }}"}
    dataset = {"file": "d.csv", "target": "Best Answer"}
    folder = small(
        tmp_path / "env", b"The Question,Best Answer\nWhy?,So\n", "d.csv", harness=harness, dataset=dataset
    )
    found = stores(folder, tmp_path / "out")
    assert found["inputs"][0]["messages"][0]["content"] == "Why?"
    assert found["targets"][0]["target"] == "So"


def test_json_in_a_prompt_is_plain(tmp_path: Path) -> None:
    harness = {"type": "chat", "prompt": "{{ q | tojson }}"}
    folder = small(tmp_path / "env", jsonl([{"q": {"a": "<é'>"}, "a": "x"}]), harness=harness)
    content = stores(folder, tmp_path / "out")["inputs"][0]["messages"][0]["content"]
    assert content == '{"a": "<é\'>"}'


def test_block_lines_leave_no_blank_lines(tmp_path: Path) -> None:
    prompt = "{{ q }}\n{% for x in a %}\n  - {{ x }}\n{% endfor %}\nEnd.\n"
    folder = small(
        tmp_path / "env", jsonl([{"q": "Q", "a": "12"}]), harness={"type": "chat", "prompt": prompt}
    )
    content = stores(folder, tmp_path / "out")["inputs"][0]["messages"][0]["content"]
    assert content == "Q\n  - 1\n  - 2\nEnd."


@pytest.mark.parametrize("source", ["{{ a | random }}", "{{ cycler(1) }}", "{{ joiner() }}"])
def test_nothing_random_or_stateful_is_offered(tmp_path: Path, source: str) -> None:
    assert problems(small(tmp_path, jsonl([GOOD]), oracle=source))


@pytest.mark.parametrize("source", ["{{ q * 2 ** 60 }}", "{{ 'x' * 2 ** 60 }}"])
@pytest.mark.parametrize("place", ["oracle", "dataset.target"])
def test_running_out_of_memory_is_a_problem_of_its_own_kind(tmp_path: Path, place: str, source: str) -> None:
    changes = (
        {"oracle": source} if place == "oracle" else {"dataset": {"file": "data.jsonl", "target": source}}
    )
    (problem,) = problems(small(tmp_path, jsonl([GOOD]), **changes))
    assert isinstance(problem, OutOfMemory)
    assert (problem.file, problem.line, problem.field) == ("data.jsonl", 1, place)
    assert "needs more memory than there is" in problem.message


def test_a_row_cannot_be_changed_by_a_template() -> None:
    data = {"xs": [1]}
    with pytest.raises(render.RenderError):
        render.Template("{{ xs.append(2) }}").text(data)
    assert data == {"xs": [1]}


def test_validation_is_quiet_about_good_bundles(tmp_path: Path) -> None:
    assert validate(load_folder(example(tmp_path))).name == "gsm8k-mini"
