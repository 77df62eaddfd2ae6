"""``environment.yaml``: what is accepted, and how problems are told."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchgen.bundle import load_folder, validate
from benchgen.bundle.manifest import Category
from benchgen.bundle.problems import MAX_PROBLEMS, BundleInvalid, Problem, ProblemLog

from .support import MANIFEST, example, jsonl, problems, rows, small

ROW = b'{"q": "1?", "a": "1"}\n'


def test_the_example_of_the_documentation_is_valid(tmp_path: Path) -> None:
    manifest = validate(load_folder(example(tmp_path)))
    assert manifest.name == "gsm8k-mini"
    assert manifest.category is Category.REASONING
    assert manifest.harness.generation.stop == ("\n\nQ:",)
    assert manifest.harness.generation.temperature == 0
    assert manifest.verify.oracle_min == 1.0
    assert manifest.verify.empty_max == 0.0
    assert manifest.model_dump(mode="json", by_alias=True)["schema"] == 1


def test_a_sole_rule_is_primary_and_the_title_defaults_to_the_name(tmp_path: Path) -> None:
    manifest = validate(load_folder(small(tmp_path, ROW)))
    assert [rule.primary for rule in manifest.scoring] == [True]
    assert manifest.title == "small"


@pytest.mark.parametrize(
    ("old", "new", "below", "field", "expected"),
    [
        (
            "version: 1.0.0",
            "version: 1.0",
            0,
            "version",
            "expected a text, found the number 1.0; YAML reads it",
        ),
        (
            "version: 1.0.0",
            "version: '1.0'",
            0,
            "version",
            "semantic version such as 1.0.0, found the text '1.0'",
        ),
        ("version: 1.0.0", "version: 2024-01-05", 0, "version", "expected a text, found the date 2024-01-05"),
        ("license: MIT", "license: no", 0, "license", "expected a text, found the boolean false"),
        ("name: gsm8k-mini", "name: GSM8K", 0, "name", "expected lower-case letters"),
        ("name: gsm8k-mini", "name: a/b/c", 0, "name", "expected lower-case letters"),
        ("category: reasoning", "category: reasonin", 0, "category", 'did you mean "reasoning"?'),
        ("tags: [math]", "tags: math", 0, "tags", "expected a list, found the text 'math'"),
        ("tags: [math]", "tags: [math, 3]", 0, "tags[1]", "expected a text, found the number 3"),
        ("tags: [math]", "tags: [a, a]", 0, "tags", "expected each entry once"),
        ("description:", "descripton:", 0, "descripton", 'did you mean "description"?'),
        ("  split: test", "  splt: test", 0, "dataset.splt", 'did you mean "split"?'),
        (
            "temperature: 0",
            "temperature: -1",
            0,
            "harness.generation.temperature",
            "at least 0.0, found the number -1",
        ),
        (
            "temperature: 0",
            "temprature: 0",
            0,
            "harness.generation.temprature",
            'did you mean "temperature"?',
        ),
        ("max_tokens: 512", "max_tokens: 0.5", 0, "harness.generation.max_tokens", "expected a whole number"),
        ("count: 2", "count: true", 0, "dataset.few_shot.count", "whole number, found the boolean true"),
        (
            "type: chat",
            "type: chatt",
            -1,
            "harness",
            'one of chat, program, found "chatt"; did you mean "chat"?',
        ),
        ("type: chat", "type: tools", 0, "harness.type", "is not supported by this version"),
        ("type: numeric", "type: judge", 0, "scoring[0].type", "is not supported by this version"),
        ("type: numeric", "type: numerics", -1, "scoring[0]", 'did you mean "numeric"?'),
        ("take: last", "take: lst", 0, "scoring[0].extract.take", "'first' or 'last'"),
        ("take: last", "tke: last", 0, "scoring[0].extract.tke", 'did you mean "take"?'),
        ("    primary: true", "    prmary: true", 0, "scoring[0].prmary", 'did you mean "primary"?'),
        (
            "    primary: true",
            "    primary: false",
            -4,
            "scoring",
            "exactly one rule with `primary: true`, found none",
        ),
        ("file: data/test.jsonl", "file: ../test.jsonl", 0, "dataset.file", "expected a plain relative path"),
        ("name: gsm8k-mini", "name: a\nname: b", 1, "name", 'found "name" again (first on line 2)'),
        ("tags: [math]", "tags: &t [math]\nx: *t", 1, None, "found the alias *t"),
        ("tags: [math]", "tags: [math", 1, None, "expected valid YAML"),
        (
            "tags: [math]",
            "tags: !!python/name:os.system ''",
            0,
            "tags",
            "with the tag tag:yaml.org,2002:python",
        ),
        ("tags: [math]", "1: x", 0, None, "expected a text as key, found the number 1; put it in quotes"),
        (
            "tags: [math]",
            "tags: [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]",
            0,
            None,
            "at most 32 levels of nesting",
        ),
        ("schema: 1", "schema: 2", 0, "schema", "expected 1, found the number 2"),
        ("{{ question }}", "{{ question", -1, "harness.prompt", "expected a valid template"),
        ('"{{ answer }}"', '"{{ answer | nope }}"', 0, "oracle", "No filter named 'nope'"),
    ],
)
def test_a_problem_names_its_place(
    tmp_path: Path, old: str, new: str, below: int, field: str | None, expected: str
) -> None:
    """``below`` is how many lines under the changed text the problem is."""
    line = MANIFEST[: MANIFEST.index(old)].count("\n") + 1 + below
    (problem,) = problems(example(tmp_path, manifest=MANIFEST.replace(old, new, 1)))
    assert (problem.file, problem.line, problem.field) == ("environment.yaml", line, field)
    assert expected in problem.message


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    manifest = MANIFEST.replace("version: 1.0.0", "version: 1.0").replace("license: MIT", "license: no")
    test = jsonl([*rows(1), {**rows(1)[0], "question": None}]) + b'{"a": \n'
    found = problems(example(tmp_path, manifest=manifest, test=test))
    assert [(problem.file, problem.line) for problem in found] == [
        ("environment.yaml", 3),
        ("environment.yaml", 8),
        ("data/test.jsonl", 2),
        ("data/test.jsonl", 2),
        ("data/test.jsonl", 3),
    ]


def test_what_is_required_is_named(tmp_path: Path) -> None:
    found = problems(small(tmp_path, ROW, name=None, harness=None))
    assert {(p.field, p.message) for p in found} == {
        ("harness", "expected this required field, found none"),
        ("name", "expected this required field, found none"),
    }


def test_prompt_and_messages_exclude_each_other(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "{{ q }}"}]
    (problem,) = problems(small(tmp_path, ROW, harness={"type": "chat", "prompt": "x", "messages": messages}))
    assert problem.field == "harness"
    assert "expected exactly one of `prompt` and `messages`" in problem.message


def test_rules_share_no_name(tmp_path: Path) -> None:
    rules = [{"name": "x", "type": "exact_match", "primary": True}, {"name": "x", "type": "includes"}]
    (problem,) = problems(small(tmp_path, ROW, scoring=rules))
    assert problem.field == "scoring"
    assert "own name" in problem.message


def test_a_rule_needs_a_target(tmp_path: Path) -> None:
    folder = small(tmp_path, ROW, dataset={"file": "data.jsonl"})
    (problem,) = problems(folder)
    assert problem.field == "scoring[0]"
    assert "set `dataset.target`" in problem.message


def test_a_pattern_of_its_own_is_target_enough(tmp_path: Path) -> None:
    rules = [{"name": "x", "type": "regex", "pattern": "[a-z]+"}]
    validate(load_folder(small(tmp_path, ROW, dataset={"file": "data.jsonl"}, scoring=rules)))


def test_a_missing_manifest_is_explained(tmp_path: Path) -> None:
    (tmp_path / "environment.yml").write_text("x: 1")
    (problem,) = problems(tmp_path)
    assert "expected this file, or a competition.yaml, at the top" in problem.message
    assert problem.message.endswith("found none; rename environment.yml")


def test_a_manifest_that_is_no_text_or_no_mapping(tmp_path: Path) -> None:
    (tmp_path / "environment.yaml").write_bytes(b"name: x\ntitle: \xff\n")
    (problem,) = problems(tmp_path)
    assert (problem.line, problem.message) == (2, "expected UTF-8, found the byte 0xff")
    (tmp_path / "environment.yaml").write_bytes(b"- 1\n")
    assert "expected a mapping, found a list" in problems(tmp_path)[0].message
    (tmp_path / "environment.yaml").write_bytes(b" " * (2 << 20))
    assert "expected at most 1,048,576 bytes" in problems(tmp_path)[0].message


def test_a_problem_reads_as_a_line() -> None:
    assert str(Problem("data/test.jsonl", "expected x, found y", 17, "answer")) == (
        "data/test.jsonl:17: answer: expected x, found y"
    )


def test_problems_are_bounded_and_counted() -> None:
    log = ProblemLog()
    for number in range(MAX_PROBLEMS + 7):
        log.add("f", str(number))
    with pytest.raises(BundleInvalid, match="and 7 more") as caught:
        log.raise_if_any()
    assert len(caught.value.problems) == MAX_PROBLEMS
    assert caught.value.more == 7


def test_the_same_problem_on_many_rows_is_told_once() -> None:
    log = ProblemLog()
    for number in range(1, 51):
        log.add("f", "bad", line=number, group="g")
    with pytest.raises(BundleInvalid) as caught:
        log.raise_if_any()
    assert [p.line for p in caught.value.problems] == [1, 2, 3, None]
    assert caught.value.problems[-1].message == "the same on 47 more rows, the last at line 50"
